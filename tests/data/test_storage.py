"""Memory, disk cache and files give the same waves; the choice follows the available memory and disk."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data import cache, storage
from ser_fast.data.audio import read_corpus
from ser_fast.data.corpora.synthetic import synthetic
from ser_fast.data.dataset import load_dataset
from ser_fast.data.storage import Storage, default_cache_dir, open_waves
from ser_fast.data.utterance import Corpus, Utterance
from ser_fast.data.wav import AudioError
from ser_fast.data.waves import FileWaves, MemoryWaves

GB = 10**9


@pytest.fixture
def utterances(tmp_path) -> list[Utterance]:
    """Files of several kinds and rates, and spans of them."""
    draw = np.random.default_rng(0)
    made = []
    for number, (suffix, subtype, rate) in enumerate(
        [("wav", "PCM_16", 16000), ("flac", "PCM_16", 16000), ("wav", "FLOAT", 16000), ("wav", "PCM_16", 44100)] * 2
    ):
        path = tmp_path / f"{number}.{suffix}"
        soundfile.write(path, draw.uniform(-0.5, 0.5, 4000 + 100 * number), rate, subtype=subtype)
        made.append(Utterance(f"u{number}", f"s{number % 2}", "ab"[number % 2], path))
    return [*made, Utterance("span", "s0", "a", made[0].path, start=0.01, end=0.1)]


def opened(utterances, kind: str, tmp_path: Path, skip_bad=False, **options):
    lines = []
    chosen = Storage(kind, tmp_path / "cache", **options)
    return *open_waves(utterances, 16000, skip_bad, chosen, lines.append), lines


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_storage_gives_the_waves_that_are_read(utterances, tmp_path, kind):
    _, wanted, _ = read_corpus(utterances)
    kept, waves, errors, lines = opened(utterances, kind, tmp_path)
    assert kept == utterances and errors == [] and list(waves.lengths) == [len(wave) for wave in wanted]
    assert all(torch.equal(wave, other) for wave, other in zip(waves, wanted, strict=True))
    where = {"memory": r"1 MB in memory \(budget .* GB\)", "disk": f"1 MB on disk in {tmp_path}/cache",
             "none": "read from the files in every epoch"}  # fmt: skip
    verb = "" if kind == "none" else "reading "
    assert re.fullmatch(rf"{verb}9 utterances \(0\.0 min\): {where[kind]}", lines[0]) and len(lines) == 1


def test_storage_in_memory_is_int16_where_it_can(utterances, tmp_path):
    """The line before the reading says what the waves then take."""
    waves = opened(utterances, "memory", tmp_path)[1].waves
    assert [wave.itemsize for wave in waves] == [2, 2, 4, 4, 2, 2, 4, 4, 2]
    assert sum(wave.nbytes for wave in waves) == sum(one.bytes for one in storage.scan(utterances, 16000))


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_storage_skips_unreadable_files(utterances, tmp_path, kind):
    (tmp_path / "0.wav").write_text("no audio")
    with pytest.raises(AudioError, match=r"2 of 9 utterances cannot be read:\n.*0\.wav: not readable"):
        opened(utterances, kind, tmp_path)
    kept, waves, errors, _ = opened(utterances, kind, tmp_path, skip_bad=True)
    assert [one.name for one in kept] == [f"u{n}" for n in range(1, 8)] == list(waves.names) and len(errors) == 2
    assert all(len(wave) == length for wave, length in zip(waves, waves.lengths))


@pytest.mark.parametrize(
    ("kind", "processes", "memory", "disk", "chosen"),
    [
        ("auto", 1, 8.1 * GB, 0, "memory"),
        ("auto", 1, 7.9 * GB, 4 * GB, "disk"),
        ("auto", 1, 7.9 * GB, 3 * GB, "none"),
        ("auto", 2, 99 * GB, 4 * GB, "disk"),
        ("auto", 2, 99 * GB, 1 * GB, "none"),
        ("memory", 1, 2 * GB, 0, "memory"),
        ("memory", 2, 99 * GB, 4 * GB, "disk"),
        ("disk", 1, 99 * GB, 2 * GB, "disk"),
        ("none", 2, 99 * GB, 99 * GB, "none"),
    ],
)
def test_storage_chooses_the_first_that_fits(kind, processes, memory, disk, chosen):
    assert Storage(kind, processes=processes).choose(2 * GB, memory, disk) == chosen


def test_storage_refuses_what_does_not_fit(utterances, tmp_path, monkeypatch):
    """One sentence before any audio is read."""
    monkeypatch.setattr(storage, "read_utterance", pytest.fail)
    monkeypatch.setattr(cache, "read_utterance", pytest.fail)
    monkeypatch.setattr(storage, "available_memory", lambda: 10_000)
    monkeypatch.setattr(storage, "free_disk", lambda folder: 10_000)
    needs = r"cache is memory, but the corpus needs 1 MB and 1 MB are available; it must be disk or none"
    with pytest.raises(ValueError, match=needs):
        opened(utterances, "memory", tmp_path)
    with pytest.raises(ValueError, match=r"cache_dir is .*/cache, where 1 MB are free and the corpus needs 1 MB; it"):
        opened(utterances, "disk", tmp_path)
    with pytest.raises(ValueError, match="cache_dir is"):
        opened(utterances, "memory", tmp_path, processes=2)
    _, waves, _, lines = opened(utterances, "auto", tmp_path)
    assert isinstance(waves, FileWaves) and not (tmp_path / "cache").exists()
    assert lines[0].endswith("read from the files in every epoch; 1 MB fit neither in memory nor on disk")
    monkeypatch.setattr(storage, "free_disk", lambda folder: 0)
    with pytest.raises(ValueError, match=r"cache_dir is .*/cache, which cannot be written; it must be a folder on"):
        opened(utterances, "disk", tmp_path)


def test_storage_auto_takes_a_finished_cache(utterances, tmp_path, monkeypatch):
    assert isinstance(opened(utterances, "auto", tmp_path)[1], MemoryWaves)
    opened(utterances, "disk", tmp_path)
    monkeypatch.setattr(storage, "scan", pytest.fail)  # its index has the lengths
    assert isinstance(opened(utterances, "auto", tmp_path)[1], cache.DiskWaves)


def test_storage_says_what_processes_share(utterances, tmp_path):
    lines = opened(utterances, "memory", tmp_path, processes=2)[3]
    assert lines[0].endswith(f"on disk in {tmp_path}/cache, one copy for 2 processes")


def test_storage_keeps_a_generated_corpus_in_memory(tmp_path):
    corpus = synthetic(speakers=2, takes=1)
    lines = []
    dataset = load_dataset(corpus, 16000, report=lines.append, storage=Storage("disk", tmp_path, processes=2))
    assert isinstance(dataset.waves, MemoryWaves) and lines == [] and not any(tmp_path.iterdir())
    assert torch.equal(dataset.waves[0], corpus.utterances[0].samples)


def test_storage_explains_a_lack_of_memory(utterances, tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(storage, "read_utterance", fail)
    with pytest.raises(MemoryError, match=r"the corpus, about 1 MB, does not fit in memory; .* with --cache=disk"):
        opened(utterances, "memory", tmp_path)


def test_storage_refuses_wrong_options():
    for options, message in (
        ({"cache": "ram"}, "cache is 'ram'; it must be one of auto, memory, disk, none"),
        ({"workers": -2}, "workers is -2; it must be at least 0, or -1"),
        ({"processes": 0}, "processes is 0; it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Storage(**options)


def test_storage_chooses_workers(monkeypatch):
    monkeypatch.setattr(storage.os, "cpu_count", lambda: 8)
    assert [Storage(workers=-1).readers(kind) for kind in ("disk", "none")] == [0, 7]
    assert [Storage(workers=3).readers(kind) for kind in ("disk", "none")] == [3, 3]
    assert [Storage(processes=count).readers("none") for count in (2, 4, 8)] == [3, 1, 1]
    monkeypatch.setattr(storage.os, "cpu_count", lambda: 64)
    assert Storage().readers("none") == 8


def test_default_cache_dir_is_the_users(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert default_cache_dir() == Path("/cache/ser_fast/corpora") == Storage().folder
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "ser_fast" / "corpora"


def test_dataset_digest_does_not_depend_on_the_storage(utterances, tmp_path):
    corpus = Corpus("some", utterances, ["a", "b"])
    found = {load_dataset(corpus, 16000, storage=Storage(kind, tmp_path / "cache")).digest()
             for kind in ("memory", "disk", "none")}  # fmt: skip
    assert len(found) == 1
