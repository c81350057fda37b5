"""The one form of argument errors."""


def require(good: bool, found: str, allowed: str, error: type[Exception] = ValueError) -> None:
    """Raise ``error("FOUND; it must be ALLOWED")`` unless ``good``.

    Args:
        good: the condition.
        found: argument and value, such as "CGRU: dropout is 1.5".
        allowed: constraint on the value.
        error: type of the error.

    Example:
        >>> require(False, "CGRU: dropout is 1.5", "in 0..1, 1 excluded")
        Traceback (most recent call last):
        ValueError: CGRU: dropout is 1.5; it must be in 0..1, 1 excluded
    """
    if not good:
        raise error(f"{found}; it must be {allowed}")
