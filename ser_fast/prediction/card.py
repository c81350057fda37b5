"""Cards of models in Markdown, and what they say about tests."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ser_fast._version import __version__
from ser_fast.data.files import printable
from ser_fast.data.utterance import plural
from ser_fast.training.checkpoint import Checkpoint
from ser_fast.training.upstream import described

# What the numbers of a summary.json are of, by the name that it has for them.
_KINDS = {
    "best": "this model, on the test part of its run",
    "pooled": "models that were trained in the same way on parts of the corpus, not of this one; all predictions "
    "together",
    "metrics": "this model, on another corpus or part",
}
_MEASURES = {
    "recall": "UA, the mean recall of the classes",
    "accuracy": "WA, the accuracy",
    "ccc": "CCC, the concordance correlation",
    "mae": "MAE, the mean absolute error",
    "corr": "Pearson's correlation",
}
_SHARES = ("recall", "accuracy")
_LARGEST = 1e300  # of a measure; a whole number beyond has no float
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>()#|~&$@!]")

_TEXT = """# {title}

Predicts from speech {outputs}. Made by ser_fast {version}.

| | |
|---|---|
{facts}

## Results

{results}

## Use

{use}
## Limits

{limits}

## Licence

{licence}
"""
_USE = """```python
from ser_fast.prediction.hub import SERModel  # pip install 'ser_fast[hub]'

model = SERModel.from_pretrained({name})
for file, result in model.predict(["some.wav", "folder"]).items():
    print(file, result)
```
"""
_LIMITS = {
    "classes": "It always names one of its classes, also for an emotion that is none of them. The probabilities are "
    "not calibrated.",
    "values": "It gives values for any sound, also beyond the range that it was trained on.",
    "shared": "Speakers of the test are in the training too, so expect less for a new speaker.",
    "elsewhere": "Expect less, by an unknown amount, for other languages, speakers, rooms and microphones than those "
    "of its corpus, and for spontaneous speech if that is acted.",
    "speech": "Audio without voiced speech gets no label.",
    "people": "Not for decisions about people, such as in hiring, policing, education or medicine.",
}


@dataclass(frozen=True)
class Tested:
    """Results of a test, as a checkpoint keeps them in ``progress["tested"]``.

    Args:
        kind: "best", "pooled" or "metrics", what a ``summary.json`` calls the numbers of a run, a cross-validation
            and an evaluation.
        protocol: sentence that says what was held out.
        data: name of the corpus.
        predictions: number of predictions; 0 if unknown.
        speakers: number of their speakers; 0 if unknown.
        measures: target, or ``""`` for all, name of the measure, value, and the ends of its 95 % interval over the
            speakers or None.

    Raises:
        ValueError: a value is of another type or not finite.
    """

    kind: str
    protocol: str
    data: str
    predictions: int
    speakers: int
    measures: list[list]

    def __post_init__(self):
        good = self.kind in _KINDS and isinstance(self.protocol, str) and isinstance(self.data, str)
        good = good and all(type(number) is int and number >= 0 for number in (self.predictions, self.speakers))
        good = good and isinstance(self.measures, list) and all(map(_is_measure, self.measures))
        if not good:
            raise ValueError(f"{self!s:.200} are no results of a test")


def _is_measure(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 5 or not isinstance(row[0], str):
        return False
    numbers = [number for number in row[2:] if number is not None]
    finite = all(type(number) in (int, float) and abs(number) <= _LARGEST for number in numbers)
    return row[1] in tuple(_MEASURES) and row[2] is not None and finite


def tested(checkpoint: Checkpoint) -> Tested | None:
    """Return the results that a checkpoint has with it; None without any, or if these are malformed."""
    try:
        return Tested(**checkpoint.progress["tested"])
    except (KeyError, TypeError, ValueError):
        return None


def read_results(path: Path) -> tuple[Tested, dict]:
    """Return the results in a ``summary.json`` of a run, a cross-validation or an evaluation, and all that it has.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no such results.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        kind = next((kind for kind in _KINDS if kind in summary), None)
        if kind is None:
            raise ValueError("it has no results of a test")
        speakers, metrics = summary.get("per_speaker", {}), summary[kind]
        rows = _rows("", metrics, summary.get("intervals", {}))
        for target, known in summary.get("per_target", {}).items():
            rows += _rows(target, metrics["per_target"][target], known["intervals"])
        predictions = sum(each["utterances"] for each in speakers.values())
        protocol = "; ".join(filter(None, (summary["protocol"], summary.get("notice"))))
        result = Tested(kind, protocol, summary["data"], predictions, len(speakers), rows)
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is no summary of a run, a cv or an evaluation with a test: {error!r}") from error
    return result, summary


