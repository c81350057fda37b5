"""Experiments: the papers' tables and figures, ours beside theirs, from cross-validations of their systems."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ser_fast.experiments import claims, paper1, paper2, published, timing
from ser_fast.experiments.settings import EMBEDDED, Runner, Settings
from ser_fast.experiments.tables import Result, write
from ser_fast.reports.terminal import print_table, say

__all__ = ["EXPERIMENTS", "Experiment", "Settings", "run"]


class Experiment(NamedTuple):
    """One experiment of the papers.

    Args:
        title: title of its table.
        source: the papers' table, figure or experiment that it repeats.
        recipe: name of the recipe that it trains by.
        run: trains the systems and returns the result.
        papers: notes on the papers, printed below the table.
        inconsistencies: contradictions within the papers' own numbers, printed below the table.
    """

    title: str
    source: str
    recipe: str
    run: Callable[[Runner], Result]
    papers: tuple[str, ...]
    inconsistencies: tuple[str, ...] = ()


_ONE, _TWO = (published.PAPER_1,), (published.PAPER_2,)
EXPERIMENTS = {
    "attention": Experiment(
        "CGRU with and without attention", "paper 1, experiment 1", "paper1", paper1.attention, _ONE
    ),
    "lstm": Experiment("F1 of CGRU and of the LSTM systems", "paper 1, experiment 2", "paper1", paper1.lstm, _ONE),
    "time": Experiment("Training time", "paper 1, experiment 2", "paper1", timing.timing, _ONE),
    "optimizers": Experiment(
        "Optimiser and learning rate", "paper 1, experiment 3", "paper1", paper1.optimizers, _ONE
    ),
    "spectrograms": Experiment(
        "One sentence under four emotions, and the loss", "paper 1, figures", "paper1", paper1.spectrograms, _ONE
    ),
    "heads": Experiment(
        "Number of heads", "paper 2, table 3 and figure 4", "paper2_emodb", paper2.heads, _TWO,
        (published.HEAD_8, published.GAIN),
    ),
    "comparison": Experiment(
        "Nine systems", "paper 2, table 6", "paper2_emodb", paper2.comparison, _TWO,
        (published.GAIN, published.ABOVE_BOTH, published.COUNTS),
    ),
    "emotions": Experiment(
        "Accuracy of each emotion", "paper 2, tables 4 and 5", "paper2_emodb", paper2.emotions, _TWO,
        (published.ABOVE_BOTH, published.MISPLACED, published.COUNTS),
    ),
    "sentiment": Experiment("Sentiment as a value", "paper 2, table 7", "paper2_emodb", paper2.sentiment, _TWO),
    "anova": Experiment(
        "Analysis of variance", "paper 2, analysis of variance", "paper2_emodb", paper2.anova, _TWO,
        (published.FREEDOM,),
    ),
    "protocols": Experiment(
        "Effect of the protocol", "paper 2, table 3", "own", claims.protocols, _TWO,
        (published.HEAD_8, published.ABOVE_BOTH, published.COUNTS),
    ),
    "claims": Experiment(
        "The papers' orderings", "paper 1, experiments 1 and 2; paper 2, table 6", "paper2_emodb", claims.claims,
        _ONE + _TWO, (published.GAIN,),
    ),
}  # fmt: skip


def run(name: str, settings: Settings) -> Result:
    """Run an experiment, or resume an interrupted one, and write ``NAME.md``, ``.csv``, ``.json`` and ``.png``.

    Args:
        name: key of ``EXPERIMENTS``.
        settings: data, output folder, scale and training options.

    Returns:
        The result, as it was written.

    Raises:
        ValueError: if ``name`` is unknown or the corpus is of the wrong kind (classes or values).
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment is {name!r}; it must be one of {', '.join(EXPERIMENTS)}")
    if name == "sentiment" and settings.data == "synthetic":
        settings = replace(settings, data="synthetic-sentiment")
    experiment = EXPERIMENTS[name]
    runner = Runner(settings, experiment.recipe)
    if not runner.corpus.classes and name != "sentiment":
        raise ValueError(f"data is {settings.data}, a corpus of values; {name} needs one of classes")
    result = experiment.run(runner)
    sections = {
        "Protocol": [_protocol(runner, result)],
        "The paper's claims": result.verdicts,
        "Notes": [*result.notes, *experiment.papers],
        "Differences from the recipe": [f"Scale {settings.scale}. {line}." for line in runner.differences()],
        "Inconsistencies in the paper's numbers": list(experiment.inconsistencies),
    }
    about = {"experiment": name, "source": experiment.source, "data": runner.corpus.name, "scale": settings.scale}
    title = f"{experiment.title} ({experiment.source})"
    write(name, title, sections, result, about, settings.out)
    print_table(f"{title}: {_protocol(runner, result)}", *result.table)
    for verdict in result.verdicts:
        say(verdict)
    say(f"table: {settings.out / name}.md")
    return result


def _protocol(runner: Runner, result: Result) -> str:
    """Return a sentence with the data, the protocol and the number of seeds."""
    data = runner.corpus.name
    if runner.settings.data in EMBEDDED:
        data = f"{data}, embedded synthetic voices: shows that it runs, says nothing about speech"
    return f"Data: {data}. Protocol: {result.protocol}. Seeds: {runner.folds.seeds}."
