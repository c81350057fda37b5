"""Cases that fail in every way, by which test_attack.py sees that the driver reports them."""

import ctypes
import time
from pathlib import Path
from random import Random

KINDS = ("good", "wrong", "raises", "crashes", "hangs", "grows", "exits")


def case(random: Random, folder: Path) -> str:
    return random.choice(KINDS)


def check(case: str) -> None:
    assert case != "wrong", "a wrong result"
    if case == "raises":
        raise KeyError("an unexpected error")
    if case == "crashes":
        ctypes.string_at(0)
    if case == "hangs":
        time.sleep(1000)
    if case == "grows":
        bytearray(b"\1") * (700 << 20)
    if case == "exits":
        raise SystemExit(3)
