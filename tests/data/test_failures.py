"""Many unreadable files: five of them, how many have each reason, and a file with all."""

import pickle
import time
from pathlib import Path

import pytest
import torch

from ser_fast.cli import main
from ser_fast.data.audio import read_corpus
from ser_fast.data.failures import LIST, Tally, UnreadableError, listed, summarise
from ser_fast.data.utterance import Utterance
from ser_fast.data.wav import AudioError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 51244\n"


def unreadable(folder: Path, pointers: int, empty: int) -> list[Utterance]:
    paths = [folder / f"{number}.wav" for number in range(pointers + empty)]
    for number, path in enumerate(paths):
        path.write_text(POINTER if number < pointers else "")
    return [Utterance(path.stem, "s", "sad", path) for path in paths]


def in_memory(label: str) -> Utterance:
    return Utterance(label, "s", label, samples=torch.zeros(1600), sample_rate=16000)


def test_read_corpus_counts_the_reasons(tmp_path):
    utterances = [*unreadable(tmp_path, 300, 20), in_memory("sad"), in_memory("glad")]
    with pytest.raises(AudioError) as caught:
        read_corpus(utterances)
    pointer = "a Git LFS pointer instead of audio"
    assert str(caught.value).splitlines() == [
        "320 of 322 utterances cannot be read:",
        *(f"  {tmp_path}/{number}.wav: {pointer}" for number in range(5)),
        "  and 315 more; by reason:",
        f"  300 {pointer}; run `git lfs pull` in its repository",
        "  20 the file is empty (N bytes)",
    ]
    good, samples, errors = read_corpus(utterances, skip_bad=True)
    assert len(good) == len(samples) == 2 and len(errors) == 320


def test_read_corpus_says_what_skip_bad_leaves(tmp_path):
    bad = unreadable(tmp_path, 0, 2)
    with pytest.raises(AudioError, match="2 of 2 utterances cannot be read; skip_bad leaves none:\n"):
        read_corpus(bad, skip_bad=True)
    with pytest.raises(AudioError, match="2 of 3 utterances cannot be read; skip_bad leaves those of glad alone:\n"):
        read_corpus([*bad, in_memory("glad")], skip_bad=True)
    assert len(read_corpus([*bad, in_memory("sad")], skip_bad=True)[0]) == 1  # one class before, too


def test_summarise_shows_few_errors_whole():
    few = [f"{number}.wav: truncated" for number in range(5)]
    assert summarise(few) == few
    many = summarise(f"{number}.wav: {'x' * number}" for number in range(1, 21))
    assert len(many) == 12 and many[-1] == "15 other reasons"


def test_tally_takes_reasons_that_differ_in_numbers_as_one():
    tally = Tally(f"{value}.mp3: the largest sample is {value}; not as in .mp3" for value in (3, 1e30, 2.5))
    assert tally.by_reason() == ["3 the largest sample is N; not as in .mp3"]


def test_tally_counts_errors_as_they_come():
    tally = Tally()
    for number in range(1000):
        tally.add(f"{number}.wav: the file is empty (0 bytes)")
    assert tally.count == 1000 and tally.by_reason() == ["1000 the file is empty (N bytes)"]
    assert tally.lines() == summarise(f"{number}.wav: the file is empty (0 bytes)" for number in range(1000))


def test_corpus_of_lfs_pointers_gets_one_sentence(tmp_path):
    """As many files as CREMA-D has; at most 3 s of processor time."""
    utterances = unreadable(tmp_path, 7442, 0)
    start = time.process_time()
    with pytest.raises(UnreadableError) as caught, listed(tmp_path / "out"):
        read_corpus(utterances)
    assert time.process_time() - start < 3
    first = f"all 7442 utterances, such as {tmp_path}/0.wav, are Git LFS pointers instead of audio"
    assert str(caught.value) == f"{first}; run `git lfs pull` in its repository"
    assert not list(tmp_path.glob(f"*{LIST}"))


def test_train_lists_unreadable_files_beside_its_folder(tmp_path, capsys):
    """Nothing is trained, so there is no run folder yet."""
    for label in ("anger", "sadness"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "data" / label / f"{number}.wav").write_text(POINTER if number else "")
    options = ["train", f"--data=folders:{tmp_path / 'data'}", f"--out={tmp_path / 'runs' / 'a'}"]
    assert main(options) == 1
    said = capsys.readouterr().err.splitlines()
    path = tmp_path / "runs" / f"a.{LIST}"
    assert said[0].endswith("20 of 20 utterances cannot be read:") and said[-1] == f"  all of them: {path}"
    assert len(said) == 10 and sum("git lfs pull" in line for line in said) == 1
    assert len(path.read_text().splitlines()) == 20 and not (tmp_path / "runs" / "a").exists()


def test_listed_keeps_few_errors_in_the_message(tmp_path):
    with pytest.raises(UnreadableError, match="5 of 5 utterances"), listed(tmp_path / "out"):
        read_corpus(unreadable(tmp_path, 0, 5))
    assert not (tmp_path / f"out.{LIST}").exists()


def test_listed_says_when_the_list_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UnreadableError, match=r"all of them: \S+ cannot be written \("),
        listed(tmp_path / "file" / "out"),
    ):
        read_corpus(unreadable(tmp_path, 0, 6))


def test_unreadable_errors_survive_another_process(tmp_path):
    with pytest.raises(UnreadableError) as caught:
        read_corpus(unreadable(tmp_path, 1, 6))
    other = pickle.loads(pickle.dumps(caught.value))
    assert (str(other), other.errors) == (str(caught.value), caught.value.errors) and len(other.errors) == 7


def test_read_corpus_names_files_that_vanished(tmp_path):
    utterances = unreadable(tmp_path, 0, 2)
    utterances[0].path.unlink()
    errors = read_corpus([*utterances, in_memory("sad")], skip_bad=True)[2]
    assert str(errors[0]) == f"{tmp_path}/0.wav: no such file"
