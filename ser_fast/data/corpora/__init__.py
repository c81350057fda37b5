"""Readers of corpora: labelled utterances from folders, file names and tables."""

from collections.abc import Sequence
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.audio import find_audio
from ser_fast.data.corpora.casia import casia as _read_casia
from ser_fast.data.corpora.emobox import emobox as _read_emobox
from ser_fast.data.corpora.emodb import emodb as _read_emodb
from ser_fast.data.corpora.folders import RECOGNISED as _RECOGNISED
from ser_fast.data.corpora.folders import folders as _read_folders
from ser_fast.data.corpora.folders import speakers as _read_speakers
from ser_fast.data.corpora.hugging_face import hugging_face as _read_hugging_face
from ser_fast.data.corpora.manifest import SUFFIXES as _MANIFEST_SUFFIXES
from ser_fast.data.corpora.manifest import manifest as _read_manifest
from ser_fast.data.corpora.ravdess import ravdess as _read_ravdess
from ser_fast.data.corpora.tar import tar as _read_tar
from ser_fast.data.utterance import Corpus, Utterance, check_targets

__all__ = ["Corpus", "Utterance", "load_corpus"]

_READERS = {
    "casia": _read_casia,
    "emobox": _read_emobox,
    "emodb": _read_emodb,
    "folders": _read_folders,
    "hf": _read_hugging_face,
    "manifest": _read_manifest,
    "ravdess": _read_ravdess,
    "speakers": _read_speakers,
    "tar": _read_tar,
}
_TABLES = ("hf", "manifest", "tar")  # kinds whose utterances may have values of any name
_FORMS = (
    "synthetic, synthetic-sentiment, casia:FOLDER, emodb:FOLDER, emobox:FOLDER, ravdess:FOLDER, folders:FOLDER, "
    "speakers:FOLDER, manifest:FILE, hf:FOLDER, tar:PATTERN, a .csv or .jsonl file, or a folder"
)


def load_corpus(spec: str, targets: Sequence[str] = ()) -> Corpus:
    """Return the corpus of a ``--data`` option; no audio is read, only names.

    Args:
        spec: ``synthetic``, ``synthetic-sentiment``, ``casia:FOLDER``, ``emodb:FOLDER``, ``ravdess:FOLDER``,
            ``folders:FOLDER`` (a folder per class), ``speakers:FOLDER`` (a folder per speaker, in it one per class),
            ``emobox:FOLDER`` (EmoBox's metadata of a corpus), ``manifest:FILE``, ``hf:FOLDER`` (a dataset that
            Hugging Face ``datasets`` saved) or ``tar:PATTERN`` (WebDataset shards); or a path: a ``.csv`` or
            ``.jsonl`` file is a manifest, a folder is Emo-DB, RAVDESS or CASIA if all its audio files are named as in
            that corpus, else it has a folder per class.
        targets: columns of a manifest, of a dataset of Hugging Face or of the JSON in shards to predict, in this
            order, instead of the label or ``value``.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: there is no corpus of that kind at the path, or it lacks a target.
    """
    check_targets(targets)
    corpus = _load(spec, targets)
    if targets and corpus.targets != list(targets):
        has = "labels" if corpus.classes else "the column 'value'"
        found = f"targets is {', '.join(targets)}, but corpus {spec!r} has {has} only"
        raise ValueError(f"{found}; it must be omitted, or the corpus a table with such columns")
    return corpus


def _load(spec: str, targets: Sequence[str]) -> Corpus:
    if spec in ("synthetic", "synthetic-sentiment"):
        from ser_fast.data.corpora import synthetic

        return synthetic.synthetic() if spec == "synthetic" else synthetic.synthetic_sentiment()

    kind, colon, place = spec.partition(":")
    if colon and kind in _READERS:
        require(bool(place), f"corpus {spec!r} names no path", _FORMS)
        return _read(kind, Path(place).expanduser(), targets)

    path = Path(spec).expanduser()
    exists = bool(spec) and path.exists()
    require(exists, f"corpus {spec!r} is not an existing path", _FORMS, FileNotFoundError)
    if path.is_dir():
        files = find_audio(path)
        kind = next((kind for kind, follows in _RECOGNISED.items() if all(map(follows, files))), "folders")
        return _read(kind, path, targets)
    known = path.suffix.lower() in _MANIFEST_SUFFIXES
    require(known, f"corpus {spec!r} is a {path.suffix or 'suffixless'} file", _FORMS)
    return _read_manifest(path, targets)


def _read(kind: str, path: Path, targets: Sequence[str]) -> Corpus:
    return _READERS[kind](path, targets) if kind in _TABLES else _READERS[kind](path)
