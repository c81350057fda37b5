"""Warnings about names, counts and audio, for corpora that are made in memory."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ser_fast.data.corpora import Corpus, Utterance
from ser_fast.data.findings import corpus_lines, of_audio, of_names
from ser_fast.data.pace import progress
from ser_fast.data.summary import summarise
from ser_fast.data.survey import Properties, survey
from ser_fast.data.wav import AudioError


def corpus(*pairs: tuple[str, str]) -> Corpus:
    """Return a corpus of two utterances for each pair of speaker and label."""
    made = [Utterance(f"{n}.wav", *pair, Path(f"{n}.wav")) for n, pair in enumerate(pairs * 2)]
    return Corpus("c", made, sorted({label for _, label in pairs}))


def codes(found: Corpus) -> list[str]:
    return [one.code for one in of_names(found)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("anger", "angry", True),
        ("sad", "sadness", True),
        ("Happy", "happiness", True),
        ("04 surprise", "surprised", True),
        ("disgust", "disappointed", False),
        ("confused", "contempt", False),
        ("calm", "neutral", False),
        ("怒", "愤怒", False),
        ("angle", "angry", False),  # no word for an emotion
    ],
)
def test_findings_name_words_for_one_emotion(one, other, same):
    found = codes(corpus(*((speaker, label) for speaker in "ab" for label in (one, other))))
    assert found == (["class_synonym"] if same else [])


def test_findings_leave_a_person_called_joy_alone():
    assert codes(corpus(*((s, c) for s in ("Joy", "Eve") for c in ("anger", "calm")))) == []
    assert codes(corpus(*((s, c) for s in ("Joy", "Eve") for c in ("joy", "calm")))) == ["speaker_is_class"]


def test_findings_keep_labels_that_no_reader_merged():
    found = of_names(corpus(*((s, c) for s in "ab" for c in ("angry", "Angry", "sad"))))
    assert [(one.code, one.names) for one in found] == [("class_spelling", ("Angry", "angry"))]


def test_corpus_lines_end_with_the_warnings():
    """Train and cv print these before they read any audio."""
    made = corpus(("eve", "calm"), ("bob", "joy"))
    learn = "warning: each of the 2 speakers has one class only, so a model can learn the speakers instead"
    assert corpus_lines(made) == [*made.summary(), learn]


def test_findings_name_three_of_many():
    made = corpus(*((f"s{n}", c) for n in range(5) for c in ("calm", "joy")))
    found = of_audio(made, [Properties(0.1, 8000, 1, (), str(n)) for n in range(20)])
    sentence = "utterances below 0.2 s (20 of 20): '0.wav', '1.wav', '2.wav', ..."
    assert [(one.sentence, len(one.names)) for one in found] == [(sentence, 20)]


def test_findings_compare_the_values_of_copies():
    def found(*values: float) -> list[str]:
        made = [Utterance(f"{n}", "s", "", Path(f"{n}"), value=value) for n, value in enumerate(values)]
        same = [Properties(1.0, 8000, 1, (), "same")] * len(made)
        return [one.code for one in of_audio(Corpus("c", made, []), same)]

    assert found(0.5, 0.5) == ["same_audio"] and found(0.5, 0.25) == ["same_audio_label"]


def test_survey_reads_memory_channels_and_sections(tmp_path):
    tone = np.sin(np.arange(8000) * 0.3)
    soundfile.write(tmp_path / "opposite.wav", np.stack([tone, -tone], 1), 8000)
    given = [
        Utterance("memory", "s", "a", samples=torch.zeros(4000), sample_rate=16000),
        Utterance("opposite", "s", "a", tmp_path / "opposite.wav", end=0.5),
        Utterance("missing", "s", "a", tmp_path / "missing.wav"),
    ]
    memory, opposite, missing = survey(given)
    assert memory[:4] == (0.25, 16000, 1, ("silent",)) and opposite[:4] == (0.5, 8000, 2, ("cancelled",))
    assert isinstance(missing, AudioError) and memory.digest != opposite.digest
    headers = survey(given, headers_only=True)
    assert headers[:2] == [(0.25, 16000, 1, (), ""), (0.5, 8000, 2, (), "")] and isinstance(headers[2], AudioError)
    found = summarise(Corpus("c", given, ["a"]), [memory, opposite, missing])
    assert found.whole.spread() == (0.25, 0.375, 0.5) and found.whole.utterances == 3
    assert found.formats == {(16000, 1): 1, (8000, 2): 1}


def test_progress_is_shown_by_what_can_show_it():
    class Report(list):
        __call__ = list.append

        def progress(self, task, total):
            self.append(f"{task} {total}")
            return self

        def __enter__(self):
            return self.append

        def __exit__(self, *_):
            self.append("end")

    report = Report()
    with pytest.raises(KeyError), progress(report, "read", 3) as done:
        done(1)
        raise KeyError
    assert report == ["read 3", 1, "end"]


def test_many_classes_take_little_time_and_short_sentences():
    rows = [(f"s{number % 7}", f"angry_{number}") for number in range(3000)] + [("s0", "anger"), ("s0", "Joy")]
    found = {one.code: one for one in of_names(corpus(*rows))}
    assert set(found["class_synonym"].names) == {f"angry_{number}" for number in range(3000)} | {"anger"}
    assert found["speaker_lacks_class"].names == tuple(f"s{number}" for number in range(7))
    assert max(len(one.sentence) for one in found.values()) < 300
    assert "s0 (angry_1, angry_10, angry_100, ...)" in found["speaker_lacks_class"].sentence
    assert len(found["class_of_one_speaker"].names) == 3002
