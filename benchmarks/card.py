"""The model that comes with ser_fast: ``python -m benchmarks.card [--run RUN --recipe NAME] [--compare RUN]``.

``--run`` takes the best epoch of a run without a test part (``ser-fast train --test_fraction=0``) as
``ser_fast/pretrained/emodb.safetensors``. Then, and without options, the card beside it is written, from the
checkpoint and the cross-validations of its recipe in ``benchmarks/results/papers``. ``--compare`` writes nothing: it
says whether a retraining had the same corpus, model and options, and how far its weights are from those shipped.
"""

import argparse
import hashlib
import inspect
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import table
from ser_fast import pretrained
from ser_fast.data.files import write_atomically
from ser_fast.experiments.settings import load_recipe
from ser_fast.models import MODELS
from ser_fast.training.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from ser_fast.training.config import TrainConfig, run_folder
from ser_fast.training.folds import HELD_OUT
from ser_fast.training.speakers import by_speaker
from ser_fast.training.task import task_of

RESULTS = Path(__file__).parent / "results/papers"
# Options that are no part of a recipe: where the run reads, writes and computes, and what it tests on.
APART = {*run_folder(Path(), {}).free, *HELD_OUT}
KEPT = ("epoch", "shortest", "data", "corpus")  # of what a checkpoint says about its training

TEXT = """# Model card: {name}

The model that `ser-fast predict` takes without a checkpoint. `python -m benchmarks.card` made this card.

| | |
|---|---|
{facts}

Predicts one of {count} emotions: {classes}.

## Corpus

F. Burkhardt, A. Paeschke, M. Rolfes, W. Sendlmeier, B. Weiss, "A Database of German Emotional Speech", Interspeech
2005; [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/), Zenodo record 17651657. {utterances} utterances of
{speakers} actors, in German, recorded in a studio. All of them trained this model. The file holds weights, no audio.

## Results

Of the same recipe in cross-validation, never of this file, which has seen every speaker. {protocol}; {seeds}.
UA is the mean recall of the classes.
{caution}
{results}

UA of each speaker, who was in no training part of the models that are tested:

{per_speaker}

All predictions together, by class:

{per_class}

The intervals are 95 % and over speakers: a t interval of the speakers' means, and a bootstrap of {draws} draws of
whole speakers.

## Limits

- Acted emotions, one language, {speakers} speakers, ten sentences, studio audio. Expect less, by an unknown amount,
  on spontaneous speech, other languages, children, and telephone or noisy audio.
- It always names one of its {count} classes, also for an emotion that is none of them. The probabilities are not
  calibrated.
- Audio of 0.2 s or more without voiced speech gets no label. Shorter audio is not judged: even 50 ms of noise get a
  label, often with a probability above 0.9, and the flag `short`. Music and singing may pass for speech
  (`docs/prediction.md`).
- Not for decisions about people, such as in hiring, policing, education or medicine.

## Licence

Weights: BSD 3-Clause, as ser_fast. Whoever passes them on keeps the attribution of the corpus above.

## Reproduce

```bash
ser-fast train --data=path/to/emodb {training} --test_fraction=0 --out=runs/emodb_all
python -m benchmarks.card --compare=runs/emodb_all  # same corpus, model and options; distance of the weights
ser-fast cv --data=path/to/emodb --config={recipe}{several} --out=runs/loso
ser-fast cv --data=path/to/emodb --config={recipe}{several_random} --protocol=random --folds={folds} --out=runs/random
```

`summary.json` of the latter two is `benchmarks/results/papers/{recipe}_loso.json` and `{recipe}_random.json`.
"""


class Shipped(NamedTuple):
    """A checkpoint that comes with ser_fast and its file."""

    file: Path
    checkpoint: Checkpoint

    @property
    def recipe(self) -> str:
        return self.checkpoint.progress["recipe"]

    @property
    def changed(self) -> dict:
        """Return the options that differ from the recipe's."""
        return self.checkpoint.progress["changed"]


def read(file: Path) -> dict:
    """Return the object in a JSON file.

    Raises:
        ValueError: it is no JSON object.
    """
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds {type(found).__name__}; it must hold a JSON object")
    return found


