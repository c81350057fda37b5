"""Imports of packages that only the extras bring."""

import importlib
from types import ModuleType


def import_extra(name: str, purpose: str) -> ModuleType:
    """A package of the extra ``train``.

    Raises:
        ImportError: it is missing; the message says what needs it, and what to type.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without the libsndfile library
        raise ImportError(f"{purpose} needs {name}: pip install 'ser_fast[train]'") from error
