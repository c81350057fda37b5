"""A corpus as it was read, before any training: tables, a picture or JSON."""

import json
import os
from pathlib import Path

from ser_fast._require import require
from ser_fast.data.budget import hours
from ser_fast.data.storage import counted
from ser_fast.data.summary import Share, Summary, summarise
from ser_fast.data.survey import survey
from ser_fast.data.utterance import plural
from ser_fast.reports.terminal import print_table, say
from ser_fast.training.config import TrainConfig
from ser_fast.training.corpus import corpus_of

_ROWS = 40  # speakers in the table
_COLUMNS = 12  # classes with a column of their own in the table of speakers; groups that are listed
_LAYOUTS = {1: "mono", 2: "stereo"}


def describe(config: TrainConfig, out: Path | None, headers_only: bool = False, as_json: bool = False) -> Summary:
    """Read a corpus as ``train`` does, print what it is, and draw it.

    Args:
        config: options of a run, of which ``data``, ``columns``, ``labels``, ``test_data`` and
            ``targets`` count.
        out: the picture, a PNG file; None draws none.
        headers_only: read the headers of the audio files alone.
        as_json: print one JSON object instead of tables.

    Returns:
        The summary.

    Raises:
        FileNotFoundError, ValueError: as :func:`ser_fast.training.corpus.corpus_of`, or ``out`` is no PNG file or
            cannot be written.
    """
    _check_out(out)
    corpus = corpus_of(config)
    report = (lambda line: None) if as_json else say
    report(f"reading {'the headers of ' if headers_only else ''}{counted(corpus.utterances)}")
    summary = summarise(corpus, survey(corpus.utterances, headers_only, report))
    if as_json:
        print(json.dumps(summary.as_dict(), indent=1))
    else:
        _print(summary, headers_only)
    if out is not None:  # last, so that a full disk costs the picture alone
        from ser_fast.reports.data_figure import draw  # matplotlib takes a second

        try:
            draw(summary, out)
        except OSError as error:
            raise ValueError(f"out is {str(out)!r}, which cannot be written: {error}") from error
        report(f"picture: {out}")
    return summary


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    require(out.suffix.lower() == ".png", f"out is {str(out)!r}", "a file of the suffix .png")
    folder = next(path for path in out.absolute().parents if path.exists())
    good = folder.is_dir() and os.access(folder, os.W_OK)
    require(good, f"out is {str(out)!r}", f"in a folder that can be written, which {str(folder)!r} is not")


def _print(summary: Summary, headers_only: bool) -> None:
    for line in _heading(summary):
        say(line)
    for title, header, rows in _tables(summary):
        print_table(title, header, rows)
    for line in _notices(summary, headers_only):
        say(line)


def _heading(summary: Summary) -> list[str]:
    whole = summary.whole
    counts = [plural(whole.utterances, "utterance"), plural(len(summary.speakers), "speaker")]
    if summary.classes:
        counts.insert(1, plural(len(summary.classes), "class"))
    if spread := whole.spread():
        counts.append(f"{hours(whole.seconds)}; seconds {spread[0]:.2f} to {spread[2]:.2f}, median {spread[1]:.2f}")
    formats = [
        f"{rate} Hz {_LAYOUTS.get(channels, f'{channels} channels')} ({count})"
        for (rate, channels), count in summary.formats.items()
    ]
    lines = [f"{summary.name}: {', '.join(counts)}", f"audio: {', '.join(formats) or 'none can be read'}"]
    for name, found in (("parts", summary.parts), ("groups", summary.groups)):
        if found:
            shown = ", ".join(f"{part} {count}" for part, count in list(found.items())[:_COLUMNS])
            more = f", and {len(found) - _COLUMNS} more" if len(found) > _COLUMNS else ""
            lines.append(f"{name}: {shown}{more}")
    return [*lines, *([f"folds of its own: {summary.folds}"] if summary.folds else [])]


def _tables(summary: Summary) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, header and rows of each table."""
    times = ["minutes", "shortest s", "median s", "longest s"]
    tables = []
    if summary.classes:
        rows = [[one.name, str(one.utterances), str(one.others), *_times(one)] for one in summary.classes]
        tables.append(("", ["class", "utterances", "speakers", *times], rows))
    if summary.targets:
        rows = [[name, *(f"{value:.4g}" for value in found)] for name, found in summary.targets.items()]
        tables.append(("", ["target", "smallest", "mean", "largest"], rows))
    names = [one.name for one in summary.classes] if len(summary.classes) <= _COLUMNS else []
    rows = [
        [one.name, str(one.utterances), *_times(one)[:1], *(str(summary.counts[one.name, c] or "-") for c in names)]
        for one in summary.speakers[:_ROWS]
    ]
    if len(summary.speakers) > _ROWS:
        rows.append([f"and {len(summary.speakers) - _ROWS} more", *[""] * (2 + len(names))])
    tables.append(("", ["speaker", "utterances", "minutes", *names], rows))
    return tables


def _times(share: Share) -> list[str]:
    spread = share.spread()
    return [f"{share.seconds / 60:.1f}", *(f"{one:.2f}" for one in spread)] if spread else ["-"] * 4


def _notices(summary: Summary, headers_only: bool) -> list[str]:
    lines = [f"note: {note}" for note in summary.notes]
    if headers_only:
        lines.append("note: headers only; silence, clipping and copies were not looked for")
    lines += [summary.passed_over] if summary.passed_over else []
    lines += [f"warning: {one.sentence}" for one in summary.findings]
    return lines or ["no warnings"]
