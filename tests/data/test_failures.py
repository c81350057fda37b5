"""Many unreadable files: five of them, and how many have each reason."""

from pathlib import Path

import pytest
import torch

from ser_fast.data.audio import read_corpus
from ser_fast.data.failures import summarise
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
    pointer = "a Git LFS pointer instead of audio; run `git lfs pull` in its repository"
    assert str(caught.value).splitlines() == [
        "320 of 322 utterances cannot be read:",
        *(f"  {tmp_path}/{number}.wav: {pointer}" for number in range(5)),
        "  and 315 more; by reason:",
        f"  300 {pointer}",
        "  20 the file is empty (N bytes)",
    ]
    good, samples, errors = read_corpus(utterances, skip_bad=True)
    assert len(good) == len(samples) == 2 and len(errors) == 320


def test_read_corpus_says_what_skip_bad_leaves(tmp_path):
    bad = unreadable(tmp_path, 2, 0)
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
