"""Metrics by scikit-learn and statistical tests by SciPy, under the names of the field."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
)

DRAWS, SEED = 2000, 0  # of the bootstrap


def classification(truth: Sequence[int], predicted: Sequence[int], classes: Sequence[str]) -> dict:
    """Return accuracy, macro precision, recall and F1, the same per class, and the confusion matrix.

    Args:
        truth: class index of each utterance.
        predicted: predicted class index of each utterance.
        classes: names of the classes.

    Returns:
        ``accuracy``, the weighted accuracy; ``precision``, ``recall`` and ``f1``, means over the classes that occur
        (the mean recall is the unweighted accuracy, UA); ``per_class``, the same and ``support`` of each class;
        ``confusion``, a list of rows, one for each true class.
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


AGREEMENT = ("ccc", "mae", "corr")  # measures of values on any scale
RANGES = {
    **dict.fromkeys(("recall", "accuracy", "precision", "f1"), (0.0, 1.0)),
    "ccc": (-1.0, 1.0),
    "corr": (-1.0, 1.0),
    "mae": (0.0, math.inf),
}


def regression(truth: Sequence[float], predicted: Sequence[float], scale: float = 0.0) -> dict:
    """Return CCC, error and correlation, and on a sentiment scale the MMSA benchmark's shares (Mao et al., 2022).

    On the scale 1 (CH-SIMS, -1 to 1) values are first clipped to -1..1; ``acc2`` and ``f1`` separate values up to 0
    from those above; ``acc3`` and ``acc5`` cut at -0.1, 0.1 and at -0.7, -0.1, 0.1, 0.7, where a value on a cut
    belongs below it. On the scale 3 (MOSI, -3 to 3) ``acc2`` and ``f1`` separate values below 0 from the rest;
    ``acc2_non0`` and ``f1_non0`` leave out true values of 0 and separate values up to 0 from those above; ``acc5``
    and ``acc7`` compare values clipped to ±2 and ±3 and rounded, halves to even.

    Every F1 is the mean over both sides, weighted by their frequency. ``ccc`` is :func:`concordance`, ``mae`` the
    mean absolute error and ``corr`` Pearson's correlation, 0 if either list is constant. The metrics ``_non0`` are 0
    if all true values are 0.

    Args:
        truth: true value of each utterance.
        predicted: predicted value of each utterance.
        scale: 1 or 3; 0 for values that are no sentiment, which have ``ccc``, ``mae`` and ``corr`` only.

    Raises:
        ValueError: the lists are empty or differ in length, or a value is not finite.

    Example:
        >>> {name: round(value, 3) for name, value in regression([1, 3, 5], [2, 3, 5]).items()}
        {'ccc': 0.9, 'mae': 0.333, 'corr': 0.982}
    """
    truth, predicted = on_scale(truth, scale), on_scale(predicted, scale)
    error = float(mean_absolute_error(truth.astype(float), predicted.astype(float)))
    shares = {0: {}, 1: _narrow_shares, 3: _wide_shares}[scale]
    agreement = {"ccc": concordance(truth, predicted), "mae": error, "corr": _correlation(truth, predicted)}
    return (shares and shares(truth, predicted)) | agreement


def regressions(
    truth: np.ndarray, predicted: np.ndarray, targets: Sequence[str], std: Sequence[float] | None = None
) -> dict:
    """Return :func:`regression` of several targets: the means over them, and ``per_target`` by their names.

    Args:
        truth: true values ``[N, targets]``.
        predicted: predicted values ``[N, targets]``.
        targets: names of the targets.
        std: unit of each target, its standard deviation in the training part, which adds ``standardised_mae``, the
            mean of the errors in these units.

    Raises:
        ValueError: as in :func:`regression`.
    """
    columns = zip(targets, np.transpose(truth), np.transpose(predicted))
    found = {name: regression(*column) for name, *column in columns}
    means = {key: float(np.mean([own[key] for own in found.values()])) for key in AGREEMENT}
    if std is not None:
        means["standardised_mae"] = float(np.mean([own["mae"] / unit for own, unit in zip(found.values(), std)]))
    return means | {"per_target": found}


def on_scale(values: Sequence, scale: float) -> np.ndarray:
    """Return finite values as :func:`regression` measures them: clipped to -1..1 on the scale 1.

    Raises:
        ValueError: a value is not finite.
    """
    # Sentiment is float32 as in the models, as are the cuts: else a value of -0.7 would differ from the cut at -0.7.
    found = np.asarray_chkfinite(values, np.float32 if scale else float)
    return found.clip(-1, 1) if scale == 1 else found


