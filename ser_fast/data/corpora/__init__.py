"""Readers of corpora: labelled utterances from folders, file names and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.audio import find_audio
from ser_fast.data.corpora.audformat import audformat as _read_audformat
from ser_fast.data.corpora.casia import casia as _read_casia
from ser_fast.data.corpora.columns import parse_columns
from ser_fast.data.corpora.cremad import cremad as _read_cremad
from ser_fast.data.corpora.detection import kind_of as _kind_of
from ser_fast.data.corpora.emobox import emobox as _read_emobox
from ser_fast.data.corpora.emodb import emodb as _read_emodb
from ser_fast.data.corpora.folders import folders as _read_folders
from ser_fast.data.corpora.folders import speakers as _read_speakers
from ser_fast.data.corpora.hugging_face import hugging_face as _read_hugging_face
from ser_fast.data.corpora.manifest import SUFFIXES as _MANIFEST_SUFFIXES
from ser_fast.data.corpora.manifest import manifest as _read_manifest
from ser_fast.data.corpora.meld import follows_layout as _follows_meld
from ser_fast.data.corpora.meld import meld as _read_meld
from ser_fast.data.corpora.ravdess import ravdess as _read_ravdess
from ser_fast.data.corpora.savee import savee as _read_savee
from ser_fast.data.corpora.tar import tar as _read_tar
from ser_fast.data.corpora.tess import tess as _read_tess
from ser_fast.data.utterance import Corpus, Utterance, check_targets

__all__ = ["Corpus", "Utterance", "load_corpus", "takes_columns"]

_READERS = {
    "audformat": _read_audformat,
    "casia": _read_casia,
    "cremad": _read_cremad,
    "emobox": _read_emobox,
    "emodb": _read_emodb,
    "folders": _read_folders,
    "hf": _read_hugging_face,
    "manifest": _read_manifest,
    "meld": _read_meld,
    "ravdess": _read_ravdess,
    "savee": _read_savee,
    "speakers": _read_speakers,
    "tar": _read_tar,
    "tess": _read_tess,
}
_TABLES = ("hf", "tar")  # kinds whose utterances may have values of any name
_NAMED = ("audformat", "manifest")  # kinds whose columns may also have other names
_FORMS = (
    "synthetic, synthetic-sentiment, casia:FOLDER, cremad:FOLDER, emodb:FOLDER, emobox:FOLDER, meld:FOLDER, "
    "ravdess:FOLDER, savee:FOLDER, tess:FOLDER, folders:FOLDER, speakers:FOLDER, manifest:FILE, "
    "audformat:FOLDER, hf:FOLDER, tar:PATTERN, a .csv, .tsv or .jsonl file, or a folder"
)


def load_corpus(spec: str, targets: Sequence[str] = (), columns: str | Mapping[str, str] = "") -> Corpus:
    """Return the corpus of a ``--data`` option; no audio is read, only names.

    Args:
        spec: ``synthetic``, ``synthetic-sentiment``, ``casia:FOLDER``, ``cremad:FOLDER``, ``emodb:FOLDER``,
            ``meld:FOLDER``, ``ravdess:FOLDER``, ``savee:FOLDER``, ``tess:FOLDER``, ``folders:FOLDER`` (a folder per
            class), ``speakers:FOLDER`` (a folder per speaker, in it one per class), ``emobox:FOLDER`` (EmoBox's
            metadata of a corpus), ``manifest:FILE``, ``audformat:FOLDER`` (a database of audformat), ``hf:FOLDER`` (a
            dataset that Hugging Face ``datasets`` saved) or ``tar:PATTERN`` (WebDataset shards); or a path: a
            ``.csv``, ``.tsv`` or ``.jsonl`` file is a manifest, a folder is one of the corpora above if all its audio
            files are named as in that corpus, else a database if it has a ``db.yaml``, and has a folder per class if
            at most half of the files are named so.
        targets: columns of a manifest, of a database of audformat, of a dataset of Hugging Face or of the JSON in
            shards to predict, in this order, instead of the label or ``value``.
        columns: columns of a manifest under other names than ours, as ``file=path,label=emotion`` or a map, or those
            to read of a database of audformat, as ``label=TABLE/COLUMN``.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: there is no corpus of that kind at the path, it lacks a target or a column, or a folder could be
            of several kinds; the message then says what to type.
    """
    check_targets(targets)
    columns = parse_columns(columns)
    corpus = _load(spec, targets, columns)
    if targets and corpus.targets != list(targets):
        has = "labels" if corpus.classes else "the column 'value'"
        found = f"targets is {', '.join(targets)}, but corpus {spec!r} has {has} only"
        raise ValueError(f"{found}; it must be omitted, or the corpus a table with such columns")
    return corpus


def takes_columns(spec: str) -> bool:
    """Return whether a ``--data`` option names a manifest or a database, whose columns may have other names."""
    kind, colon, place = spec.partition(":")
    if colon and kind in _READERS:
        return kind in _NAMED and bool(place)
    path = Path(spec).expanduser()
    return path.suffix.lower() in _MANIFEST_SUFFIXES and not path.is_dir()


def _load(spec: str, targets: Sequence[str], columns: Mapping[str, str]) -> Corpus:
    found = f"columns is given, but corpus {spec!r} is no .csv, .tsv or .jsonl table, nor audformat:FOLDER"
    require(not columns or takes_columns(spec), found, "omitted")
    if spec in ("synthetic", "synthetic-sentiment"):
        from ser_fast.data.corpora import synthetic

        return synthetic.synthetic() if spec == "synthetic" else synthetic.synthetic_sentiment()

    kind, colon, place = spec.partition(":")
    if colon and kind in _READERS:
        require(bool(place), f"corpus {spec!r} names no path", _FORMS)
        return _read(kind, Path(place).expanduser(), targets, columns)

    path = Path(spec).expanduser()
    exists = bool(spec) and path.exists()
    require(exists, f"corpus {spec!r} is not an existing path", _FORMS, FileNotFoundError)
    if path.is_dir():
        # MELD's films are no audio files.
        kind = "meld" if _follows_meld(path) else _kind_of(path, find_audio(path))
        return _read(kind, path, targets, columns)
    known = path.suffix.lower() in _MANIFEST_SUFFIXES
    require(known, f"corpus {spec!r} is a {path.suffix or 'suffixless'} file", _FORMS)
    return _read_manifest(path, targets, columns)


def _read(kind: str, path: Path, targets: Sequence[str], columns: Mapping[str, str]) -> Corpus:
    if kind in _NAMED:
        return _READERS[kind](path, targets, columns)
    return _READERS[kind](path, targets) if kind in _TABLES else _READERS[kind](path)
