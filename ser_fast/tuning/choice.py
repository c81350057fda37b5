"""Choose paths from timings: the statistic, the order of the paths, and their nesting as in ``measured.json``."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence

FASTER = 0.95  # ours is chosen only if its time over torch's is below this with CONFIDENCE
CONFIDENCE = 0.99


def upper_bound(ratios: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Return an upper bound of the median of these ratios, which holds with this confidence whatever they obey.

    It is an order statistic, as in the sign test: the k-th largest lies below the median if fewer than k of the n
    ratios lie above it, with probability Σ_{i<k} C(n, i) / 2ⁿ. The largest k is taken for which this is at most
    1 - confidence; infinity if there is none, with fewer than 7 ratios at 0.99.

    Example:
        >>> upper_bound([0.5, 0.6, 0.55, 0.52, 0.51, 0.7, 0.53]), upper_bound([0.5] * 6)
        (0.7, inf)
    """
    count, below, taken = len(ratios), 0.0, 0
    for chosen in range(count):
        below += math.comb(count, chosen) / 2**count
        if below > 1 - confidence:
            break
        taken = chosen + 1
    return sorted(ratios)[-taken] if taken else math.inf


def ratios(seconds: Mapping[str, Sequence[float]], path: str, peer: str = "torch") -> list[float]:
    """Return a path's seconds over its peer's in each round."""
    return [mine / other for mine, other in zip(seconds[path], seconds[peer], strict=True)]


def bound(cases: Iterable[Mapping[str, Sequence[float]]], path: str) -> float:
    """Return the largest upper bound of a path's time over torch's, over the cases; infinity if one lacks either."""
    return max(
        (upper_bound(ratios(case, path)) if path in case and "torch" in case else math.inf for case in cases),
        default=math.inf,
    )


def order(seconds: Mapping[str, Sequence[float]], ahead: Collection[str]) -> list[str]:
    """Return torch and the backends, the fastest first.

    Args:
        seconds: each backend's times in the same cases.
        ahead: backends that are placed before torch.
    """
    by_mean = sorted(seconds, key=lambda name: statistics.geometric_mean(seconds[name]))
    before = [name for name in by_mean if name in ahead]
    return [*before, "torch", *(name for name in by_mean if name not in ahead)]


def nested(chosen: dict, precision: str, size: int | None, order: list[str]) -> None:
    """Put an order into an op's choices, which for the GRU are also by hidden size."""
    if size:
        chosen.setdefault(precision, {})[str(size)] = order
    else:
        chosen[precision] = order
