"""Checks of a model's constructor options."""

from ser_fast._require import require


def check(model: str, num_classes: int, f_max: float, **dropouts: float) -> None:
    """Check the options that every model has.

    Raises:
        ValueError: if ``num_classes`` < 1, ``f_max`` <= 0 hertz, or a dropout is outside 0 <= p < 1.
    """
    require(num_classes >= 1, f"{model}: num_classes is {num_classes!r}", "at least 1")
    require(f_max > 0, f"{model}: f_max is {f_max!r}", "above 0 hertz")
    for name, value in dropouts.items():
        require(0 <= value < 1, f"{model}: {name} is {value!r}", "in 0..1, 1 excluded")


def check_heads(model: str, num_heads: int, width: int) -> None:
    """Check that ``num_heads`` divides the attention's width, ``2 * hidden_size``.

    Raises:
        ValueError: if it does not, or is below 1.
    """
    good = num_heads >= 1 and width % num_heads == 0
    require(good, f"{model}: num_heads is {num_heads!r}", f"a divisor of 2 * hidden_size = {width}")
