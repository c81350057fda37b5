"""Evaluation of a saved model on any corpus."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ser_fast._require import require
from ser_fast.data.corpora import Corpus, load_corpus
from ser_fast.data.corpora.combined import described_map
from ser_fast.data.corpora.labels import map_labels, read_map
from ser_fast.data.dataset import Dataset, parts, speakers, split_corpus
from ser_fast.data.failures import LIST, listing, summarise
from ser_fast.data.splits import Split
from ser_fast.data.utterance import VALUE
from ser_fast.training import distributed
from ser_fast.training.checkpoint import Checkpoint, CheckpointError, find_checkpoint, load_checkpoint
from ser_fast.training.config import LATER, TrainConfig
from ser_fast.training.corpus import corpus_of
from ser_fast.training.features import CachedFeatures
from ser_fast.training.predictions import described, to_csv
from ser_fast.training.results import Predicted, Results
from ser_fast.training.run_folder import RunFolder
from ser_fast.training.speakers import by_speaker
from ser_fast.training.task import Task, task_of
from ser_fast.training.trainer import predict
from ser_fast.training.upstream import read_inputs, source_of


@dataclass
class EvaluateConfig:
    """Options of an evaluation.

    Args:
        checkpoint: a .safetensors file, or a run folder for its best epoch.
        data: a corpus, as in training; by default, or if it is the option of the run, that of the run with its labels
            and its ``test_data``.
        labels: YAML file that maps labels of the corpus to classes of the model, such as ``angry: anger``; ``null``
            leaves utterances out. Labels that are not in it keep their names.
        only_known: decide only among the classes that occur, for a corpus that lacks some of the model's.
        part: "train", "valid" or "test" of the run's own split if the corpus is that of the run, else of the corpus's
            own division; "all" evaluates all utterances.
        test_speakers: speakers to evaluate, separated by commas or as a list; all by default.
        out: folder of the results.
        batch_size: utterances that go through the model together.
        skip_bad: skip and count unreadable files instead of stopping.
        cache: where the decoded corpus is kept, "auto", "memory", "disk" or "none", as in training.
        cache_dir: folder of the caches on disk, as in training.
        workers: processes that read audio ahead, as in training.
        device: "auto", "cpu" or "cuda".
        targets: columns of the corpus for the model's targets, in the model's order, separated by commas or as a
            list; by default those of their names.
        columns: columns of a table under other names than ours, as in training; beside those of the run if the
            corpus is that of the run.
        features: features in place of a spectrogram, as in training; by default those of the run.

    Raises:
        ValueError: a value is out of range.

    Example:
        >>> config = EvaluateConfig("runs/emodb", data="path/to/ravdess", labels="map.yaml", test_speakers="01,02")
        >>> config.test_speakers
        ['01', '02']
    """

    checkpoint: str
    data: str = ""
    labels: str = ""
    only_known: bool = False
    part: Literal["all", "train", "valid", "test"] = "all"
    test_speakers: str | int | list[str | int] = ""
    out: Path = Path("runs/evaluate")
    batch_size: int = 32
    skip_bad: bool = False
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    cache_dir: str = ""
    workers: int = -1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    targets: str | list[str] = ""
    columns: dict | str = ""
    features: str = ""

    def __post_init__(self):
        # These mean the same as in training, where they are checked.
        shared = (
            "out",
            "test_speakers",
            "batch_size",
            "cache",
            "cache_dir",
            "workers",
            "device",
            "targets",
            "columns",
        )
        checked = TrainConfig(**{name: getattr(self, name) for name in shared})
        self.out, self.test_speakers, self.storage = Path(self.out), checked.test_speakers, checked.storage()
        self.targets, self.columns = checked.targets, checked.columns


class Origin(NamedTuple):
    """Training of a checkpoint, as far as it and its run folder tell.

    Attributes:
        data: the option; ``""`` if unknown.
        name: name of the corpus; ``""`` if unknown.
        digest: that of the dataset; ``""`` if unknown.
        config: options of the run that say which utterances it has and how they are divided; None if unknown.
    """

    data: str
    name: str
    digest: str
    config: TrainConfig | None

    @property
    def held_out(self) -> dict | None:
        """Return the options of the split; None if unknown."""
        return None if self.config is None else self.config.held_out


class Chosen(NamedTuple):
    """The utterances that are evaluated, with the classes of the model as labels.

    Attributes:
        dataset: the utterances.
        split: parts of the run if the corpus is that of the run, else None.
        notice: sentence that restricts the result, or ``""``.
    """

    dataset: Dataset
    split: Split | None
    notice: str


def evaluate(config: EvaluateConfig, report: Callable[[str], None] = lambda line: None) -> dict:
    """Evaluate a saved model on a corpus, and write ``predictions.csv`` and ``summary.json`` into ``config.out``.

    Args:
        config: options of the evaluation.
        report: called with lines about the corpus and the progress.

    Returns:
        The content of ``summary.json``: ``protocol``, a sentence; ``notice``, a sentence that restricts the result,
        or ``""``; ``labels``, the class of each label of the corpus; and what
        :func:`ser_fast.training.speakers.by_speaker` returns.

    Raises:
        CheckpointError: there is no checkpoint.
        ValueError: the options do not fit the checkpoint or the corpus; raised before any audio is read, except for a
            ``part`` if the corpus is not that of the run and has none.
        UnreadableError: utterances cannot be read and ``skip_bad`` is false.
    """
    return results(config, report).summary


def results(config: EvaluateConfig, report: Callable[[str], None] = lambda line: None) -> Results:
    """Run :func:`evaluate`; return also the corpus and the predictions."""
    path = find_checkpoint(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model, origin = checkpoint.build(path), _origin(path, checkpoint)
    if not (config.data or origin.data):
        raise ValueError(f"data is not given, and {path} does not lie in the folder of a run; it must name a corpus")
    device = distributed.device(config.device)
    features = config.features or (origin.config.features if origin.config else "")
    source, doubt = source_of(path, checkpoint, model, features, device)
    corpus, of_run = _corpus(config, origin, _targets(config, checkpoint))
    mapped = _mapped(config, checkpoint.classes, corpus, origin.config.labels if origin.config else {}, of_run)
    _index(config, corpus, mapped)
    if config.part != "all" and origin.held_out is None and not parts(corpus):
        found = f"part is {config.part}, but {corpus.name} has no parts of its own, and {path} does not lie"
        raise ValueError(f"{found} in the folder of a run; it must be all")
    if source is not None:
        source.check(corpus.utterances)
    free = ("features", "batch_size", "skip_bad", "cache", "cache_dir", "workers", "device")
    required = ("checkpoint", "only_known")
    with RunFolder(config.out, asdict(config), required=required, free=("out", *free), later=LATER) as folder:
        for line in corpus.summary():
            report(line)
        if doubt:
            report(doubt)
        rate = model.spectrogram.sample_rate
        corpus, dataset = read_inputs(source, model.spectrogram, corpus, config.skip_bad, report, config.storage)
        for line in summarise(dataset.skipped):
            report(f"skipped: {line}")
        chosen = _chosen(config, checkpoint.classes, origin, corpus, dataset, mapped)
        folder.begin()
        if dataset.skipped:
            folder.write(LIST, listing(dataset.skipped))
        scale, targets = corpus.sentiment_scale, checkpoint.targets
        task = task_of(checkpoint.classes, "auto", sentiment_scale=scale, targets=targets)
        outputs = _outputs(model.to(device), task, chosen.dataset, config, device)
        labels, index = chosen.dataset.labels, range(len(chosen.dataset.labels))
        predictions = described(chosen.dataset, index, task, outputs)
        folder.write("predictions.csv", to_csv(predictions, checkpoint.classes, targets))
        trained = f" (trained on {origin.name})" if origin.name else ""
        summary = {
            "protocol": f"{checkpoint.model} of {path}{trained} on {_evaluated(config, corpus, mapped, chosen)}",
            "notice": chosen.notice,
            "data": corpus.name,
            "model": checkpoint.model,
            "classes": checkpoint.classes,
            **({"targets": targets} if targets else {}),
            "labels": mapped,
            "corpus_summary": corpus.summary(),
            "corpus": dataset.digest(),
            "utterances": len(labels),
            "skipped": dataset.skipped,
            "passed_over": corpus.passed_over,
            **by_speaker(task, chosen.dataset.speakers, labels, task.predict(outputs)),
        }
        folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
    return Results(summary, corpus, chosen.dataset, rate, [Predicted("", path, index, predictions)])


def _origin(path: Path, checkpoint: Checkpoint) -> Origin:
    options, summary = (_json(path.with_name(name)) for name in ("config.json", "summary.json"))
    known = summary | checkpoint.progress
    names, config = {*TrainConfig().held_out, "data", *LATER}, None
    if names <= {*options, *LATER}:
        try:
            config = TrainConfig(**{name: (LATER | options)[name] for name in names})
        except (TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path.with_name('config.json')} is not of a run: {error}") from error
    texts = (str(found.get(name, "")) for found, name in ((options, "data"), (known, "data"), (known, "corpus")))
    return Origin(*texts, config)


def _json(path: Path) -> dict:
    """Return the object in a file of a run folder; empty if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _targets(config: EvaluateConfig, checkpoint: Checkpoint) -> list[str]:
    """Return the columns of the corpus that hold the model's targets; empty for labels, or the value."""
    if not config.targets:
        return [] if checkpoint.targets == [VALUE] else checkpoint.targets
    found = f"targets is {', '.join(config.targets)}, but the model predicts {', '.join(checkpoint.names)}"
    require(bool(checkpoint.targets), found, "omitted for classes")
    require(len(config.targets) == len(checkpoint.targets), found, "a column for each")
    return config.targets


