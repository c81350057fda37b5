"""Import of packages that come with the extra ``train``."""

import importlib
from types import ModuleType


def import_extra(name: str, purpose: str) -> ModuleType:
    """Import and return a package of the extra ``train``.

    Args:
        name: name of the package.
        purpose: what needs it, for the message.

    Raises:
        ImportError: the package is missing; the message contains the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without the libsndfile library
        raise ImportError(f"{purpose} needs {name}: pip install 'ser_fast[train]'") from error
