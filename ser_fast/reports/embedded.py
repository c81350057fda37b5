"""Put audio, spectrograms and attention into a page up to a size limit, and link the remaining audio files."""

import base64
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ser_fast.data.files import printable
from ser_fast.data.utterance import plural
from ser_fast.reports import media
from ser_fast.training.checkpoint import load_checkpoint
from ser_fast.training.results import Results

# Bytes of a page, in base64. Speech is 28 kB a second, a spectrogram 10 kB.
AUDIO_BYTES, PICTURE_BYTES = 6_000_000, 2_500_000
CURVES = 500  # of attention, each a pass through a model
LONGEST = 30.0  # seconds of an utterance; the attention of heads takes memory by the square of the length


class Embedded:
    """Audio, spectrograms and attention for rows of a page.

    In the order of the rows, audio is embedded up to :data:`AUDIO_BYTES`, spectrograms up to :data:`PICTURE_BYTES`,
    and for these the attention of up to :data:`CURVES` rows; nothing of an utterance longer than :data:`LONGEST`.
    Other audio is linked if it is a file.

    Args:
        results: the corpus, and the checkpoints that the attention is computed by.
        rows: number of the run and of the utterance of each row; without an utterance it is None.
        page: the HTML file.

    Attributes:
        items: by number of the utterance ``audio``, file and MIME type, or ``link``; ``picture``, file, begin, end
            and highest frequency; ``failure``, an error message.
        attention: by number of the row: levels, begin, end and peak.
        left: numbers of the utterances without a spectrogram or an error message, by a sentence that says why.
    """

    def __init__(self, results: Results, rows: Sequence[tuple[int, int | None]], page: Path):
        self.results, self.items, self.attention = results, {}, {}
        self._lengths = results.dataset.lengths  # counted anew at each access
        self._models: dict[int, nn.Module | None] = {}
        self._without: set[int] = set()  # runs whose model has no attention
        self._left = {"audio": AUDIO_BYTES, "picture": PICTURE_BYTES}
        first: dict[int, int] = {}  # run that an utterance is embedded by
        for number, (run, item) in enumerate(rows):
            if item is not None:
                first.setdefault(item, run)
                self._add(number, run, item)
                self._link(item, page)
        self.count = len(first)
        self.left = defaultdict(list)
        for item, run in first.items():
            if not self.items[item].keys() & {"picture", "failure"}:
                self.left[self._cause(item, run)].append(item)
        self._lost = Counter(self._fault(item) for item in first if not self.items[item].keys() & {"audio", "link"})
        self.items = {item: found for item, found in self.items.items() if found}

    def sentences(self) -> list[str]:
        """Return what the page has, and where the rest is."""
        files = [found[kind][0] for found in self.items.values() for kind in self._left if kind in found]
        heard, seen, linked = (sum(kind in found for found in self.items.values()) for kind in (*self._left, "link"))
        said = [
            f"The worst predictions come first. Audio of {heard} and spectrograms of {seen} of the "
            f"{plural(self.count, 'utterance')} are in this page ({sum(map(len, files)) / 1e6:.1f} MB)."
        ]
        if linked:
            said.append(
                f"Audio of {plural(linked, 'other')} is played from the corpus, by its place relative to this page."
            )
        if self._lost:
            causes = ", ".join(f"{count} {fault}" for fault, count in self._lost.items())
            lost = plural(self._lost.total(), "other")
            said.append(f"Audio of {lost} is left out: {causes}. It is no file of its own that the page could link.")
        if seen and not self.attention:
            said.append("The model has no attention.")
        if len(self.attention) == CURVES:
            said.append(f"The attention of {CURVES} predictions is shown.")
        if unread := [run for run, model in self._models.items() if model is None]:
            whose = "its checkpoint" if len(unread) == 1 else "their checkpoints"
            missing = f"Spectrograms and attention of {plural(len(unread), 'run')} are missing"
            said.append(f"{missing}: {whose} cannot be read.")
        return said

    def _long(self, item: int) -> bool:
        return self._lengths[item] > LONGEST * self.results.sample_rate

    def _cause(self, item: int, run: int) -> str:
        """Return why an utterance that can be read has no spectrogram."""
        if self._long(item):
            return f"Spectrograms of utterances longer than {LONGEST:g} s are not in this page."
        if run in self._models and self._models[run] is None:
            return "No spectrogram: the checkpoint of its run cannot be read."
        return f"Spectrograms of worse predictions take the {PICTURE_BYTES / 1e6:g} MB that this page has for them."

    def _fault(self, item: int) -> str:
        """Return why the audio of an utterance is not embedded, after a number of utterances."""
        if self._long(item):
            return f"longer than {LONGEST:g} s"
        return "unreadable" if "failure" in self.items[item] else f"beyond the limit of {AUDIO_BYTES / 1e6:g} MB"

    def _add(self, number: int, run: int, item: int) -> None:
        """Add what the budget allows for a row."""
        new = item not in self.items and any(self._left.values())
        attend = run not in self._without and len(self.attention) < CURVES
        if self._long(item) or not (new or (attend and "picture" in self.items.get(item, ()))):
            return
        found = self.items.setdefault(item, {})
        try:
            wave = self.results.dataset.waves[item]
            if new:
                self._embed(found, run, wave)
            if attend and "picture" in found:
                self._attend(number, run, self.results.dataset.inputs[item])
        except (OSError, ValueError, RuntimeError) as error:  # the file was changed, or is shorter than a frame
            found["failure"] = printable(error)

    def _embed(self, found: dict, run: int, wave: Tensor) -> None:
        if self._left["audio"]:
            self._take(found, "audio", *media.audio(wave, self.results.sample_rate))
        model = self._model(run)
        if self._left["picture"] and model is not None:
            self._take(found, "picture", *media.picture(model.spectrogram, wave))

    def _take(self, found: dict, kind: str, content: bytes, *more) -> None:
        """Add a file unless it exceeds the budget, which is then spent."""
        text = base64.b64encode(content).decode()
        self._left[kind] = max(0, self._left[kind] - len(text))
        if self._left[kind]:
            found[kind] = [text, *more]

    def _attend(self, number: int, run: int, taken: Tensor) -> None:
        model = self._model(run)
        curve = None if model is None else media.attention(model, taken)
        if curve is None:
            self._without.add(run)
            return
        levels, *rest = curve
        self.attention[number] = [base64.b64encode(levels).decode(), *rest]

    def _model(self, run: int) -> nn.Module | None:
        """Return the model of a run; None if its checkpoint cannot be read."""
        if run not in self._models:
            path = self.results.tested[run].checkpoint
            try:
                self._models[run] = load_checkpoint(path).build(path)
            except ValueError:
                self._models[run] = None
        return self._models[run]

    def _link(self, item: int, page: Path) -> None:
        found = self.items.setdefault(item, {})
        if "audio" not in found and "link" not in found:
            utterance = self.results.corpus.utterances[self.results.dataset.numbers[item]]
            found |= {"link": address} if (address := media.link(utterance, page)) else {}
