"""Which cases plain pytest runs."""

from collections.abc import Callable, Iterable

import pytest


def important(values: Iterable, which: int | Callable[[object], bool]) -> list:
    """Return the values as parameters of a test; those that are not important are marked ``thorough``.

    Args:
        values: the values of one argument.
        which: how many of the first ones are important, or a function that returns it for a value.
    """
    chosen = which if callable(which) else set(range(which)).__contains__
    return [
        value if chosen(value if callable(which) else place) else pytest.param(value, marks=pytest.mark.thorough)
        for place, value in enumerate(values)
    ]
