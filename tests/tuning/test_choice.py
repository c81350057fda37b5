"""The statistic of the choice, and orders from bounds."""

import math
import random

import pytest

from ser_fast.tuning import choice


@pytest.mark.parametrize(("rounds", "place"), [(7, 1), (10, 1), (11, 2), (14, 3), (25, 7)])
def test_upper_bound_is_the_order_statistic(rounds, place):
    """Taken from tables of the binomial distribution: P(X < place) <= 0.01 for n tosses, and not for place + 1."""
    ratios = [float(number) for number in range(rounds)]
    random.Random(0).shuffle(ratios)
    assert choice.upper_bound(ratios) == rounds - place


def test_upper_bound_needs_seven_rounds():
    assert choice.upper_bound([0.1] * 6) == math.inf and choice.upper_bound([0.1] * 7) == 0.1
    assert choice.upper_bound([0.1] * 5, 0.9) == 0.1


@pytest.mark.parametrize("rounds", [7, 12, 25])
def test_upper_bound_covers_the_median(rounds):
    """The bound of random ratios whose median is 1 is at least 1 in 99 % of draws; their distribution is skewed."""
    draw = random.Random(1)
    below = sum(choice.upper_bound([math.exp(draw.gauss(0, 1) ** 3) for _ in range(rounds)]) < 1 for _ in range(4000))
    assert below <= 0.01 * 4000 + 3 * math.sqrt(0.01 * 4000)


def test_bound_pairs_rounds_and_takes_the_worst_case():
    """A slow round of the whole machine cancels in the ratio."""
    slow = {"cuda": [0.5, 5.0, *[0.5] * 5], "torch": [1.0, 10.0, *[1.0] * 5]}
    assert choice.bound([slow], "cuda") == 0.5
    assert choice.bound([slow, {"cuda": [0.9] * 7, "torch": [1.0] * 7}], "cuda") == pytest.approx(0.9)
    assert choice.bound([slow, {"torch": [1.0] * 7}], "cuda") == math.inf == choice.bound([], "cuda")


def test_order_puts_torch_after_those_ahead():
    seconds = {"cuda": [1.0, 4.0], "triton": [1.5, 1.5]}
    assert choice.order(seconds, ["cuda", "triton"]) == ["triton", "cuda", "torch"]
    assert choice.order(seconds, ["cuda"]) == ["cuda", "torch", "triton"]
    assert choice.order({}, []) == ["torch"]
