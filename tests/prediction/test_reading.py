"""Clips of listed audio: whole, in parts and in segments, by this process and by others."""

import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import soundfile

from ser_fast.data.audio import read_audio
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import pack
from ser_fast.prediction import reading, workers
from ser_fast.prediction.listing import Item
from ser_fast.prediction.reading import Reader
from ser_fast.prediction.stream import read, read_all

RATE = 16000
READER = Reader(RATE, frame=640)


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(10 * RATE + 800), RATE)
    return str(path)


def spans(blocks):
    return [(clip.start, clip.end) for block in blocks for clip in block.clips]


@pytest.mark.parametrize(
    ("segment", "hop", "item", "expected"),
    [
        (4.0, None, {}, [(0.0, 4.0), (4.0, 8.0), (8.0, 10.05)]),
        (4.2, None, {}, [(0.0, 4.2), (4.2, 8.4)]),  # 1.65 s are left, less than half a segment
        (20.0, None, {}, [(0.0, 10.05)]),
        (30.0, 1.0, {}, [(0.0, 10.05)]),
        (4.0, 3.0, {}, [(0.0, 4.0), (3.0, 7.0), (6.0, 10.0)]),
        (1.0, None, {"start": 2.0, "end": 4.5}, [(2.0, 3.0), (3.0, 4.0), (4.0, 4.5)]),
    ],
)
@pytest.mark.parametrize("seconds", [300.0, 1.0])
def test_reader_cuts_segments(segment, hop, item, expected, seconds, noise):
    """Segments are the same however the file is read, and the samples those between start and end."""
    blocks = list(read_all(Reader(RATE, 640, 0.0, segment, hop, seconds), [Item(noise, **item)]))
    assert spans(blocks) == expected
    assert [block.more for block in blocks] == [True] * (len(blocks) - 1) + [False]
    for block in blocks:
        for clip in block.clips:
            whole = read_audio(noise, RATE, clip.start, clip.end).numpy()
            assert np.array_equal(clip.samples, pack(whole)) and clip.seconds == len(whole) / RATE


def test_reader_bounds_overlapping_segments(noise):
    """A block holds so many seconds of segments, however much these overlap."""
    blocks = list(read_all(Reader(RATE, 640, 0.0, 2.0, 0.1, block=6.0), [Item(noise)]))
    assert {len(block.clips) for block in blocks[:-1]} == {3} and sum(len(block.clips) for block in blocks) == 91


def test_reader_gives_nothing_to_predict_for_silence(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(RATE), RATE)
    (clip,), more = READER.read(Item(str(path)))
    assert (clip.samples, clip.flag, more) == (None, "silent", False)
    with pytest.raises(AudioError, match="nowhere: gone"):
        READER.read(Item("nowhere", error="gone"))


@dataclass(frozen=True)
class Deadly(Reader):
    """A reader that ends its process, as a decoder that fails does."""

    def read(self, item, block=0):
        if "deadly" in item.file and (block or "late" not in item.file):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(item, block)


def files(folder, count):
    for number in range(count):
        yield Item(str(folder / f"{number % 5}.wav"))


@pytest.mark.parametrize("segment", [None, 0.5])
def test_read_beside_equals_reading_here(segment, folder):
    reader = Reader(RATE, 640, segment=segment)
    items = [*files(folder, 100), Item("nowhere", error="gone"), *files(folder, 30)]
    here = [block._replace(seconds=0) for block in read_all(reader, items)]
    beside = [block._replace(seconds=0) for block in workers.read_beside(reader, items, 2)]
    assert len(here) == len(beside) == 131 and here[100].error == "gone"
    for block, other in zip(here, beside):
        assert block.item is other.item and repr(block) == repr(other)


def test_read_beside_names_the_file_that_ends_a_process(folder):
    items = list(files(folder, 120))
    items[3] = items[80] = Item("deadly.wav")
    found = list(workers.read_beside(Deadly(RATE, 640), items, 2))
    assert [block.item for block in found] == items
    errors = {index: block.error for index, block in enumerate(found) if block.error}
    assert errors == {3: workers.DIED, 80: workers.DIED}


def test_read_beside_keeps_blocks_before_an_end(folder, noise):
    """A process dies in a later block of a recording."""
    late = noise.replace("noise", "deadly_late")
    os.rename(noise, late)
    items = [Item(late), *files(folder, 3)]
    found = list(workers.read_beside(Deadly(RATE, 640, segment=1.0, block=2.0), items, 1))
    assert [block.error for block in found] == ["", workers.DIED, "", "", ""]
    assert spans(found[:1]) == [(0.0, 1.0), (1.0, 2.0)]
    assert [block.item for block in found if not block.more] == items


def test_read_beside_goes_on_after_a_kill(folder, monkeypatch):
    """A process that something else ends loses nothing."""
    pools = []

    class Pool(workers._Pool):
        def renew(self):
            super().renew()
            pools.append(self.executor)

    monkeypatch.setattr(workers, "_Pool", Pool)
    items, found = list(files(folder, 400)), []
    for block in workers.read_beside(READER, items, 1):
        found.append(block)
        if len(found) == 5:
            os.kill(next(iter(pools[0]._processes)), signal.SIGKILL)
    assert len(pools) > 1 and [block.item for block in found] == items
    assert not any(block.error for block in found)


def test_pool_processes_leave_interrupts_to_the_parent():
    pool = workers._Pool(READER, 1)
    try:
        pool.start()
        assert signal.SIGINT in pool.executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        pool.close()


def test_read_beside_names_workers_that_cannot_start(folder, monkeypatch):
    def fail(*_):
        raise EOFError

    monkeypatch.setattr(workers.ProcessPoolExecutor, "submit", fail)
    with pytest.raises(RuntimeError, match="workers is 2, and these processes end at their start"):
        next(workers.read_beside(READER, files(folder, 100), 2))


def test_read_names_files_without_memory(monkeypatch):
    def read_audio(*_):
        raise MemoryError

    monkeypatch.setattr(reading, "read_audio", read_audio)
    assert read(READER, Item("a.wav")).error == "does not fit in memory"