def _corpus(config: EvaluateConfig, origin: Origin, targets: list[str]) -> tuple[Corpus, bool]:
    """Return the corpus, and whether it is that of the run, whose map of labels is then applied."""
    if origin.config is not None and config.data in ("", origin.data):
        # A checkpoint does not name the target "value", which the run may have chosen beside a label.
        run = origin.config
        columns = run.columns | config.columns
        return corpus_of(replace(run, targets=targets or run.targets, columns=columns)), True
    return load_corpus(config.data or origin.data, targets, config.columns), False


def _mapped(
    config: EvaluateConfig, classes: list[str], corpus: Corpus, run: dict[str, str | None], applied: bool
) -> dict[str, str | None]:
    """Return the class of each label of the corpus, None to leave it out; empty for a regression.

    Args:
        config: options of the evaluation.
        classes: classes of the model.
        corpus: the corpus.
        run: map of the run. One file may serve both: its lines for labels that the corpus lacks are passed over.
        applied: the map of the run is applied to the corpus, so all of its lines are passed over.

    Raises:
        ValueError: only one of corpus and model has classes, or a label has none.
    """
    if classes and corpus.classes:
        given = read_map(Path(config.labels)) if config.labels else {}
        own = {utterance.label for utterance in corpus.utterances}
        used = {
            label for label, name in given.items() if (label, name) in run.items() and (applied or label not in own)
        }
        given = {label: name for label, name in given.items() if label not in used}
        return map_labels([utterance.label for utterance in corpus.utterances], classes, given)
    if classes or corpus.classes:
        has, lacks = ("values", "classes") if classes else ("classes", "values")
        raise ValueError(f"data is {corpus.name}, which has {has}; it must have {lacks}, as the model predicts them")
    for name in ("labels", "only_known"):
        value = getattr(config, name)
        require(not value, f"{name} is {value}, but data has values, not classes", "omitted")
    return {}


