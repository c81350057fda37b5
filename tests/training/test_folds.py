"""Folds: which runs a cross-validation makes."""

import pytest

from ser_fast.data.splits import split
from ser_fast.training.config import TrainConfig
from ser_fast.training.folds import Folds, plan

SPEAKERS = [f"s{i // 12}" for i in range(60)]
LABELS = [i % 3 for i in range(60)]
CLASSES = ["anger", "neutral", "sadness"]


def assert_disjoint_and_whole(found, count: int = 60) -> None:
    assert sorted(found.train + found.valid + found.test) == list(range(count))


@pytest.mark.parametrize("protocol", ["loso", "speakers", "random"])
def test_plan_tests_every_utterance_once_a_seed(protocol):
    count = 3 if protocol == "speakers" else 5
    runs, sentence = plan(TrainConfig(valid_fraction=0.2, seed=7), Folds(protocol, count, seeds=2), SPEAKERS)
    assert len(runs) == 2 * count and {run.seed for run in runs} == {7, 8}
    assert len({run.config.out for run in runs}) == len(runs)
    assert ("speakers shared" in sentence) == (protocol == "random")
    tested = {7: [], 8: []}
    for run in runs:
        found = split(SPEAKERS, LABELS, CLASSES, **run.config.held_out)
        assert_disjoint_and_whole(found)
        tested[run.seed] += found.test
        if protocol != "random":
            assert not {SPEAKERS[i] for i in found.test} & {SPEAKERS[i] for i in found.train + found.valid}
            assert run.name == ",".join(sorted({SPEAKERS[i] for i in found.test}))
    assert sorted(tested[7]) == sorted(tested[8]) == list(range(60))


@pytest.mark.parametrize(
    ("folds", "speakers", "sentence"),
    [
        (Folds("loso"), ["a"] * 9, "protocol is loso in 1 folds, but data has 1 speakers"),
        (Folds("speakers", 4), ["a", "b", "c"], "protocol is speakers in 4 folds, but data has 3 speakers"),
    ],
)
def test_plan_refuses_too_few_speakers(folds, speakers, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(TrainConfig(), folds, speakers)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"folds": 1}, "folds is 1; it must be at least 2"),
        ({"seeds": 0}, "seeds is 0; it must be at least 1"),
        ({"jobs": 0}, "jobs is 0; it must be at least 1"),
        ({"protocol": "losso"}, "protocol is 'losso'; it must be one of loso, speakers, random, logo, parts"),
    ],
)
def test_folds_refuse_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Folds(**options)


@pytest.mark.parametrize("protocol", ["loso", "speakers", "random", "parts"])
def test_plan_refuses_runs_without_test(protocol):
    sentence = "test_fraction is 0, but a cross-validation tests; it must be above 0, or omitted"
    with pytest.raises(ValueError, match=sentence):
        plan(TrainConfig(test_fraction=0), Folds(protocol, 2), SPEAKERS, own=0)


def test_plan_leaves_one_group_out():
    groups = [f"Ses0{i // 24 + 1}" for i in range(60)]
    runs, sentence = plan(TrainConfig(validation="none"), Folds("logo", seeds=2), SPEAKERS, groups)
    assert sentence == "leave one group out, 3 groups"
    assert [run.name for run in runs] == ["Ses01", "Ses02", "Ses03"] * 2
    tested = []
    for run in runs[:3]:
        found = split(SPEAKERS, LABELS, CLASSES, groups=groups, **run.config.held_out)
        assert {groups[i] for i in found.test} == {run.name}
        tested += found.test
    assert sorted(tested) == list(range(60))
    with pytest.raises(ValueError, match="protocol is logo, but data has no column 'group'; it must be another one"):
        plan(TrainConfig(), Folds("logo"), SPEAKERS)
    with pytest.raises(ValueError, match="protocol is logo in 1 folds, but data has 1 groups"):
        plan(TrainConfig(), Folds("logo"), SPEAKERS, ["Ses01"] * 60)


def test_plan_takes_the_divisions_of_the_corpus():
    runs, sentence = plan(TrainConfig(), Folds("parts", seeds=3), SPEAKERS, own=5)
    assert sentence == "the corpus's own 5 folds" and len(runs) == 15
    assert [(run.name, run.config.test_fold) for run in runs[:2]] == [("fold 1", "1"), ("fold 2", "2")]
    runs, sentence = plan(TrainConfig(), Folds("parts", seeds=3), SPEAKERS, own=0)
    assert (sentence, [run.name for run in runs]) == ("the corpus's own test part", ["the test part"] * 3)
    with pytest.raises(ValueError, match="protocol is parts, but data has no parts or folds of its own"):
        plan(TrainConfig(), Folds("parts"), SPEAKERS)


@pytest.mark.parametrize(
    "option", [{"test_groups": "a"}, {"test_speakers": "a"}, {"test_fold": "1"}, {"test_data": "x"}]
)
def test_plan_refuses_options_that_it_sets(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is given, which the protocol sets; omit it"):
        plan(TrainConfig(**option), Folds(), SPEAKERS)