def changed(options: dict, recipe: str) -> dict:
    """Return the options of a run, as its config.json has them, that differ from a recipe's.

    Options of the model have its name before a dot.

    Raises:
        ValueError: there is no such recipe, or the run has another model.
    """
    given = load_recipe(recipe)
    model = given["model"]
    if options["model"] != model:
        raise ValueError(f"run has the model {options['model']}; it must be {model}, that of the recipe {recipe}")
    parameters = inspect.signature(MODELS[model].__init__).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    wanted = asdict(TrainConfig(**{name: value for name, value in given.items() if name not in MODELS}))
    wanted |= {f"{model}.{name}": value for name, value in (defaults | given.get(model, {})).items()}
    found = {name: value for name, value in options.items() if name != model}
    found |= {f"{model}.{name}": value for name, value in options[model].items()}
    plain = json.loads(json.dumps(wanted, default=str))
    return {name: value for name, value in found.items() if name not in APART and plain.get(name) != value}


def taken(run: Path, recipe: str) -> Checkpoint:
    """Return the best epoch of a run as it is shipped: without the folder's names, and with the recipe's.

    Raises:
        ValueError: the run has a test part or is not finished, or is not of the recipe.
    """
    summary = read(run / "summary.json")
    tested = summary["utterances"]["test"]
    if tested:
        raise ValueError(f"run is {run}, which tested on {tested} utterances; it must have test_fraction 0")
    checkpoint = load_checkpoint(find_checkpoint(run))
    about = {name: checkpoint.progress[name] for name in KEPT}
    about |= {"utterances": summary["utterances"]["train"] + summary["utterances"]["valid"], "recipe": recipe}
    about |= {"changed": changed(read(run / "config.json"), recipe), "needs_speech": True}
    checkpoint.progress = about
    return checkpoint


def differences(shipped: Checkpoint, other: Checkpoint) -> list[str]:
    """Return what differs between two shipped checkpoints, but for their weights; a sentence each."""
    pairs = {name: (getattr(shipped, name), getattr(other, name)) for name in ("model", "options", "classes")}
    names = shipped.progress.keys() | other.progress.keys()
    pairs |= {name: (shipped.progress.get(name), other.progress.get(name)) for name in sorted(names)}
    return [f"{name} is {there!r}; it must be {here!r}" for name, (here, there) in pairs.items() if here != there]


def distance(shipped: Checkpoint, other: Checkpoint) -> float:
    """Return the largest difference of a weight, as a share of the largest weight of its tensor."""
    shares = [0.0]
    for name, here in shipped.weights.items():
        scale = float(here.double().abs().max()) or 1.0
        shares.append(float((here.double() - other.weights[name].double()).abs().max()) / scale)
    return max(shares, key=lambda share: math.inf if math.isnan(share) else share)


def measured(result: dict) -> dict:
    """Return :func:`ser_fast.training.speakers.by_speaker` of a cross-validation whose folds are speakers."""
    speakers, truth, predicted = [], [], []
    for run in result["runs"]:
        for true, row in enumerate(run["metrics"]["confusion"]):
            for guess, count in enumerate(row):
                speakers += [run["fold"]] * count
                truth += [true] * count
                predicted += [guess] * count
    return by_speaker(task_of(result["classes"], "auto"), speakers, truth, predicted)


