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


def test_split_validates_by_speakers_where_they_are_held_out():
    """The default; random utterances are the default only where the test part shares speakers with the rest."""
    held_out = split(SPEAKERS, LABELS, CLASSES, test_speakers=["s2"])
    assert {SPEAKERS[i] for i in held_out.train}.isdisjoint(SPEAKERS[i] for i in held_out.valid)
    assert len({SPEAKERS[i] for i in held_out.valid}) == 1
    assert held_out.protocol == "speakers s2 held out; best epoch chosen on 10% of the training speakers"
    by_parts = split(SPEAKERS, LABELS, CLASSES, ["train"] * 48 + ["test"] * 12)
    assert {SPEAKERS[i] for i in by_parts.train}.isdisjoint(SPEAKERS[i] for i in by_parts.valid)
    random_by_default = [
        {"test_fold": "1/5"},
        {"test_fraction": 0.2},
        {"parts": ["train"] * 50 + ["test"] * 10},
        {"test_speakers": ["s0", "s1", "s2", "s3"], "valid_fraction": 0.3},
    ]
    for options in random_by_default:
        found = split(SPEAKERS, LABELS, CLASSES, **options)
        assert found == split(SPEAKERS, LABELS, CLASSES, **options, validation="random")


def test_split_keeps_classes_beside_validation_speakers():
    """Speaker a has the only utterances of sadness beside the test; speaker sizes differ by ten."""
    speakers = ["a"] * 30 + ["b"] * 3 + ["c"] * 30 + ["t"] * 3
    labels = [0, 1, 2] * 10 + [0, 1, 1] + [0, 1] * 15 + [0, 1, 2]
    for seed in range(20):
        found = split(speakers, labels, CLASSES, test_speakers=["t"], valid_fraction=0.1, seed=seed)
        assert {speakers[i] for i in found.valid} == {"b"}
        assert found == split(speakers, labels, CLASSES, test_speakers=["t"], valid_fraction=0.1, seed=seed)
    exclusive = {"a": 0, "b": 1, "c": 2, "t": 0}
    found = split(speakers, [exclusive[name] for name in speakers], CLASSES, test_speakers=["t"])
    assert found.protocol.startswith(
        "speakers t held out; best epoch chosen on a random 10% of the training utterances"
    )


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


@pytest.mark.parametrize("parts", [[], ["train"] * 20 + ["test"] * 40])
def test_split_without_test_trains_on_all(parts):
    found = split(SPEAKERS, LABELS, CLASSES, parts, test_fraction=0, validation="none")
    assert (found.train, found.valid, found.test) == (list(range(60)), [], [])
    assert found.protocol == "trained on all utterances, no test; weights of the last epoch"


def test_split_without_test_validates_by_speakers():
    found = split(SPEAKERS, LABELS, CLASSES, test_fraction=0)
    assert len({SPEAKERS[i] for i in found.valid}) == 1 and found.test == []
    assert not {SPEAKERS[i] for i in found.valid} & {SPEAKERS[i] for i in found.train}
    own = split(SPEAKERS, LABELS, CLASSES, ["valid"] * 15 + ["train"] * 45, test_fraction=0)
    assert own.valid == list(range(15)) and len(own.train) == 45


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
         "validation is speakers, but of the training's 1 none can be left out without a class; it must be random or none"),
    ],
)  # fmt: skip
def test_split_refuses_bad_options(changes, sentence):
    parts = {"speakers": SPEAKERS, "labels": LABELS, "classes": CLASSES}
    with pytest.raises(ValueError, match=sentence):
        split(**(parts | changes))
