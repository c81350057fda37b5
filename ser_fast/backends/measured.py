"""The table of the fastest path on each kind of GPU: ``measured.json``, written by ``benchmarks/choices.py``.

For every compute capability it holds what was measured and, by op, precision and (for the GRU) hidden size, the
paths::

    {"9.0": {"gpu": "NVIDIA H100 80GB HBM3", "date": "2026-12-01", "torch": "2.13.0", "commit": "0123abc",
             "gru": {"tf32": {"128": ["cuda", "torch", "triton"], "512": ["torch", "cuda"]}},
             "attention_pool": {"float32": ["triton", "cuda", "torch"]}}}

The fastest comes first; "torch" is the path of ``nn.GRU``, or the reference of another op. A backend that is not
listed did not pass its tests there and is never chosen. No table ships while no GPU has been measured.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ser_fast._require import require

FILE = Path(__file__).with_name("measured.json")
BACKENDS = ("cuda", "triton")
ABOUT = ("gpu", "date", "torch", "commit")
HALF = ("float16", "bfloat16")
PRECISIONS = {  # tf32 is float32 where torch's switch for RNNs allows it
    "gru": ("float32", "tf32", *HALF),
    "attention_pool": ("float32", *HALF),
    "power_spectrogram": ("float32",),
}


def read(path: Path) -> dict:
    """Return the table of a file, {} if there is no file.

    Raises:
        ValueError: the file is not such a table; the message says where.
    """
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); remove it, or let benchmarks/choices.py write it") from error
    try:
        check(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return table


def check(table: dict) -> None:
    """Raise ValueError if this is not a table of choices."""
    for capability, entry in _items(table, "the table"):
        require(re.fullmatch(r"\d+\.\d", capability), f"a compute capability is {capability!r}", "one such as '9.0'")
        rest = dict(_items(entry, capability))
        for name in ABOUT:
            found = rest.pop(name, None)
            require(isinstance(found, str), f"{capability} {name} is {found!r}", "a text")
        check_choices(rest, capability)


def check_choices(choices: dict, where: str) -> None:
    """Raise ValueError if these are not choices by op, precision and hidden size; ``where`` names them."""
    for op, found in choices.items():
        require(op in PRECISIONS, f"an op of {where} is {op!r}", f"one of {', '.join(PRECISIONS)}")
        for precision, _ in _items(found, f"{where} {op}"):
            allowed = PRECISIONS[op]
            require(precision in allowed, f"a precision of {op} is {precision!r}", f"one of {', '.join(allowed)}")
    for op, precision, size, order in orders(choices):
        require(re.fullmatch(r"[1-9]\d*", size or "1"), f"a hidden size is {size!r}", "a positive integer")
        good = isinstance(order, list) and "torch" in order
        good = good and all(path in ("torch", *BACKENDS) and order.count(path) == 1 for path in order)
        name = " ".join(filter(None, (where, op, precision, size)))
        require(good, f"{name} is {order!r}", "'torch' and, once each, any of 'cuda' and 'triton'")


def _items(found, where: str):
    require(isinstance(found, dict), f"{where} is {found!r}", "an object")
    return found.items()


def orders(entry: dict) -> Iterator[tuple[str, str, str | None, list[str]]]:
    """Yield op, precision, hidden size (of the GRU, else None) and paths of everything that was measured."""
    for op in PRECISIONS:
        for precision, found in entry.get(op, {}).items():
            for size, order in _items(found, f"{op} {precision}") if op == "gru" else [(None, found)]:
                yield op, precision, size, order


def order(entry: dict, op: str, precision: str, hidden_size: int | None = None) -> list[str]:
    """Return the paths of an op, the fastest first; [] if nothing was measured.

    A hidden size takes the row of the next larger one that was measured, None the row of the smallest.
    """
    rows = {int(size or 0): order for name, kind, size, order in orders(entry) if (name, kind) == (op, precision)}
    return rows.get(min((size for size in rows if not size or size >= (hidden_size or 0)), default=None), [])


def proven(table: dict, backend: str) -> dict[str, list[str]]:
    """Return the ops that a backend passed its tests for, by compute capability."""
    found = {name: [op for op, *_, order in orders(entry) if backend in order] for name, entry in table.items()}
    return {name: list(dict.fromkeys(ops)) for name, ops in found.items() if ops}


def described(table: dict) -> dict[str, str]:
    """Return what was measured and what was fastest, as named lines of ``ser-fast info``."""
    lines = {}
    for capability, entry in table.items():
        lines[f"on {capability}"] = "{gpu}, {date}, torch {torch}, commit {commit}".format(**entry)
        for op, precision, size, order in orders(entry):
            name, path = f"{capability} {op} {precision}", f"{order[0]} for H={size}" if size else order[0]
            lines[name] = ", ".join(filter(None, (lines.get(name), path)))
    return lines or {"nothing": "CUDA tensors run on torch's operators unless kernels are chosen"}
