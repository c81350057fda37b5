"""Measures and tests, against scikit-learn, SciPy, formulas written out, and cases counted by hand."""

import json
import math

import numpy as np
import pytest

from ser_fast.training.metrics import (
    AGREEMENT,
    anova,
    classification,
    concordance,
    interval,
    of_sums,
    paired,
    regression,
    regressions,
    value_sums,
)

stats = pytest.importorskip("scipy.stats")
sk = pytest.importorskip("sklearn.metrics")

CLASSES = ["anger", "fear", "neutral", "sadness"]


def drawn(seed: int, count: int, classes: int) -> tuple[list[int], list[int]]:
    generator = np.random.default_rng(seed)
    truth, other = generator.integers(classes, size=(2, count))
    return truth.tolist(), np.where(generator.random(count) < 0.6, truth, other).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_classification_equals_scikit_learn(seed):
    truth, predicted = drawn(seed, 97, 4)
    found = classification(truth, predicted, CLASSES)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, predicted))
    assert found["recall"] == pytest.approx(sk.balanced_accuracy_score(truth, predicted))
    assert found["precision"] == pytest.approx(sk.precision_score(truth, predicted, average="macro"))
    assert found["f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert found["confusion"] == sk.confusion_matrix(truth, predicted).tolist()
    report = sk.classification_report(truth, predicted, target_names=CLASSES, output_dict=True)
    for name in CLASSES:
        expected = {"f1" if key == "f1-score" else key: value for key, value in report[name].items()}
        assert found["per_class"][name] == pytest.approx(expected)


def test_classification_counted_by_hand():
    #                      anger: 2 of 3      fear: 1 of 1   sadness: 0 of 1
    found = classification([0, 0, 0, 1, 3], [0, 0, 1, 1, 1], CLASSES)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["recall"] == pytest.approx((2 / 3 + 1 + 0) / 3), "the mean over classes that occur"
    assert found["precision"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["f1"] == pytest.approx((0.8 + 0.5 + 0) / 3)
    assert found["confusion"] == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert found["per_class"]["neutral"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}


@pytest.mark.parametrize(("truth", "predicted"), [([2], [2]), ([2], [0]), ([1, 1, 1], [1, 0, 1]), ([0, 1], [3, 3])])
def test_classification_of_absent_classes(truth, predicted):
    found = classification(truth, predicted, CLASSES)
    recalls = [np.mean(np.array(predicted)[np.array(truth) == label] == label) for label in set(truth)]
    assert found["recall"] == pytest.approx(np.mean(recalls))
    assert np.array(found["confusion"]).shape == (4, 4) and np.sum(found["confusion"]) == len(truth)
    assert "NaN" not in json.dumps(found)


def wide(seed: int, count: int = 211) -> tuple[np.ndarray, np.ndarray]:
    """Values of MOSI's scale, some of them 0, and predictions that go beyond it."""
    generator = np.random.default_rng(seed)
    truth = (generator.integers(-15, 16, count) / 5).astype(np.float32)
    return truth, (truth + 1.2 * generator.standard_normal(count)).astype(np.float32)


def weighted_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Each side's 2 tp / (2 tp + fp + fn), weighted by how often the side occurs."""
    total = 0.0
    for side in (True, False):
        hits = np.sum((truth == side) & (predicted == side))
        misses = np.sum(truth != predicted)
        total += np.sum(truth == side) * 2 * hits / max(1, 2 * hits + misses)
    return total / len(truth)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("high", [0.0, 1.0, 3.0])
def test_regression_error_and_correlation(seed, high):
    truth, predicted = wide(seed)
    found = regression(truth.tolist(), predicted.tolist(), high)
    if high == 1:
        truth, predicted = truth.clip(-1, 1), predicted.clip(-1, 1)
    assert found["mae"] == pytest.approx(np.abs(truth.astype(float) - predicted).mean())
    assert found["corr"] == pytest.approx(stats.pearsonr(truth.astype(float), predicted.astype(float)).statistic)


@pytest.mark.parametrize("seed", range(3))
def test_regression_measures_of_mosi(seed):
    truth, predicted = wide(seed)
    found = regression(truth.tolist(), predicted.tolist(), 3.0)
    assert found["acc2"] == pytest.approx(np.mean((truth < 0) == (predicted < 0)))
    assert found["f1"] == pytest.approx(weighted_f1(truth < 0, predicted < 0))
    t, p = truth[truth != 0], predicted[truth != 0]
    assert len(t) < len(truth)
    assert found["acc2_non0"] == pytest.approx(np.mean((t > 0) == (p > 0)))
    assert found["f1_non0"] == pytest.approx(weighted_f1(t > 0, p > 0))
    for name, end in (("acc5", 2), ("acc7", 3)):
        classes = [[max(-end, min(end, round(v))) for v in values.tolist()] for values in (truth, predicted)]
        assert found[name] == pytest.approx(sk.accuracy_score(*classes))


@pytest.mark.parametrize("seed", range(3))
def test_regression_measures_of_ch_sims(seed):
    truth, predicted = (values / 2 for values in wide(seed))
    found = regression(truth.tolist(), predicted.tolist(), 1.0)
    assert found["acc2"] == pytest.approx(np.mean((truth > 0) == (predicted > 0)))
    assert found["f1"] == pytest.approx(weighted_f1(truth > 0, predicted > 0))
    for name, cuts in (("acc3", (-0.1, 0.1)), ("acc5", (-0.7, -0.1, 0.1, 0.7))):
        t, p = ([sum(v > np.float32(cut) for cut in cuts) for v in values] for values in (truth, predicted))
        assert found[name] == pytest.approx(sk.accuracy_score(t, p))


def test_regression_of_values_on_a_cut():
    # 0 is on the lower side in CH-SIMS and on the upper in MOSI; 0.7 and 0.1 are below their cuts, 0.5 rounds to 0.
    cut = regression([0.0, 0.7, 0.1, -0.1], [-0.01, 0.6, 0.0, -0.2], 1.0)
    assert (cut["acc2"], cut["acc3"], cut["acc5"]) == (3 / 4, 1.0, 1.0)
    rounded = regression([0.0, 0.5, 2.5, -3.0], [-0.01, -0.4, 2.0, -2.0], 3.0)
    assert (rounded["acc2"], rounded["acc2_non0"]) == (2 / 4, 2 / 3)
    assert regression([1.0, -1.0], [0.0, -1.0], 3.0)["f1"] == 1.0 == regression([1.0, 0.0], [0.1, 0.0], 1.0)["f1"]
    assert (rounded["acc5"], rounded["acc7"]) == (1.0, 3 / 4)


def test_regression_of_float32_values_on_a_cut():
    stored = float(np.float32(-0.7))  # above -0.7 in float64
    assert stored > -0.7
    assert regression([stored, 1.0], [-0.9, 1.0], 1.0)["acc5"] == 1.0


@pytest.mark.parametrize("high", [1.0, 3.0])
@pytest.mark.parametrize(
    ("truth", "predicted"),
    [([0.5], [0.5]), ([0.0], [0.0]), ([0.0, 0.0], [0.1, -0.2]), ([0.2, -0.4, 0.9], [0.1, 0.1, 0.1])],
)
def test_regression_of_constant_values_has_no_correlation(truth, predicted, high):
    found = regression(truth, predicted, high)
    assert found["corr"] == 0.0
    assert found["ccc"] == 0.0
    assert all(math.isfinite(value) for value in found.values())
    assert found["mae"] == pytest.approx(np.abs(np.subtract(truth, predicted)).mean())


@pytest.mark.parametrize(
    ("truth", "predicted"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [math.nan]), ([0.0], [math.inf])]
)
@pytest.mark.parametrize("high", [1.0, 3.0])
def test_regression_refuses_bad_values(truth, predicted, high):
    with pytest.raises(ValueError, match=r"must not contain|inconsistent numbers|0 sample"):
        regression(truth, predicted, high)


def lin(x: np.ndarray, y: np.ndarray) -> float:
    """Lin's coefficient as Pearson's correlation times the bias correction, 2 / (v + 1/v + u²)."""
    v, u = np.std(x) / np.std(y), (np.mean(x) - np.mean(y)) / np.sqrt(np.std(x) * np.std(y))
    return stats.pearsonr(x, y).statistic * 2 / (v + 1 / v + u * u)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("unit", "offset"), [(1, 0), (20, 50), (1e-3, -7)])
