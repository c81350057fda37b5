"""Import of packages that come with an extra, such as ``train``."""

import importlib
from types import ModuleType


def import_extra(name: str, purpose: str, extra: str = "train") -> ModuleType:
    """Import and return a package of an extra.

    Args:
        name: name of the package, or of a module in it.
        purpose: what needs it, for the message.
        extra: the extra of ser_fast that brings it.

    Raises:
        ImportError: the package is missing; the message contains the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without the libsndfile library
        needed = name.partition(".")[0]
        raise ImportError(f"{purpose} needs {needed}: pip install 'ser_fast[{extra}]'") from error