def _index(
    config: EvaluateConfig, corpus: Corpus, mapped: dict[str, str | None], part: list[int] | None = None
) -> list[int]:
    """Return the utterances, of a part or of all, that have a class and the speakers that are named.

    Raises:
        ValueError: there are none, or a speaker does not occur.
    """
    own = speakers(corpus)
    unknown = sorted(set(config.test_speakers) - set(own))
    require(not unknown, f"test_speakers names {unknown}", f"among {sorted(set(own))}")
    index = [
        i
        for i in (range(len(own)) if part is None else part)
        if (not config.test_speakers or own[i] in config.test_speakers)
        and (not mapped or mapped[corpus.utterances[i].label] is not None)
    ]
    if not index:
        raise ValueError("part, test_speakers and labels leave no utterance; they must leave some")
    return index


def _chosen(
    config: EvaluateConfig,
    classes: list[str],
    origin: Origin,
    corpus: Corpus,
    dataset: Dataset,
    mapped: dict[str, str | None],
) -> Chosen:
    same = dataset.digest() == origin.digest
    split = split_corpus(corpus, **origin.held_out) if same and origin.held_out is not None else None
    part = None
    if config.part != "all" and split is not None:
        part = getattr(split, config.part)
    elif config.part != "all":
        own = parts(corpus)
        found = f"part is {config.part}, but {corpus.name} is not the corpus of the run and has no parts of its own"
        require(bool(own), found, "all")
        part = [i for i, name in enumerate(own) if name == config.part]
    index = _index(config, corpus, mapped, part)
    notice = ""
    if same and split is None:
        notice = "the model was trained on this corpus, so its training utterances may be among these"
    elif not same and origin.name and corpus.name == origin.name:  # with other labels, targets or files
        notice = "the model was trained on a corpus of this name, so its training utterances may be among these"
    elif split is not None and (trained := len({*index} & {*split.train, *split.valid})):
        notice = f"{trained} of the {len(index)} utterances are of the run's training or validation part"
    chosen = dataset.part(index)
    if classes:
        chosen.labels = [classes.index(mapped[corpus.utterances[i].label]) for i in index]
        chosen.classes = classes
    return Chosen(chosen, split, notice)


