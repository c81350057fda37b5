"""Splits: no utterance is on two sides, and no speaker where speakers are held out."""

import random

import pytest

from ser_fast.data.splits import split

SPEAKERS = [f"s{i // 12}" for i in range(60)]
LABELS = [i % 3 for i in range(60)]
CLASSES = ["anger", "neutral", "sadness"]


def assert_disjoint_and_whole(found, count: int = 60) -> None:
    assert sorted(found.train + found.valid + found.test) == list(range(count))


@pytest.mark.parametrize("validation", ["random", "speakers", "none"])
@pytest.mark.parametrize(
    "held_out",
    [{"test_speakers": ["s2"]}, {"test_speakers": ["s0", "s4"]}, {"test_fold": "2/5"}, {"test_fraction": 0.3}],
)
def test_split_puts_no_utterance_on_two_sides(held_out, validation):
    for seed in range(5):
        found = split(SPEAKERS, LABELS, CLASSES, **held_out, validation=validation, valid_fraction=0.25, seed=seed)
        assert_disjoint_and_whole(found)
        assert bool(found.valid) == (validation != "none")
        if validation == "speakers":
            assert not {SPEAKERS[i] for i in found.train} & {SPEAKERS[i] for i in found.valid}
        if "test_speakers" in held_out:
            assert {SPEAKERS[i] for i in found.test} == set(held_out["test_speakers"])
            assert not {SPEAKERS[i] for i in found.train + found.valid} & set(held_out["test_speakers"])
            assert found.protocol.startswith(f"speakers {', '.join(held_out['test_speakers'])} held out")
        else:
            assert "speakers shared" in found.protocol
            assert {LABELS[i] for i in found.test} == {0, 1, 2}


def test_split_of_values_needs_no_classes():
    values = [random.Random(i).uniform(-1, 1) for i in range(60)]
    tested = []
    for number in range(1, 5):
        found = split(SPEAKERS, values, [], test_fold=f"{number}/4")
        assert_disjoint_and_whole(found)
        tested += found.test
    assert sorted(tested) == list(range(60))


def test_split_keeps_the_corpus_parts():
    parts = ["train"] * 40 + ["valid"] * 8 + ["test"] * 12
    found = split(SPEAKERS, LABELS, CLASSES, parts)
    assert (found.train, found.valid, found.test) == (list(range(40)), list(range(40, 48)), list(range(48, 60)))
    assert found.protocol == "the corpus's own test part; best epoch chosen on its validation part"
    unchosen = split(SPEAKERS, LABELS, CLASSES, parts, validation="none")
    assert (unchosen.train, unchosen.valid, unchosen.test) == (list(range(48)), [], list(range(48, 60)))
    held_out = split(SPEAKERS, LABELS, CLASSES, parts, test_speakers=["s0"])
    assert {SPEAKERS[i] for i in held_out.test} == {"s0"}
    with pytest.raises(ValueError, match="data names parts but none is 'test'"):
        split(SPEAKERS, LABELS, CLASSES, ["train"] * 60)


def test_split_names_a_class_without_test_utterance():
    speakers, labels = ["a"] * 30 + ["b"] * 2, [0] * 15 + [1] * 15 + [0, 0]
    assert split(speakers, labels, ["x", "y"], test_speakers=["b"]).protocol.endswith("; no test utterance of y")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test_speakers": ["x"]}, r"test_speakers names \['x'\]; they must be among \['s0', 's1', 's2', 's3', 's4'\]"),
        ({"test_speakers": ["s0", "s1", "s2", "s3", "s4"]}, "test_speakers is s0,s1,s2,s3,s4; it must be fewer than all speakers"),
        ({"test_fraction": 0.01}, r"test_fraction is 0\.01, 1 of 60 utterances; it must leave 3 or more, one of each class"),
        ({"labels": [0] * 60}, r"data has utterances of \['anger'\]; it must have some of two classes"),
        ({"labels": [0] + [1] * 59}, r"data has a single utterance of \['anger'\] to draw test_fraction from"),
        ({"labels": [0] * 2 + [1] * 52, "test_speakers": ["s0"], "speakers": ["s0"] * 2 + ["s1"] * 52},
         r"data leaves no training utterance of \['anger'\]; it must leave some of every class"),
        ({"test_fold": "1/21"}, "test_fold is 1/21, but the largest class has 20 utterances; it must name at most as many"),
        ({"test_fold": "x"}, "test_fold is 'x'; it must be like 3/10, the third of ten folds"),
        ({"test_speakers": ["s0", "s1", "s2", "s3"], "validation": "speakers"},
         "validation is speakers, but data leaves the training 1 of them; it must leave two or more"),
    ],
)  # fmt: skip
def test_split_refuses_bad_options(changes, sentence):
    parts = {"speakers": SPEAKERS, "labels": LABELS, "classes": CLASSES}
    with pytest.raises(ValueError, match=sentence):
        split(**(parts | changes))