def _rows(target: str, metrics: dict, intervals: dict) -> list[list]:
    """Return the measures of a target, or of all; a run of an older version has no intervals."""
    rows = []
    for name in _MEASURES:
        if (value := metrics.get(name)) is not None:
            pooled = intervals.get(name, {}).get("pooled", {})
            rows.append([target, name, value, pooled.get("low"), pooled.get("high")])
    return rows


def inline(text: object) -> str:
    r"""Return text for a sentence or a cell of Markdown, where no character of it has a meaning of its own.

    Example:
        >>> print(inline("a|b *c* <d>"))
        a\|b \*c\* \<d\>
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))


def card(checkpoint: Checkpoint, model: nn.Module, name: str = "", licence: str = "") -> str:
    """Return the card of a model, Markdown without front matter.

    Args:
        checkpoint: what is known of the model.
        model: the model itself.
        name: id or folder of the model in the example of its use.
        licence: licence of the weights; ``""`` states none.
    """
    about, found = checkpoint.progress, tested(checkpoint)
    corpus = str(about.get("data") or "")
    outputs = (
        f"one of {plural(len(checkpoint.classes), 'class')}: " if checkpoint.classes
        else "a value: " if len(checkpoint.names) == 1 else f"{len(checkpoint.names)} values: "
    )  # fmt: skip
    limits = ["classes" if checkpoint.classes else "values", "elsewhere", "people"]
    if found and "speakers shared" in found.protocol and "no speakers shared" not in found.protocol:
        limits.insert(1, "shared")
    if about.get("needs_speech") is True:
        limits.insert(-1, "speech")
    return _TEXT.format(
        title=inline(f"{checkpoint.model} on {corpus}" if corpus else checkpoint.model),
        outputs=outputs + ", ".join(map(inline, checkpoint.names)),
        version=__version__,
        facts="\n".join(f"| {label} | {inline(value)} |" for label, value in _facts(checkpoint, model).items()),
        results=_results(found, about.get("edited") is True),
        use=use(name),
        limits="\n".join(f"- {_LIMITS[limit]}" for limit in limits),
        licence=inline(licence) if licence else "None is stated.",
    )


def use(name: str = "") -> str:
    """Return an example of the use of a model, Markdown.

    Args:
        name: its id or folder; ``""`` for a placeholder.
    """
    return _USE.format(name=json.dumps(name or "NAME/MODEL"))


def _facts(checkpoint: Checkpoint, model: nn.Module) -> dict[str, str]:
    about = checkpoint.progress
    facts = {
        "model": f"{checkpoint.model}, {sum(weight.numel() for weight in model.parameters()):,} parameters",
        "options": ", ".join(f"{name}: {json.dumps(value)}" for name, value in checkpoint.options.items()),
        "recipe": about.get("recipe"),
        "audio": f"mono at {model.spectrogram.sample_rate} Hz; files of other rates are resampled",
        "input": described(about["features"], len(model.spectrogram.mean))
        if isinstance(about.get("features"), dict)
        else None,
        "corpus": about.get("data"),
        "digest of the corpus": about.get("corpus"),
        "epoch": about.get("epoch"),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def _results(found: Tested | None, edited: bool) -> str:
    if edited:
        return "The weights were changed after the training that is described above, and not tested since."
    if found is None:
        return "No test is recorded. Measure the model on your own speech before you use it."
    of = f", {found.predictions} predictions of {plural(found.speakers, 'speaker')}" if found.predictions else ""
    lines = [f"Of {_KINDS[found.kind]}. Corpus {inline(found.data)}{of}; {inline(found.protocol)}.", ""]
    lines += ["| measure | value | 95 % interval over speakers |", "| --- | --: | --: |"]
    for target, name, *numbers in found.measures:
        value, low, high = (None if number is None else _number(name, number) for number in numbers)
        interval = f"{low} to {high}" if low and high else "unknown"
        label = f"{inline(target)}: {_MEASURES[name]}" if target else _MEASURES[name]
        lines.append(f"| {label} | {value} | {interval} |")
    return "\n".join(lines)


def _number(measure: str, value: float) -> str:
    return f"{100 * value:.1f} %" if measure in _SHARES else f"{value:.3f}"