def _outputs(model: nn.Module, task: Task, dataset: Dataset, config: EvaluateConfig, device: torch.device) -> Tensor:
    """Return the outputs ``[N, outputs]``; with ``only_known`` minus infinity for classes that do not occur."""
    index = range(len(dataset.labels))
    features = CachedFeatures(model, dataset, index) if hasattr(model, "utterance_features") else None
    outputs, _ = predict(model, dataset.batches(index, config.batch_size), task, device, features)
    if config.only_known:
        outputs[:, sorted({*range(task.outputs)} - {*dataset.labels})] = -torch.inf
    return outputs


def _evaluated(config: EvaluateConfig, corpus: Corpus, mapped: dict[str, str | None], chosen: Chosen) -> str:
    """Return the corpus, its utterances, and how they were chosen and decided, as a phrase."""
    labels, classes, count = chosen.dataset.labels, chosen.dataset.classes, len(set(chosen.dataset.speakers))
    said = [
        f"{corpus.name}: {len(labels)} of {len(corpus.utterances)} utterances of {count} speaker{'s' * (count > 1)}"
    ]
    if config.part != "all":
        of = "its own division" if chosen.split is None else f"the run ({chosen.split.protocol})"
        said.append(f"{config.part} part of {of}")
    changed = described_map(mapped, Counter(utterance.label for utterance in corpus.utterances))
    said += [changed] if changed else []
    if absent := [name for number, name in enumerate(classes) if number not in set(labels)]:
        decided = "excluded from the decision: " if config.only_known else ""
        said.append(f"{decided}no utterance of {', '.join(absent)}")
    return "; ".join(said)
