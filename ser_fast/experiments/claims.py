"""Experiments `claims` (the papers' orderings tested on paired folds) and `protocols` (effect of the protocol)."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ser_fast.experiments import figures, published
from ser_fast.experiments.paper2 import OURS, compared
from ser_fast.experiments.settings import CGRU_LSTM, Runner
from ser_fast.experiments.tables import Result, Table, by_fold, ends, over_speakers, percent, verdict
from ser_fast.training import metrics
from ser_fast.training.predictions import read_csv


class Claim(NamedTuple):
    """A claim that one system is better than another, with the paper's difference in points, or None if not given."""

    words: str
    better: str
    worse: str
    paper: float | None


PAPER_1 = (
    Claim("attention helps", "CGRU", "CGRU without attention", None),
    Claim("GRU is above LSTM", "CGRU", CGRU_LSTM, None),
    Claim("CGRU is above Attention-LSTM", "CGRU", "Attention-LSTM", None),
    Claim("CGRU is above DCNN-LSTM", "CGRU", "DCNN-LSTM", None),
)


def compare(better: dict, worse: dict) -> dict:
    """Compare two summaries' UA by the paired t test over their folds.

    Returns:
        ``ser_fast.training.metrics.paired`` of the folds, and the ``verdict``.

    Raises:
        ValueError: if the folds differ.
    """
    a, b = (by_fold(summary, "recall") for summary in (better, worse))
    if a.keys() != b.keys():
        raise ValueError(f"folds are {', '.join(b)}; they must be those of the other system, {', '.join(a)}")
    found = metrics.paired(list(a.values()), [b[fold] for fold in a])
    return found | {"verdict": verdict(found)}


def claims(runner: Runner) -> Result:
    """Test every ordering of systems that the papers claim."""
    known = compared(runner)
    theirs = published.COMPARISON["Emo-DB"]
    stated = [*PAPER_1, *(
        Claim(f"BiGRU-MHA is above {name}", OURS, name, round(theirs[OURS] - theirs[name], 2))
        for name in known
        if name != OURS
    )]  # fmt: skip
    names = dict.fromkeys(name for claim in stated for name in (claim.better, claim.worse))
    summaries = {name: runner.cross_validate(known.get(name, name)) for name in names}
    found = [compare(summaries[claim.better], summaries[claim.worse]) for claim in stated]
    rows = [
        [claim.words, f"{100 * result['mean']:+.1f}", ends(result),
         "none" if result["p"] is None else f"{result['p']:.3g}", result["verdict"],
         published.NOT_GIVEN if claim.paper is None else f"{claim.paper:+.2f}"]
        for claim, result in zip(stated, found)
    ]  # fmt: skip
    by_verdict: dict[str, list[str]] = {}
    for claim, result in zip(stated, found):
        by_verdict.setdefault(result["verdict"], []).append(claim.words)
    summary = summaries[OURS]
    title = f"Differences of UA on {summary['data']} with 95 % intervals; {summary['protocol']}"
    count = len(by_fold(summary, "recall"))
    return Result(
        Table(["claim", "difference of UA", "95 % interval", "p", "verdict", "paper, Emo-DB, accuracy"], rows),
        lambda path: figures.intervals(path, [f"{claim.better} −\n{claim.worse}" for claim in stated], found,
                                       "difference of UA (points)", title, zero=True,
                                       marks={"paper's, of accuracy": [claim.paper for claim in stated]}),
        {"claims": [claim._asdict() | result for claim, result in zip(stated, found)], "systems": summaries},
        summary["protocol"],
        [f"{word.capitalize()}: {'; '.join(names)}." for word, names in by_verdict.items()],
        [
            f"Paired t test over {count} folds; a fold's difference is the mean of {runner.folds.seeds} seeds.",
            "Differences are in points. Confirmed: the interval is above 0; contradicted: below 0; not confirmed: it "
            "contains 0.",
            "Folds share training data, so the intervals are too narrow; the p values are not "
            f"corrected for {len(stated)} tests.",
            "Paper 1 prints no UA for these orderings. CGRU with an LSTM is the same network with the other cell.",
        ],
    )  # fmt: skip


def protocols(runner: Runner) -> Result:
    """Compare one recipe with whole speakers left out and with random folds, which share speakers."""
    name = runner.recipe
    apart, shared = replace(runner.folds, protocol="loso"), replace(runner.folds, protocol="random")
    summaries = {"whole speakers left out": runner.cross_validate(name, apart),
                 "random folds": runner.cross_validate(name, shared)}  # fmt: skip
    loso, random = summaries.values()
    classes = loso["classes"]
    uas = [speaker_uas(runner.folder(name, folds), classes) for folds in (apart, shared)]
    means = [statistics.fmean(by_fold(summary, "recall").values()) for summary in (loso, random)]
    gap = 100 * (means[1] - means[0])
    paper = published.HEADS["Emo-DB"][8]
    rows = [
        [f"speaker {speaker}", percent(uas[0][speaker]), percent(uas[1][speaker]),
         f"{100 * (uas[1][speaker] - uas[0][speaker]):+.1f}", published.NOT_GIVEN]
        for speaker in uas[0]
    ]  # fmt: skip
    deviations = [summary["folds"]["recall"][1] for summary in (loso, random)]
    both = [f"{percent(mean)} ± {percent(std)}" for mean, std in zip(means, deviations)]
    rows.append(["mean ± std of the folds", *both, f"{gap:+.1f}", f"{paper:.2f}"])
    rows.append(["95 % interval over speakers", *map(over_speakers, (loso, random)), "none", published.NOT_GIVEN])
    pooled = [summary["pooled"]["recall"] for summary in (loso, random)]
    rows.append(["all predictions", *map(percent, pooled), f"{100 * (pooled[1] - pooled[0]):+.1f}",
                 published.NOT_GIVEN])  # fmt: skip
    described = f"{loso['protocol']}, and {random['protocol']}"
    series = {key: [100 * values[speaker] for speaker in uas[0]] for key, values in zip(summaries, uas)}
    lines = {"paper, whole speakers left out": paper} | {
        f"mean, {key}": 100 * mean for key, mean in zip(summaries, means)
    }
    return Result(
        Table(["UA %", *summaries, "gap, points", "paper, Emo-DB, whole speakers left out"], rows),
        lambda path: figures.bars(path, list(uas[0]), series, "UA (%)",
                                  f"{Path(name).stem} on {loso['data']}: {described}", lines=lines),
        {"systems": summaries, "speakers": dict(zip(summaries, uas)), "gap": gap},
        described,
        [f"The paper's {paper:.2f} is {paper - 100 * means[0]:+.1f} points from our mean with whole speakers left "
         f"out and {paper - 100 * means[1]:+.1f} from that with random folds. The gap between the two protocols is "
         f"{gap:+.1f} points."],
        ["With random folds, a speaker's UA is over predictions by models that were trained on other utterances of "
         "that speaker.",
         "The recipe is ours, not the paper's; the paper's number is its best: 8 heads, table 3."],
    )  # fmt: skip


def speaker_uas(runs: Path, classes: list[str]) -> dict[str, float]:
    """Return the UA of each speaker over all predictions of the cross-validation in the folder ``runs``."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for path in sorted(runs.glob("seed*/fold*/predictions.csv")):
        for row in read_csv(path, classes):
            pairs.setdefault(row.speaker, []).append((classes.index(row.truth), classes.index(row.predicted)))
    return {name: metrics.classification(*zip(*pairs[name]), classes)["recall"] for name in sorted(pairs)}
