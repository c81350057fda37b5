"""When the model that comes with ser_fast predicts, and the sentence that says so."""

import os
from collections.abc import Sequence
from pathlib import Path

from ser_fast import pretrained
from ser_fast.data.files import AUDIO_SUFFIXES
from ser_fast.prediction.listing import LISTS, STDIN
from ser_fast.training.checkpoint import SAVED, load_checkpoint

_OF_RUNS = ("config.json", "last.safetensors", "best.safetensors", SAVED, "*/best.safetensors")


def checkpoint_and_files(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the checkpoint among the names of a command, ``""`` if there is none, and the other names.

    The first name is a checkpoint unless

    - it is ``-``, or ends as the names of audio files and lists do;
    - it is a folder, but neither that of a run nor one of runs;
    - it is the only name, and neither a run folder nor a ``.safetensors``.

    Args:
        names: names as they were typed.

    Example:
        >>> checkpoint_and_files(["runs/emodb", "some.wav"])
        ('runs/emodb', ['some.wav'])
        >>> checkpoint_and_files(["some.wav", "list.txt"])
        ('', ['some.wav', 'list.txt'])
    """
    first, *others = names
    return (first, others) if _is_checkpoint(first, bool(others)) else ("", [first, *others])


def _is_checkpoint(name: str, followed: bool) -> bool:
    if name.lower().endswith(".safetensors"):
        return True
    if name == STDIN or name.lower().endswith((*AUDIO_SUFFIXES, *LISTS)):
        return False
    if os.path.isdir(name):
        # A run without a best epoch, and a folder of runs, are errors of their own.
        return any(next(Path(name).glob(file), None) for file in _OF_RUNS)
    return followed


def notice(checkpoint: str = "") -> str:
    """Return the sentence about a model that comes with ser_fast; ``""`` for any other checkpoint.

    Args:
        checkpoint: as in :class:`ser_fast.prediction.config.PredictConfig`.

    Raises:
        CheckpointError: the file of the model is missing or damaged.

    Example:
        >>> notice()
        'model emodb, which comes with ser_fast: recipe ... on the corpus emodb, acted German speech; ...'
        >>> notice("runs/emodb")
        ''
    """
    path = Path(checkpoint or pretrained.path())
    name = pretrained.name_of(path)
    if name is None:
        return ""
    about = load_checkpoint(path).progress
    return (
        f"model {name}, which comes with ser_fast: recipe {about.get('recipe')} on the corpus {about.get('data')}, "
        "acted German speech; for other speech train your own with `ser-fast train`; "
        f"its results and limits: {pretrained.card(name)}"
    )