def concordance(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Return the concordance correlation coefficient of x and y, 2 s_xy / (s_x² + s_y² + (mean x − mean y)²).

    I. Lin, "A concordance correlation coefficient to evaluate reproducibility", Biometrics 45(1), 1989. Variances and
    covariance are those of the population, divided by n. The coefficient is at most Pearson's correlation, which
    ignores offset and scale of the predictions. It is 1 if and only if every prediction equals its true value.

    Args:
        truth: true value of each utterance.
        predicted: predicted value of each utterance.

    Returns:
        In -1..1; 0 if either list is constant.

    Example:
        >>> concordance([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), round(concordance([1.0, 2.0, 3.0], [2.0, 3.0, 4.0]), 3)
        (1.0, 0.571)
    """
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    if not (np.ptp(x) and np.ptp(y)):
        return 0.0
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def value_sums(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the sums ``[7, targets]`` over utterances of 1, x, y, x², y², x y and |x − y|.

    Sums of several speakers add up to those of all their utterances.

    Args:
        truth: true values x ``[N, targets]``, best with a mean near 0, for precision.
        predicted: predicted values y ``[N, targets]``.
    """
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y, np.abs(x - y)]).sum(1)


def of_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Return the measures ``AGREEMENT``, each ``[..., targets]``, of :func:`value_sums` ``[..., 7, targets]``."""
    n, *rest = np.moveaxis(sums, -2, 0)
    x, y, xx, yy, xy, error = (total / n for total in rest)
    variances = [squares - mean * mean for squares, mean in ((xx, x), (yy, y))]
    # A difference of rounding errors alone is the variance of a constant list.
    spread = np.logical_and(*(v > 1e-12 * squares for v, squares in zip(variances, (xx, yy))))
    covariance = np.where(spread, xy - x * y, 0.0)
    by_product = np.where(spread, np.sqrt(np.abs(variances[0] * variances[1])), 1.0)
    by_sum = np.where(spread, variances[0] + variances[1] + (x - y) ** 2, 1.0)
    return {"ccc": 2 * covariance / by_sum, "mae": error, "corr": covariance / by_product}


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
    """Return the one-way analysis of variance of two or more groups of values.

    Returns:
        ``f``, its degrees of freedom ``df`` between and within the groups, and ``p``; ``f`` and ``p`` are None if the
        values of every group are equal.

    Raises:
        ValueError: there are fewer than two groups, a group is empty, or none has two values.
    """
    sizes = [len(group) for group in groups]
    if len(sizes) < 2 or min(sizes) < 1 or max(sizes) < 2:
        raise ValueError(f"groups has sizes {sizes}; it must be two groups or more, none empty, one of two values")
    df = [len(sizes) - 1, sum(sizes) - len(sizes)]
    if not any(np.ptp(group) for group in groups):
        return {"f": None, "df": df, "p": None}
    found = stats.f_oneway(*groups)
    return {"f": float(found.statistic), "df": df, "p": float(found.pvalue)}


def interval(values: Sequence[float], least: float = -math.inf, most: float = math.inf) -> dict:
    """Return the mean of n values and its 95 % interval, mean ± t s / √n with n − 1 degrees of freedom.

    Args:
        values: the values.
        least: least possible value; the interval is cut there, which leaves its coverage as it is.
        most: largest possible value, likewise.

    Returns:
        ``mean``, ``low`` and ``high``; the ends are None for a single value.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("values is empty; it must have at least one")
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean, "low": None, "high": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": max(mean - half, least), "high": min(mean + half, most)}


def bootstrap(measure: Callable[[np.ndarray], np.ndarray], groups: int) -> dict:
    """Return the 95 % percentile interval of a measure over draws of whole groups with replacement.

    Args:
        measure: takes how often each draw has each group, ``[DRAWS, groups]``, and returns the measure of each draw.
        groups: number of groups, such as speakers.

    Returns:
        ``low`` and ``high``; both are None for a single group.
    """
    if groups < 2:
        return {"low": None, "high": None}
    counts = np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
    low, high = np.percentile(measure(counts), [2.5, 97.5])
    return {"low": float(low), "high": float(high)}


def paired(a: Sequence[float], b: Sequence[float]) -> dict:
    """Return the :func:`interval` of the differences a − b and ``p`` of the paired t test that their mean is 0.

    ``p`` is None if the differences are equal up to rounding.

    Raises:
        ValueError: there is no value, or the lists differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"b has {len(b)} values; it must have as many as a, {len(a)}")
    found = interval(np.subtract(a, b))
    spread = float(np.ptp(np.subtract(a, b)))
    p = float(stats.ttest_rel(a, b).pvalue) if spread > 1e-12 * np.abs([a, b]).max() else None
    return found | {"p": p}
