"""Backends: decide which kernel runs an op. This folder knows no op's mathematics and no model.

``build`` knows what was built and installed, ``gpus`` which GPUs can run it, ``measured`` what was fastest on them,
``tuned`` what was fastest on the user's own machine, ``state`` what is loaded and chosen now, ``dispatch`` which
backend runs a call, ``registry`` how an op is registered with torch, and ``info`` prints all of it. A backend is a
function with the op's signature.
"""

import sys
from types import ModuleType

from ser_fast.backends import state
from ser_fast.backends.build import build_info
from ser_fast.backends.dispatch import BACKENDS, OPS, RULES, load, select, spare, use

__all__ = ["BACKENDS", "OPS", "RULES", "build_info", "load", "select", "spare", "use"]


def __getattr__(name: str):
    """Read a field of the current state, such as ``backends.loaded`` or ``backends.on_cuda``."""
    if name in state.State.__dataclass_fields__:
        return getattr(state.current, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Module whose state fields can be read but not assigned: an assignment would hide the state."""

    def __setattr__(self, name: str, value) -> None:
        if name in state.State.__dataclass_fields__:
            raise AttributeError(f"{name} of {self.__name__} cannot be assigned; use ser_fast.backends.use()")
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *state.State.__dataclass_fields__})


sys.modules[__name__].__class__ = _Package
