"""What every model checks of its options before it builds anything."""


def require(good: bool, model: str, name: str, value, allowed: str) -> None:
    if not good:
        raise ValueError(f"{model}: {name} is {value!r}; it must be {allowed}")


def check(model: str, num_classes: int, f_max: float, **dropouts: float) -> None:
    require(num_classes >= 1, model, "num_classes", num_classes, "at least 1")
    require(f_max > 0, model, "f_max", f_max, "above 0 hertz")
    for name, value in dropouts.items():
        require(0 <= value < 1, model, name, value, "in 0..1, 1 excluded")


def check_heads(model: str, num_heads: int, width: int) -> None:
    good = num_heads >= 1 and width % num_heads == 0
    require(good, model, "num_heads", num_heads, f"a divisor of 2 * hidden_size = {width}")
