"""Measures by scikit-learn and tests by SciPy, under the field's names."""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
)


def classification(truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> dict:
    """Accuracy, macro precision, recall and F1, the same per class, and the confusion matrix.

    ``recall`` is the mean recall of the classes that occur, the field's unweighted accuracy (UA); ``accuracy`` is
    the weighted one. Rows of ``confusion`` are the truth.
    """
    labels = list(range(len(classes)))
    present = sorted(set(truth))
    precision, recall, f1, support = precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    macro = precision_recall_fscore_support(truth, predicted, labels=present, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "precision": float(macro[0]),
        "recall": float(macro[1]),
        "f1": float(macro[2]),
        "per_class": {
            name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in zip(classes, precision, recall, f1, support)
        },
        "confusion": confusion_matrix(truth, predicted, labels=labels).tolist(),
    }


def regression(truth: Sequence[float], predicted: Sequence[float], low: float, high: float) -> dict:
    """Sentiment measures for the scale low..high, as the MMSA benchmark defines them (Mao et al., "M-SENA", 2022).

    A scale within -1..1 is measured as CH-SIMS's: values are first clipped to low..high; ``acc2`` and ``f1`` part
    those up to 0 from those above; ``acc3`` and ``acc5`` cut at -0.1, 0.1 and at -0.7, -0.1, 0.1, 0.7, a value on a
    cut belonging below it. Any wider scale is measured as MOSI's: ``acc2`` and ``f1`` part those below 0 from the
    rest; ``acc2_non0`` and ``f1_non0`` leave out truths of 0 and part those up to 0 from those above; ``acc5`` and
    ``acc7`` compare values clipped to ±2 and ±3 and rounded, halves to even.

    Every F1 is the mean over both sides weighted by their occurrence. ``mae`` is the mean absolute error and
    ``corr`` Pearson's correlation, 0 where one side is constant. The measures without zeros are 0 where there is
    nothing else.

    Raises:
        ValueError: lists that are empty or of unequal length, and values that are not finite.
    """
    # The cuts too are in the models' float32, or a value of -0.7 would lie beside the cut at -0.7.
    truth, predicted = (np.asarray_chkfinite(values, np.float32) for values in (truth, predicted))
    narrow = max(-low, high) <= 1
    if narrow:
        truth, predicted = truth.clip(low, high), predicted.clip(low, high)
    error = float(mean_absolute_error(truth.astype(float), predicted.astype(float)))
    shares = _narrow_shares(truth, predicted) if narrow else _wide_shares(truth, predicted)
    return shares | {"mae": error, "corr": _correlation(truth, predicted)}


def _narrow_shares(truth: np.ndarray, predicted: np.ndarray) -> dict:
    def accuracy(*cuts: float) -> float:
        return _accuracy(*(np.digitize(values, np.float32(cuts), right=True) for values in (truth, predicted)))

    return {
        "acc2": accuracy(0),
        "f1": _f1(truth > 0, predicted > 0),
        "acc3": accuracy(-0.1, 0.1),
        "acc5": accuracy(-0.7, -0.1, 0.1, 0.7),
    }


def _wide_shares(truth: np.ndarray, predicted: np.ndarray) -> dict:
    def accuracy(end: int) -> float:
        return _accuracy(*(values.clip(-end, end).round().astype(int) for values in (truth, predicted)))

    sided = truth != 0
    return {
        "acc2": _accuracy(truth >= 0, predicted >= 0),
        "f1": _f1(truth >= 0, predicted >= 0),
        "acc2_non0": _accuracy(truth[sided] > 0, predicted[sided] > 0) if sided.any() else 0.0,
        "f1_non0": _f1(truth[sided] > 0, predicted[sided] > 0) if sided.any() else 0.0,
        "acc5": accuracy(2),
        "acc7": accuracy(3),
    }


def _accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(accuracy_score(truth, predicted))


def _f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    return float(f1_score(truth, predicted, average="weighted", zero_division=0))


def _correlation(truth: np.ndarray, predicted: np.ndarray) -> float:
    if not (np.ptp(truth) and np.ptp(predicted)):
        return 0.0
    return float(np.corrcoef(truth.astype(float), predicted.astype(float))[0, 1])


def anova(groups: Sequence[Sequence[float]]) -> dict:
    """One-way analysis of variance: ``f``, its degrees of freedom ``df`` between and within the groups, and ``p``.

    ``f`` and ``p`` are None where no group has any spread.

    Raises:
        ValueError: fewer than two groups, an empty one, or none with two values.
    """
    sizes = [len(group) for group in groups]
    if len(sizes) < 2 or min(sizes) < 1 or max(sizes) < 2:
        raise ValueError(f"groups has sizes {sizes}; it must be two groups or more, none empty, one of two values")
    df = [len(sizes) - 1, sum(sizes) - len(sizes)]
    if not any(np.ptp(group) for group in groups):
        return {"f": None, "df": df, "p": None}
    found = stats.f_oneway(*groups)
    return {"f": float(found.statistic), "df": df, "p": float(found.pvalue)}


def interval(values: Sequence[float]) -> dict:
    """``mean`` and the ends ``low`` and ``high`` of its 95 % interval, mean ± t s / √n with n − 1 degrees of freedom.

    Of a single value the ends are None.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("values is empty; it must have at least one")
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def paired(a: Sequence[float], b: Sequence[float]) -> dict:
    """:func:`interval` of the differences a − b, and ``p`` of the paired t test that their mean is 0.

    ``p`` is None where the differences have no spread but rounding's.

    Raises:
        ValueError: no value, or not as many in b as in a.
    """
    if len(a) != len(b):
        raise ValueError(f"b has {len(b)} values; it must have as many as a, {len(a)}")
    found = interval(np.subtract(a, b))
    spread = float(np.ptp(np.subtract(a, b)))
    p = float(stats.ttest_rel(a, b).pvalue) if spread > 1e-12 * np.abs([a, b]).max() else None
    return found | {"p": p}