def card(shipped: Shipped, loso: dict, random: dict) -> str:
    """Return the card as Markdown.

    Args:
        shipped: the checkpoint.
        loso: the ``summary.json`` of the recipe's cross-validation, one speaker left out at a time.
        random: that of random folds, which share speakers.

    Raises:
        ValueError: these are of another model or other classes.
    """
    checkpoint = shipped.checkpoint
    for protocol, result in (("loso", loso), ("random", random)):
        for name in ("model", "classes"):
            wanted, found = getattr(checkpoint, name), result[name]
            if wanted != found:
                raise ValueError(f"{protocol} has the {name} {found}; it must be {wanted}, that of {shipped.file}")
    found = measured(loso)
    seeds, random_seeds = (len({run["seed"] for run in result["runs"]}) for result in (loso, random))
    named = [f"--config={shipped.recipe}", *(f"--{name}={value}" for name, value in shipped.changed.items())]
    return TEXT.format(
        name=shipped.file.stem,
        facts=_facts(shipped),
        count=len(checkpoint.classes),
        classes=", ".join(checkpoint.classes),
        utterances=checkpoint.progress["utterances"],
        speakers=len(found["per_speaker"]),
        protocol=f"{loso['protocol'][0].upper()}{loso['protocol'][1:]}",
        seeds=_seeds(seeds) if seeds == 1 else f"{_seeds(seeds)}, of which numbers are means",
        caution=_caution(shipped),
        results=_results(loso, random, found, _seeds(random_seeds)),
        per_speaker=table(
            ["speaker", "utterances", "UA %", "accuracy %"],
            [[name, str(one["utterances"] // seeds), percent(one["recall"]), percent(one["accuracy"])]
             for name, one in found["per_speaker"].items()],
        ),
        per_class=table(
            ["class", "utterances", "recall %", "precision %"],
            [[name, str(one["support"] // seeds), percent(one["recall"]), percent(one["precision"])]
             for name, one in found["metrics"]["per_class"].items()],
        ),
        draws=found["bootstrap"]["draws"],
        training=" ".join(named),
        recipe=shipped.recipe,
        several="" if seeds == 1 else f" --seeds={seeds}",
        several_random="" if random_seeds == 1 else f" --seeds={random_seeds}",
        folds=len({run["fold"] for run in random["runs"]}),
    )  # fmt: skip


def _facts(shipped: Shipped) -> str:
    checkpoint, content = shipped.checkpoint, shipped.file.read_bytes()
    parameters = sum(weight.numel() for weight in checkpoint.build(shipped.file).parameters())
    rows = {
        "file": f"`{shipped.file.name}`, {len(content):,} bytes",
        "SHA-256": f"`{hashlib.sha256(content).hexdigest()}`",
        "model": f"`{checkpoint.model}`, {parameters:,} parameters",
        "recipe": f"`{shipped.recipe}`, epoch {checkpoint.progress['epoch']}",
        "corpus": f"{checkpoint.progress['data']}, digest `{checkpoint.progress['corpus']}`",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _caution(shipped: Shipped) -> str:
    if not shipped.changed:
        return ""
    listed = ", ".join(f"{name} {value}" for name, value in shipped.changed.items())
    return f"\n**Placeholder**: this file was trained with {listed}, unlike the recipe; it may be worse.\n"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _results(loso: dict, random: dict, found: dict, seeds: str) -> str:
    over = found["intervals"]
    rows = [
        ["leave one speaker out, mean of the folds", percent(loso["folds"]["recall"][0]),
         _ends(over["recall"]["speakers"]), percent(loso["folds"]["accuracy"][0])],
        ["the same, all predictions together", percent(over["recall"]["pooled"]["value"]),
         _ends(over["recall"]["pooled"]), percent(over["accuracy"]["pooled"]["value"])],
        [f"random folds, {seeds}, which share speakers: too high for a new speaker",
         percent(random["folds"]["recall"][0]), "", percent(random["folds"]["accuracy"][0])],
    ]  # fmt: skip
    return table(["protocol", "UA %", "interval", "accuracy %"], rows)


def _ends(interval: dict) -> str:
    return f"{percent(interval['low'])} to {percent(interval['high'])}"


def percent(share: float) -> str:
    """Return a share in percent with one digit."""
    return f"{100 * share:.1f}"


def text(file: Path) -> str:
    """Return the card of a shipped checkpoint from the committed results of its recipe."""
    shipped = Shipped(file, load_checkpoint(file))
    return card(shipped, *(read(RESULTS / f"{shipped.recipe}_{protocol}.json") for protocol in ("loso", "random")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder, without a test part, whose best epoch is shipped")
    parser.add_argument("--recipe", help="with --run: the recipe of the run")
    parser.add_argument("--compare", type=Path, metavar="RUN", help="compare a retraining, and write nothing")
    parser.add_argument(
        "--folder", type=Path, default=Path(pretrained.__file__).parent, help="of checkpoint and card"
    )
    options = parser.parse_args()
    file = options.folder / f"{pretrained.DEFAULT}.safetensors"
    if bool(options.run) != bool(options.recipe):
        parser.error("run and recipe: one is missing; give both or neither")
    try:
        if options.compare:
            shipped = load_checkpoint(file)
            other = taken(options.compare, shipped.progress["recipe"])
            if found := differences(shipped, other):
                raise ValueError("; ".join(found))
            print(f"same corpus, model and options; weights differ by at most {distance(shipped, other):.1e}")
            return
        if options.run:
            save_checkpoint(file, taken(options.run, options.recipe))
        write_atomically(file.with_suffix(".md"), text(file).encode())
    except (ValueError, OSError, KeyError) as error:
        parser.error(f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error))
    print(file.with_suffix(".md"))


if __name__ == "__main__":
    main()
