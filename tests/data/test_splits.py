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
    assert (
        found.protocol == "the corpus's own test part, no speakers shared; best epoch chosen on its validation part"
    )
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


def test_split_without_test_takes_no_fold_of_the_corpus():
    for folds in ([("train",)] * 40 + [("test",)] * 20, [("train", "test")] * 30 + [("test", "train")] * 30):
        found = split(SPEAKERS, LABELS, CLASSES, folds=folds, test_fraction=0, validation="none")
        assert (found.train, found.test) == (list(range(60)), [])
        assert split(SPEAKERS, LABELS, CLASSES, folds=folds, test_fraction=0, test_fold="1").test
    groups = [f"g{i % 4}" for i in range(60)]
    found = split(SPEAKERS, LABELS, CLASSES, groups=groups, test_fraction=0, validation="groups", valid_fraction=0.25)
    assert len({groups[i] for i in found.valid}) == 1 and len(found.train) == 45


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


GROUPS = [f"g{i // 24}" for i in range(60)]  # g0: s0 and s1, g1: s2 and s3, g2: s4


def test_split_holds_out_whole_groups():
    """The speakers of a held-out group are in no other part, so the default validation is by speakers."""
    found = split(SPEAKERS, LABELS, CLASSES, groups=GROUPS, test_groups=["g1"], valid_fraction=0.4)
    assert_disjoint_and_whole(found)
    assert {SPEAKERS[i] for i in found.test} == {"s2", "s3"}
    assert {SPEAKERS[i] for i in found.train}.isdisjoint(SPEAKERS[i] for i in found.valid)
    assert (
        found.protocol == "groups g1 held out, no speakers shared; best epoch chosen on 40% of the training speakers"
    )
    by_groups = split(SPEAKERS, LABELS, CLASSES, groups=GROUPS, test_groups=["g1"], validation="groups")
    assert {GROUPS[i] for i in by_groups.valid} in ({"g0"}, {"g2"})
    assert {GROUPS[i] for i in by_groups.train}.isdisjoint(GROUPS[i] for i in by_groups.valid)
    assert by_groups.protocol.endswith("best epoch chosen on 10% of the training groups")


def test_split_validates_randomly_where_groups_share_speakers():
    shared = ["a", "b"] * 30
    found = split(shared, LABELS, CLASSES, groups=GROUPS, test_groups=["g1"])
    assert found.chosen == "best epoch chosen on a random 10% of the training utterances"


OWN = [("train", "test") if i < 24 else ("test", "train") if i < 48 else ("valid", "") for i in range(60)]


def test_split_takes_a_fold_of_the_corpus():
    first, second = (split(SPEAKERS, LABELS, CLASSES, folds=OWN, test_fold=fold) for fold in "12")
    assert (first.train, first.valid, first.test) == (list(range(24)), list(range(48, 60)), list(range(24, 48)))
    assert (
        first.protocol == "fold 1 of the corpus's own 2, no speakers shared; best epoch chosen on its validation part"
    )
    # The second fold has no validation part, and lacks 12 utterances.
    assert second.test == list(range(24)) and sorted(second.train + second.valid) == list(range(24, 48))
    assert second.chosen == "best epoch chosen on 10% of the training speakers"
    last = split(SPEAKERS, LABELS, CLASSES, folds=OWN, test_fold="1", validation="none")
    assert last.train == [*range(24), *range(48, 60)] and not last.valid
    only = split(SPEAKERS, LABELS, CLASSES, folds=[one[:1] for one in OWN])
    assert (only.train, only.test) == (first.train, first.test)
    assert split(SPEAKERS, LABELS, CLASSES, folds=OWN, test_speakers=["s0"]).test == list(range(12))


def test_split_says_that_speakers_are_unknown():
    found = split(["unknown"] * 60, LABELS, CLASSES, folds=OWN, test_fold="2")
    assert found.protocol.startswith("fold 2 of the corpus's own 2, speakers unknown; ")
    parts = ["train"] * 40 + ["test"] * 20
    apart = split(["a"] * 40 + ["b"] * 20, LABELS, CLASSES, parts).protocol
    some = split(["a"] * 45 + ["b"] * 15, LABELS, CLASSES, parts).protocol
    assert apart.startswith("the corpus's own test part, no speakers shared; ")
    assert some.startswith("the corpus's own test part, speakers shared (1 of 2); ")


def test_split_says_that_a_fold_shares_speakers():
    found = split(["a"] * 60, LABELS, CLASSES, folds=OWN, test_fold="2")
    assert found.protocol.startswith(
        "fold 2 of the corpus's own 2, speakers shared (1 of 1); best epoch chosen on a random 10%"
    )


ONLY_A = (["a"] * 6 + ["b"] * 4 + ["c"] * 4, [0, 1, 2, 2, 2, 2] + [0, 0, 1, 1] * 2)


def test_split_trains_without_a_class_if_allowed():
    speakers, labels = ONLY_A
    options = {"test_speakers": ["a"], "validation": "none"}
    found = split(speakers, labels, CLASSES, **options, allow_missing_classes=True)
    assert found.missing == {"sadness": ["a"]} and found.test == list(range(6))
    assert found.protocol == (
        "speakers a held out; weights of the last epoch; no training utterance of sadness (speaker a has all "
        "utterances of sadness)"
    )
    whole = split(speakers, labels, CLASSES, test_speakers=["b"], validation="none")
    assert whole.missing == {} and whole == split(
        speakers, labels, CLASSES, test_speakers=["b"], validation="none", allow_missing_classes=True
    )
    with pytest.raises(ValueError, match="but speakers a, d have all utterances of sadness"):
        split(["d", *speakers[1:]], [2, *labels[1:]], CLASSES, test_speakers=["a", "d"], validation="none")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test_groups": ["x"]}, r"test_groups names \['x'\]; they must be among \['g0', 'g1', 'g2'\]"),
        ({"test_groups": ["g0"], "groups": ()}, "test_groups is g0, but data has no column 'group'; omit it"),
        ({"test_groups": ["g0", "g1", "g2"]}, "test_groups is g0,g1,g2; it must be fewer than all groups"),
        ({"validation": "groups", "groups": ()}, "validation is groups, but data has no column 'group'"),
        ({"validation": "groups", "test_groups": ["g0", "g1"]},
         "validation is groups, but of the training's 1 none can be left out without a class"),
        ({"test_fold": "1"}, "test_fold is 1, but data has no folds of its own; it must be like 3/10"),
        ({"test_fold": "3", "folds": OWN}, "test_fold is 3; it must be in 1..2, the corpus's own folds, or like 3/10"),
        ({"folds": OWN}, "data has 2 folds of its own; test_fold must name one, 1 to 2, or be like 3/10"),
        ({"speakers": ONLY_A[0], "labels": ONLY_A[1], "test_speakers": ["a"], "validation": "none"},
         r"no training utterance of \['sadness'\]; it must leave some of every class, but speaker a has all utterances "
         "of sadness; allow_missing_classes=true trains without"),
        ({"speakers": ["a", "a", "b", "b"], "labels": [0, 1, 0, 0], "test_speakers": ["a"], "validation": "none",
          "allow_missing_classes": True},
         r"data leaves no training utterance of \['neutral'\]; it must leave some of two classes or more"),
    ],
)  # fmt: skip
def test_split_refuses_bad_groups_and_folds(changes, sentence):
    parts = {"speakers": SPEAKERS, "labels": LABELS, "classes": CLASSES, "groups": GROUPS}
    with pytest.raises(ValueError, match=sentence):
        split(**(parts | changes))
