"""Checks of a model's constructor options."""


def require(good: bool, model: str, name: str, value, allowed: str) -> None:
    """Raise ``ValueError("MODEL: NAME is VALUE; it must be ALLOWED")`` unless ``good``.

    Example:
        >>> require(False, "CGRU", "dropout", 1.5, "in 0..1, 1 excluded")
        Traceback (most recent call last):
        ValueError: CGRU: dropout is 1.5; it must be in 0..1, 1 excluded
    """
    if not good:
        raise ValueError(f"{model}: {name} is {value!r}; it must be {allowed}")


def check(model: str, num_classes: int, f_max: float, **dropouts: float) -> None:
    """Check the options that every model has.

    Raises:
        ValueError: if ``num_classes`` < 1, ``f_max`` <= 0 hertz, or a dropout is outside 0 <= p < 1.
    """
    require(num_classes >= 1, model, "num_classes", num_classes, "at least 1")
    require(f_max > 0, model, "f_max", f_max, "above 0 hertz")
    for name, value in dropouts.items():
        require(0 <= value < 1, model, name, value, "in 0..1, 1 excluded")


def check_heads(model: str, num_heads: int, width: int) -> None:
    """Check that ``num_heads`` divides the attention's width, ``2 * hidden_size``.

    Raises:
        ValueError: if it does not, or is below 1.
    """
    good = num_heads >= 1 and width % num_heads == 0
    require(good, model, "num_heads", num_heads, f"a divisor of 2 * hidden_size = {width}")
