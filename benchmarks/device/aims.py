"""Performance aims of the kernels on an H100-class GPU, and whether the cases of a run reach them."""

from collections.abc import Callable
from typing import NamedTuple

CUDA, TRITON = "ours, cuda", "ours, triton"


class Aim(NamedTuple):
    """A bound on a value of some cases of a part.

    Args:
        name: name of the aim.
        part: part of the run.
        selects: returns whether a case belongs to the aim.
        value: the case's value, or None if it was not measured.
        bound: every selected case must reach it.
        unit: unit of the value.
        at_least: True for a lower bound, False for an upper bound.
    """

    name: str
    part: str
    selects: Callable[[dict], bool]
    value: Callable[[dict], float | None]
    bound: float
    unit: str
    at_least: bool = True


def times(peer: str, ours: str) -> Callable[[dict], float | None]:
    """Return a function of a case: the peer's time over ours."""

    def ratio(case: dict) -> float | None:
        seconds = case.get("seconds", {})
        return seconds[peer] / seconds[ours] if peer in seconds and ours in seconds else None

    return ratio


def entry(table: str, name: str) -> Callable[[dict], float | None]:
    """Return a function of a case: the entry ``name`` of its dict ``table``."""
    return lambda case: case.get(table, {}).get(name)


def recurrence(precision: str, hidden: int) -> Callable[[dict], bool]:
    """Select the case of the recurrence alone, on the CUDA kernels."""
    return lambda case: case["case"] == f"{precision} T=1000 B=64 D=2 H={hidden} reset_after=True, {CUDA}"


def layers(hidden: int, ragged: bool = False) -> Callable[[dict], bool]:
    """Select bidirectional GRU layers in training with B of 32 or 64 and T of 300 or 1000."""

    def selects(case: dict) -> bool:
        form = case.get("hidden_size") == hidden and case.get("directions") == 2 and case.get("mode") == "training"
        sizes = case.get("frames") in (300, 1000) and case.get("batch") in (32, 64)
        return form and sizes and case.get("ragged", False) == ragged

    return selects


def named(text: str) -> Callable[[dict], bool]:
    """Select the cases whose name contains ``text``."""
    return lambda case: text in case["case"]


AIMS = [
    *(Aim(f"recurrence forward, {precision}, H={hidden}, B=64 D=2", "recurrence", recurrence(precision, hidden),
          entry("us a step", "forward"), bound, "µs a step", at_least=False)
      for precision, hidden, bound in (("bfloat16", 128, 0.6), ("bfloat16", 256, 1.0), ("bfloat16", 512, 1.5),
                                       ("tf32", 128, 0.9), ("tf32", 256, 1.6))),
    *(Aim(f"GRU forward and backward, H={hidden}, CUDA, against {peer}", "gru", layers(hidden), times(peer, CUDA),
          bound, "×")
      for hidden, bound in ((256, 5.0), (128, 3.0), (512, 3.0)) for peer in ("nn.GRU", "nn.LSTM")),
    *(Aim(f"the same ragged, H={hidden}, CUDA, against packed nn.GRU", "gru", layers(hidden, True),
          times("nn.GRU, packed", CUDA), 10.0, "×") for hidden in (128, 256, 512)),
    Aim("GRU forward and backward, H=128, Triton, against nn.GRU", "gru", layers(128), times("nn.GRU", TRITON), 3.0,
        "×"),
    Aim("spectrogram, 64 x 10 s, CUDA", "spectrogram", named("64 x 10 s, normalised"), entry("ns a frame", CUDA), 2.3,
        "ns a frame", at_least=False),
    Aim("the same against torch.stft's chain", "spectrogram", named("64 x 10 s, normalised"),
        times("torch.stft chain", CUDA), 10.0, "×"),
    Aim("the same, Triton", "spectrogram", named("64 x 10 s, normalised"), times("torch.stft chain", TRITON), 8.0,
        "×"),
    *(Aim(f"pooling, {mode}, float32 B=64 T=1000 D=512, {kernels.removeprefix('ours, ')}", "pool",
          named(f"float32 B=64 T=1000 D=512, {mode}"), entry("% of the copy bandwidth", kernels), bound,
          "% of the copy bandwidth")
      for kernels, bound in ((CUDA, 80.0), (TRITON, 70.0)) for mode in ("inference", "training")),
    Aim("step time relative to the LSTM version, deviation from the sum of parts", "models", lambda case: True,
        lambda case: _off(case.get("predicted", {}).get(CUDA)), 10.0, "%", at_least=False),
]  # fmt: skip


def _off(predicted: list[float] | None) -> float | None:
    """Return the deviation of the measured from the predicted ratio, in percent."""
    return predicted and 100 * abs(predicted[1] / predicted[0] - 1)


def reached(aim: Aim, parts: dict[str, dict]) -> tuple[str, str]:
    """Return the worst value, with its case if there are several, and whether the aim is met."""
    cases = [case for case in parts.get(aim.part, {}).get("cases", []) if aim.selects(case)]
    values = {case["case"]: value for case in cases if (value := aim.value(case)) is not None}
    if not values:
        return "not measured", "not measured"
    worst = (min if aim.at_least else max)(values, key=values.__getitem__)
    met = sum(value >= aim.bound if aim.at_least else value <= aim.bound for value in values.values())
    found = f"{values[worst]:.3g} {aim.unit}"
    if len(values) > 1:
        found += f" at worst ({worst}), {met} of {len(values)} meet it"
    missing = len(cases) - len(values)
    if missing:
        found += f"; {missing} not measured"
    return found, "met" if met == len(cases) else "**missed**"
