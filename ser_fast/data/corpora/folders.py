"""A corpus with one folder per class."""

from os import PathLike

from ser_fast._require import require
from ser_fast.data.audio import find_audio
from ser_fast.data.corpora.trees import require_folder
from ser_fast.data.files import printable
from ser_fast.data.utterance import Corpus, Utterance


def folders(root: str | PathLike[str]) -> Corpus:
    """Return the audio files ``root/<label>/<speaker>/**/x.wav`` and ``root/<label>/x.wav``.

    The speaker of the second form is ``"unknown"``. The classes are sorted; hidden files and folders are skipped.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
        ValueError: an audio file is outside the class folders, or a class folder has none.
    """
    root = require_folder(root, "a folder of class folders")

    utterances = []
    for path in find_audio(root):
        inside = path.relative_to(root)
        wanted = root / "<label>" / path.name
        require(len(inside.parts) > 1, f"audio file {str(path)!r} is in no class folder", repr(str(wanted)))
        speaker = inside.parts[1] if len(inside.parts) > 2 else "unknown"
        utterances.append(Utterance(inside.as_posix(), speaker, inside.parts[0], path))

    classes = sorted({utterance.label for utterance in utterances})
    below = {printable(path.name) for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    # Otherwise a class whose files have an unknown suffix would be missing without notice.
    empty = sorted(below.difference(classes))
    found = f"root {str(root)!r} has class folders {empty} with no audio file"
    require(not empty, found, "a folder with one or more of them in each class")
    return Corpus(root.resolve().name, utterances, classes)
