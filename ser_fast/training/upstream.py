"""Features in a spectrogram's place: the sources that training and prediction take them from.

A source of features has

- ``about``: kind, name and width, and for an encoder its digest and layer, as a checkpoint keeps them;
- ``options``: the options that it sets of a model;
- ``check(utterances)``, which refuses a corpus that it lacks features of, before any audio is read;
- ``reader(utterances)``, which returns a function from an utterance to its features, and ``frames(utterances,
  lengths)``, the number of frames of all, exact or estimated from the samples of each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ser_fast._require import require
from ser_fast.data import frame_files, frames
from ser_fast.data.corpora import Corpus
from ser_fast.data.dataset import Dataset, read_dataset
from ser_fast.data.files import printable
from ser_fast.data.sources import state
from ser_fast.data.storage import Storage
from ser_fast.data.utterance import Utterance
from ser_fast.models import MODELS
from ser_fast.nn.frame_input import FrameInput
from ser_fast.training.checkpoint import Checkpoint
from ser_fast.training.encoder import Encoder

_TAKING = [name for name, model in MODELS.items() if "features" in inspect.signature(model.__init__).parameters]
_OFF = 1.25  # ratio of frame rates that is reported


class Stored:
    """Features in a file, found by the names of the utterances.

    Args:
        path: a file of :data:`ser_fast.data.frame_files.FILES`.

    Raises:
        ValueError: as in :func:`ser_fast.data.frame_files.open_file`.
    """

    def __init__(self, path: Path):
        self.file = frame_files.open_file(path)
        self.about = {"kind": "file", "name": printable(path.name), "width": self.file.width}
        self.options = {"features": self.file.width}
        self.identity = ":".join(map(str, state(path)))
        self._used: dict[str, str] = {}  # file that features were given for

    def check(self, utterances: Sequence[Utterance]) -> None:
        """Refuse utterances without features, as :func:`ser_fast.data.frame_files.found_keys` does."""
        frame_files.found_keys(self.file, utterances)

    def frames(self, utterances: Sequence[Utterance], lengths: Sequence[int]) -> int:
        """Return the number of frames of all utterances."""
        return sum(self.file.shapes[key][0] for key in frame_files.found_keys(self.file, utterances))

    def of(self, file: str, whole: bool = True) -> np.ndarray:
        """Return the features ``[T, D]`` of an audio file, or with ``whole`` false of a part, which has none.

        Raises:
            ValueError: there are none, they are those of a file before, or they are damaged.
        """
        where = f"features in {printable(self.file.path)}"
        require(whole, f"a part of the file has no {where}", "a whole file")
        key = self.file.find(file, file)
        require(key is not None, f"has no {where}", frame_files.KEYS)
        other = self._used.setdefault(key, file)
        found = f"its {where}, {printable(key)!r}, are those of {printable(other)} too"
        require(other == file, found, frame_files.KEYS)
        return self.file.read(key)

    def reader(self, utterances: Sequence[Utterance]) -> Callable[[Utterance], np.ndarray]:
        """Return a function from one of the utterances to its features ``[T, D]``."""
        keys = dict(zip(map(id, utterances), frame_files.found_keys(self.file, utterances)))
        return lambda utterance: self.file.read(keys[id(utterance)])


Source = Stored | Encoder


def open_source(features: str, layer: int = -1, device: torch.device | None = None) -> Source | None:
    """Open the source of features that an option names; None for ``""``.

    Args:
        features: a file or the folder of an encoder.
        layer: hidden states of the encoder.
        device: device of the encoder; the CPU by default.

    Raises:
        ImportError: the extra "upstream" or "scale", which it needs, is not installed.
        ValueError: it is neither, or damaged.
    """
    if not features:
        require(layer == -1, f"features_layer is {layer} without features", "omitted")
        return None
    if Path(features).is_dir():
        return Encoder(Path(features), layer, device)
    require(layer == -1, f"features_layer is {layer}, and features is {features}, a file", "omitted")
    return Stored(Path(features))


def completed(model: str, options: dict, source: Source | None) -> dict:
    """Return the options of a model with those that a source of features sets.

    Raises:
        ValueError: the model takes no features, or an option contradicts the source.
    """
    given = options.get("features", 0)
    if source is None:
        require(not given, f"{model}.features is {given}, but features is not given", "0, or features given")
        return options
    require(
        model in _TAKING, f"model is {model}, but features is given", f"{' or '.join(_TAKING)}, or features omitted"
    )
    width = source.options["features"]
    found = f"{model}.features is {given}, but features has {width} in a frame"
    require(given in (0, width), found, "omitted")
    return options | source.options


def read_inputs(
    source: Source | None,
    front: nn.Module,
    corpus: Corpus,
    skip_bad: bool,
    report: Callable[[str], None],
    storage: Storage,
) -> tuple[Corpus, Dataset]:
    """Return the utterances that could be read, as a corpus and as a dataset with the inputs of a model.

    Args:
        source: source of features; None for a model that takes waves.
        front: spectrogram of the model, or what takes its place.
        corpus, skip_bad, report, storage: as in :func:`ser_fast.data.dataset.read_dataset`.

    Raises:
        AudioError: an utterance cannot be read and ``skip_bad`` is false.
        ValueError: the corpus, or its features, do not fit where ``storage`` says, or features are not finite.
    """
    rate = front.sample_rate
    if source is None:
        return read_dataset(corpus, rate, skip_bad, report, storage)
    source.check(corpus.utterances)
    # The audio itself is only for reports, unless it has to be read to know which files are unreadable.
    audio = (report, storage) if skip_bad else (lambda line: None, replace(storage, cache="none", workers=0))
    corpus, dataset = read_dataset(corpus, rate, skip_bad, *audio)
    some = corpus.utterances
    kept = frames.keep(
        some, source.reader(some), source.frames(some, dataset.lengths), source.about["width"], source.identity,
        storage, report, costly=isinstance(source, Encoder),
    )  # fmt: skip
    found = sum(kept.lengths) * rate / max(1, sum(dataset.lengths))
    if not 1 / _OFF < found / front.input_rate < _OFF:
        report(
            f"features has {found:.1f} frames in a second of audio, but the model's frame_rate is "
            f"{front.input_rate:g}: masks over time and times in reports are off"
        )
    digest = source.about.get("digest") or frames.digest(kept)
    dataset.frames, dataset.upstream = kept, source.about | {"digest": digest}
    return corpus, dataset


def source_of(
    path: Path | str, checkpoint: Checkpoint, model: nn.Module, features: str, device: torch.device | None = None
) -> tuple[Source | None, str]:
    """Return the source of features for a checkpoint's model, and a sentence if it may not be that of its training.

    Args:
        path: the checkpoint, for messages.
        checkpoint: its content.
        model: its model.
        features: the option; ``""`` for none.
        device: device of an encoder.

    Raises:
        ValueError: the model needs features and there are none, or takes none, or those of another width.
    """
    if not isinstance(model.spectrogram, FrameInput):
        require(not features, f"features is {features}, but {path} takes waves", "omitted")
        return None, ""
    about = checkpoint.progress.get("features")
    about = about if isinstance(about, dict) else {}
    width = len(model.spectrogram.mean)
    trained = f"{path} was trained on {described(about, width)}"
    require(
        bool(features),
        f"features is not given, but {trained}",
        "a file of such features, or the folder of the encoder",
    )
    layer = about.get("layer") if Path(features).is_dir() else None
    source = open_source(features, layer if type(layer) is int else -1, device)
    found = source.about
    require(found["width"] == width, f"features is {features}, of {found['width']} in a frame, but {trained}", width)
    if isinstance(source, Encoder):
        rate, wanted = source.sample_rate, model.spectrogram.sample_rate
        require(rate == wanted, f"features is {features}, of waves at {rate} Hz, but {trained}", f"at {wanted} Hz")
        if found["digest"] == about.get("digest"):
            return source, ""
        return source, f"features is {features}, which is not the encoder of the training: {trained}"
    return source, ""


def described(about: dict, width: int) -> str:
    """Return a phrase for the features that a checkpoint, of any origin, was trained on."""
    of = {"file": "from the file", "encoder": "of the encoder"}.get(str(about.get("kind")), "of")
    layer = f", layer {about['layer']}" if "layer" in about else ""
    name = printable(about.get("name", "an unknown origin"))
    return f"features {of} {name}{layer}, {width} in a frame"