def test_concordance_equals_its_other_formula(seed, unit, offset):
    generator = np.random.default_rng(seed)
    truth = offset + unit * generator.standard_normal(83)
    predicted = offset + unit * (0.3 + 0.5 * generator.standard_normal(83)) + 0.4 * (truth - offset)
    assert concordance(truth, predicted) == pytest.approx(lin(truth, predicted))
    found = regression(truth.tolist(), predicted.tolist())
    assert found["ccc"] == concordance(truth, predicted) < found["corr"]
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert found["corr"] == pytest.approx(stats.pearsonr(truth, predicted).statistic)


def test_concordance_counted_by_hand():
    assert concordance([1, 2, 3], [1, 2, 3]) == 1.0
    # Variances 2/3, covariance 2/3, means apart by 1: 2 · 2/3 / (4/3 + 1).
    assert concordance([1, 2, 3], [2, 3, 4]) == pytest.approx(4 / 7)
    assert concordance([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert concordance([1, 2, 3], [2, 2, 2]) == concordance([2, 2], [1, 3]) == concordance([2, 2], [2, 2]) == 0.0


def test_regressions_are_those_of_each_target():
    generator = np.random.default_rng(4)
    truth = generator.normal([3, 60], [1, 15], (50, 2))
    predicted = truth + generator.normal(0, [0.5, 20], (50, 2))
    found = regressions(truth, predicted, ["arousal", "age"], [1.0, 10.0])
    for number, name in enumerate(("arousal", "age")):
        assert found["per_target"][name] == regression(truth[:, number], predicted[:, number])
    for key in AGREEMENT:
        assert found[key] == pytest.approx(np.mean([own[key] for own in found["per_target"].values()]))
    errors = np.abs(truth - predicted).mean(0)
    assert found["standardised_mae"] == pytest.approx((errors[0] + errors[1] / 10) / 2)
    assert "standardised_mae" not in regressions(truth, predicted, ["arousal", "age"])


def test_sums_give_the_measures():
    generator = np.random.default_rng(5)
    truth, predicted = generator.normal(3, 1, (2, 40, 2))
    predicted[:, 1] = 2.7  # constant
    found = of_sums(value_sums(truth[:15], predicted[:15]) + value_sums(truth[15:], predicted[15:]))
    for number in range(2):
        expected = regression(truth[:, number], predicted[:, number])
        assert {key: values[number] for key, values in found.items()} == pytest.approx(expected)


def test_anova_equals_its_formula_and_t_test():
    generator = np.random.default_rng(0)
    groups = [generator.normal(mean, 1, size).tolist() for mean, size in ((0, 5), (0.5, 8), (1, 13))]
    found, everything = anova(groups), np.concatenate(groups)
    between = sum(len(group) * (np.mean(group) - everything.mean()) ** 2 for group in groups) / 2
    within = sum(np.var(group) * len(group) for group in groups) / 23
    assert found["df"] == [2, 23] and found["f"] == pytest.approx(between / within)
    assert found["p"] == pytest.approx(stats.f.sf(between / within, 2, 23))
    two, t_test = anova(groups[:2]), stats.ttest_ind(*groups[:2])
    assert two["f"] == pytest.approx(t_test.statistic**2) and two["p"] == pytest.approx(t_test.pvalue)


def test_anova_without_spread_or_groups():
    assert anova([[1.0, 1.0], [2.0]]) == {"f": None, "df": [1, 1], "p": None}
    assert anova([[1.0, 2.0], [3.0]])["df"] == [1, 1]
    for groups in ([], [[1.0, 2.0]], [[1.0, 2.0], []], [[1.0], [2.0]]):
        with pytest.raises(ValueError, match=r"groups has sizes \[.*\]; it must be two groups or more"):
            anova(groups)


def test_interval_equals_scipy_and_a_table():
    values = np.random.default_rng(1).normal(0.8, 0.1, 11).tolist()
    found = interval(values)
    low, high = stats.t.interval(0.95, 10, loc=np.mean(values), scale=stats.sem(values))
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((np.mean(values), low, high))
    # t of 2 degrees of freedom is 4.3027, the deviation of 1, 2, 3 is 1.
    assert interval([0.5, 0.9], 0.0, 1.0) == {"mean": pytest.approx(0.7), "low": 0.0, "high": 1.0}
    assert interval([1, 2, 3])["high"] == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)


def test_interval_of_one_or_constant_values():
    assert interval([0.7]) == {"mean": 0.7, "low": None, "high": None}
    assert interval([0.5] * 4) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    with pytest.raises(ValueError, match="values is empty; it must have at least one"):
        interval([])


def test_paired_equals_scipy():
    generator = np.random.default_rng(2)
    a = generator.normal(0.8, 0.05, 10)
    b = a - generator.normal(0.02, 0.03, 10)
    found, expected = paired(a.tolist(), b.tolist()), stats.ttest_rel(a, b)
    span = expected.confidence_interval(0.95)
    assert found == pytest.approx({"mean": (a - b).mean(), "low": span.low, "high": span.high, "p": expected.pvalue})
    assert paired(b, a)["mean"] == -found["mean"]


def test_paired_without_spread():
    assert paired([0.5, 0.25], [0.5, 0.25]) == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": None}
    shifted = paired([0.4, 0.5, 0.7], [0.1, 0.2, 0.4])  # equal but for rounding
    assert shifted["p"] is None and shifted["mean"] == pytest.approx(0.3)
    assert paired([0.5], [0.25]) == {"mean": 0.25, "low": None, "high": None, "p": None}
    with pytest.raises(ValueError, match="b has 1 values; it must have as many as a, 2"):
        paired([0.1, 0.2], [0.3])
