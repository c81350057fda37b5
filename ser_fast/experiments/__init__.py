"""The two papers' experiments, each a few cross-validations, a table with the papers' numbers, and a figure."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ser_fast.experiments import claims, paper1, paper2, published, timing
from ser_fast.experiments.settings import EMBEDDED, Lab, Settings
from ser_fast.experiments.tables import Result, write
from ser_fast.reports.terminal import print_table, say

__all__ = ["EXPERIMENTS", "Experiment", "Settings", "run"]


class Experiment(NamedTuple):
    """An experiment: its title, where the papers have it, whose recipe it trains by, and what it does.

    ``papers`` is what is to be known of these papers, and ``odd`` what does not fit in their own numbers.
    """

    title: str
    source: str
    recipe: str
    run: Callable[[Lab], Result]
    papers: tuple[str, ...]
    odd: tuple[str, ...] = ()


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
        "What the protocol makes", "paper 2, table 3", "own", claims.protocols, _TWO,
        (published.HEAD_8, published.ABOVE_BOTH, published.COUNTS),
    ),
    "claims": Experiment(
        "The papers' orderings", "paper 1, experiments 1 and 2; paper 2, table 6", "paper2_emodb", claims.claims,
        _ONE + _TWO, (published.GAIN,),
    ),
}  # fmt: skip


def run(name: str, settings: Settings) -> Result:
    """Run an experiment, or what an interrupted one left, and write ``NAME.md``, ``.csv``, ``.json`` and ``.png``.

    Raises:
        ValueError: a name that no experiment has, or options that do not fit the corpus.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment is {name!r}; it must be one of {', '.join(EXPERIMENTS)}")
    if name == "sentiment" and settings.data == "synthetic":
        settings = replace(settings, data="synthetic-sentiment")
    experiment = EXPERIMENTS[name]
    lab = Lab(settings, experiment.recipe)
    if not lab.corpus.classes and name != "sentiment":
        raise ValueError(f"data is {settings.data}, a corpus of values; {name} needs one of classes")
    result = experiment.run(lab)
    said = {
        "Protocol": [_what(lab, result)],
        "What the paper claims": result.verdicts,
        "What to know": [*result.notes, *experiment.papers],
        "What differs from the recipe": [f"Scale {settings.scale}. {sentence}." for sentence in lab.differences()],
        "What does not fit in the paper's own numbers": list(experiment.odd),
    }
    described = {"experiment": name, "source": experiment.source, "data": lab.corpus.name, "scale": settings.scale}
    title = f"{experiment.title} ({experiment.source})"
    write(name, title, said, result, described, settings.out)
    print_table(f"{title}: {_what(lab, result)}", *result.table)
    for verdict in result.verdicts:
        say(verdict)
    say(f"table: {settings.out / name}.md")
    return result


def _what(lab: Lab, result: Result) -> str:
    data = lab.corpus.name
    if lab.settings.data in EMBEDDED:
        data = f"{data}, embedded synthetic voices: shows that it runs, says nothing about speech"
    return f"Data: {data}. Protocol: {result.protocol}. Seeds: {lab.folds.seeds}."
