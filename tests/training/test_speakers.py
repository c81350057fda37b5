"""Metrics of each speaker, and intervals over the speakers."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from ser_fast.training import metrics
from ser_fast.training.speakers import by_speaker
from ser_fast.training.task import task_of

CLASSES = ["anger", "calm", "sad"]


def corpus(generator: np.random.Generator) -> tuple[list[str], list[int], list[int]]:
    """Five speakers of different size and skill; the last one has a single class."""
    speakers, truth, predicted = [], [], []
    for number, size in enumerate((4, 9, 15, 30, 6)):
        own = [0] * size if number == 4 else generator.integers(0, 3, size).tolist()
        wrong = generator.random(size) < 0.15 * number
        truth += own
        predicted += [(label + bool(fault)) % 3 for label, fault in zip(own, wrong)]
        speakers += [f"s{number}"] * size
    return speakers, truth, predicted


def test_bootstrap_draws_whole_speakers():
    """Against a loop that repeats the utterances of each drawn speaker and measures them by scikit-learn."""
    speakers, truth, predicted = corpus(np.random.default_rng(3))
    found = by_speaker(task_of(CLASSES, "auto"), speakers, truth, predicted)["intervals"]
    names = np.array(speakers)
    uas, was = [], []
    for counts in np.random.default_rng(metrics.SEED).multinomial(5, [0.2] * 5, size=metrics.DRAWS):
        index = np.concatenate([np.flatnonzero(names == f"s{i}") for i in range(5) for _ in range(counts[i])])
        drawn, guess = np.array(truth)[index], np.array(predicted)[index]
        uas.append(np.mean([np.mean(guess[drawn == label] == label) for label in set(drawn)]))
        was.append(np.mean(drawn == guess))
    for measure, values in (("recall", uas), ("accuracy", was)):
        low, high = np.percentile(values, [2.5, 97.5])
        pooled = found[measure]["pooled"]
        assert (pooled["low"], pooled["high"]) == (pytest.approx(low), pytest.approx(high))
        assert low < pooled["value"] < high


def test_by_speaker_means_over_the_speakers():
    speakers, truth, predicted = corpus(np.random.default_rng(4))
    found = by_speaker(task_of(CLASSES, "auto"), speakers, truth, predicted)
    assert {name: own["utterances"] for name, own in found["per_speaker"].items()} == {
        name: speakers.count(name) for name in sorted(set(speakers))
    }
    uas = []
    for name, own in found["per_speaker"].items():
        pairs = [(t, p) for t, p, s in zip(truth, predicted, speakers) if s == name]
        kept = [(t, p) for t, p in pairs]
        uas.append(np.mean([np.mean([p == t for t, p in kept if t == label]) for label in {t for t, _ in kept}]))
        assert own["recall"] == pytest.approx(uas[-1])
    assert found["intervals"]["recall"]["speakers"] == pytest.approx(metrics.interval(uas, 0.0, 1.0))
    assert found["metrics"]["recall"] == pytest.approx(balanced_accuracy_score(truth, predicted))


def test_by_speaker_gives_a_single_speaker_no_interval():
    found = by_speaker(task_of(CLASSES, "auto"), ["s"] * 4, [0, 0, 1, 2], [0, 1, 1, 2])
    assert found["intervals"]["recall"] == {
        "speakers": {"mean": pytest.approx(5 / 6), "low": None, "high": None},
        "pooled": {"value": pytest.approx(5 / 6), "low": None, "high": None},
    }


def test_by_speaker_measures_values():
    generator = np.random.default_rng(5)
    truth = generator.normal(size=60)
    predicted = truth + np.repeat([0.1, 0.2, 0.9], 20) * generator.normal(size=60)
    found = by_speaker(task_of([], "auto"), ["a"] * 20 + ["b"] * 20 + ["c"] * 20, truth.tolist(), predicted.tolist())
    errors = [mean_absolute_error(truth[i : i + 20], predicted[i : i + 20]) for i in (0, 20, 40)]
    assert [own["mae"] for own in found["per_speaker"].values()] == pytest.approx(errors, abs=1e-6)
    pooled = found["intervals"]["mae"]["pooled"]
    assert pooled["value"] == pytest.approx(np.mean(errors), abs=1e-6)
    # The extreme draws take one speaker three times: each has the chance 1/27, more than 2.5 %.
    assert (pooled["low"], pooled["high"]) == (pytest.approx(min(errors)), pytest.approx(max(errors)))


def test_by_speaker_draws_agreement_of_several_targets():
    """Against a loop that repeats the utterances of each drawn speaker and measures them."""
    generator = np.random.default_rng(6)
    names = np.repeat(["a", "b", "c", "d"], [12, 20, 9, 15])
    truth = generator.normal([3, 50], [1, 20], (56, 2))
    noise = np.select([names == "a", names == "b"], [0.2, 1.5], 0.7)[:, None]
    predicted = truth + noise * generator.normal(0.3, [1, 20], (56, 2))
    task = task_of([], "auto", targets=["arousal", "age"])
    found = by_speaker(task, names.tolist(), truth.tolist(), predicted.tolist())
    draws = []
    for counts in np.random.default_rng(metrics.SEED).multinomial(4, [0.25] * 4, size=metrics.DRAWS):
        index = np.concatenate([np.flatnonzero(names == "abcd"[i]) for i in range(4) for _ in range(counts[i])])
        draws.append([metrics.concordance(truth[index, column], predicted[index, column]) for column in (0, 1)])
    draws = np.array(draws)
    for part, values in (
        (found, draws.mean(1)), (found["per_target"]["arousal"], draws[:, 0]), (found["per_target"]["age"], draws[:, 1])
    ):  # fmt: skip
        pooled = part["intervals"]["ccc"]["pooled"]
        assert (pooled["low"], pooled["high"]) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
        assert pooled["low"] < pooled["value"] < pooled["high"]
    own = [metrics.concordance(truth[names == name, 1], predicted[names == name, 1]) for name in "abcd"]
    assert [each["ccc"] for each in found["per_target"]["age"]["per_speaker"].values()] == pytest.approx(own)
    assert found["per_target"]["age"]["intervals"]["ccc"]["speakers"] == pytest.approx(
        metrics.interval(own, -1.0, 1.0)
    )
    assert found["metrics"]["per_target"]["age"] == metrics.regression(truth[:, 1], predicted[:, 1])
    assert found["per_speaker"]["b"].keys() == {"utterances", "ccc", "mae", "corr"}


def test_by_speaker_clips_sentiment_before_it_draws():
    truth, predicted = [-0.5, 0.2, 0.9, 0.1], [-1.5, 0.4, 1.7, -0.2]
    found = by_speaker(task_of([], "auto", sentiment_scale=1.0), list("aabb"), truth, predicted)
    own = [metrics.regression(truth[i : i + 2], predicted[i : i + 2], 1.0)["mae"] for i in (0, 2)]
    pooled = found["intervals"]["mae"]["pooled"]
    assert (pooled["low"], pooled["high"]) == pytest.approx((min(own), max(own)))
