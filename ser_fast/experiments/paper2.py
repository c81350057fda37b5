"""Experiments of the BiGRU-MHA paper."""

from ser_fast.experiments import figures, published
from ser_fast.experiments.settings import Runner, cross_validate_all, load_recipe
from ser_fast.experiments.tables import Result, Table, ends, holds, interval, over_speakers, percent, spread
from ser_fast.models.systems import PAPER_2, PAPER_2_HEADS
from ser_fast.reports import html
from ser_fast.reports.figures import confusion
from ser_fast.training import metrics

CORPORA = ("IEMOCAP", "Emo-DB")
OURS = "Bi-GRU + MHA"
INTERVALS = (
    "The 95 % intervals are over the folds, or over the speakers, each the mean of its seeds. Folds share training "
    "data, so the intervals are too narrow."
)


def compared(runner: Runner) -> dict[str, str]:
    """Return table 6's systems with their names in :mod:`ser_fast.models.systems`.

    They differ for the paper's own system if the recipe does not have 8 heads.
    """
    recipe = load_recipe(runner.recipe)
    heads = recipe.get("bigru_mha", {}).get("num_heads", 8)
    return {name: name for name in PAPER_2} | ({} if heads == 8 else {OURS: f"{OURS}, {heads} heads"})


def heads(runner: Runner) -> Result:
    """Compare UA by the number of heads (table 3, figure 4)."""
    found = cross_validate_all(runner, PAPER_2_HEADS)
    numbers = dict(zip(PAPER_2_HEADS, published.HEADS["Emo-DB"]))
    spans = {name: interval(summary, "recall") for name, summary in found.items()}
    rows = [
        [name, spread(summary, "recall"), ends(spans[name]), over_speakers(summary),
         percent(summary["pooled"]["recall"]),
         *(f"{published.HEADS[corpus][numbers[name]]:.2f}" for corpus in CORPORA)]
        for name, summary in found.items()
    ]  # fmt: skip
    protocol = found["Bi-GRU"]["protocol"]
    best = max(spans, key=lambda name: spans[name]["mean"])
    means = [spans[name]["mean"] for name in spans]
    peak = means.index(max(means))
    rises = 0 < peak < len(means) - 1 and means == sorted(means[: peak + 1]) + sorted(means[peak + 1 :])[::-1]
    curves = {f"paper, {corpus}": list(published.HEADS[corpus].values()) for corpus in CORPORA[::-1]}
    title = f"Heads of BiGRU-MHA on {found['Bi-GRU']['data']}; {protocol}"
    return Result(
        Table(["system", "UA % ± std of the folds", "95 % interval", "over speakers", "UA % of all predictions",
               *(f"paper, {corpus}" for corpus in CORPORA)], rows),
        lambda path: figures.intervals(path, ["none", "4", "8", "16", "32"], list(spans.values()), "UA (%)", title,
                                       curves=curves),
        {"systems": found, "intervals": spans},
        protocol,
        [f"UA rises with the heads, then falls (figure 4): {holds(rises)}. Highest UA: {best}."],
        [INTERVALS],
    )  # fmt: skip


def comparison(runner: Runner) -> Result:
    """Compare the nine systems of table 6."""
    names = compared(runner)
    found = {name: runner.cross_validate(known) for name, known in names.items()}
    spans = {name: interval(summary, "recall") for name, summary in found.items()}
    rows = [
        [name, spread(summary, "accuracy"), spread(summary, "recall"), ends(spans[name]), over_speakers(summary),
         f"{summary['parameters']:,}", *(f"{published.COMPARISON[corpus][name]:.2f}" for corpus in CORPORA)]
        for name, summary in found.items()
    ]  # fmt: skip
    summary = found[OURS]
    better = [name for name in found if spans[name]["mean"] > spans[OURS]["mean"]]
    title = f"The systems of table 6 on {summary['data']}; {summary['protocol']}"
    return Result(
        Table(["system", "accuracy % ± std", "UA % ± std", "95 % interval of UA", "over speakers", "parameters",
               *(f"paper's accuracy, {corpus}" for corpus in CORPORA)], rows),
        lambda path: figures.bars(
            path, list(found),
            {key: [100 * entry["folds"][name][0] for entry in found.values()]
             for name, key in (("accuracy", "accuracy, ours"), ("recall", "UA, ours"))},
            "%", title,
            marks={"paper's accuracy, Emo-DB": [published.COMPARISON["Emo-DB"][name] for name in found]},
        ),
        {"systems": found, "intervals": spans},
        summary["protocol"],
        [f"{OURS} is the best of the nine: {holds(not better)}."
         + (f" Higher mean UA: {', '.join(better)}." if better else "")
         + " The experiment `claims` tests each difference."],
        [INTERVALS, "The paper does not say whether its accuracy is unweighted (UA), so both are given."],
    )  # fmt: skip


def emotions(runner: Runner) -> Result:
    """Measure BiGRU-MHA's precision, accuracy and recall, and its accuracy of each emotion (tables 4 and 5)."""
    summary = runner.cross_validate(compared(runner)[OURS])
    pooled, classes = summary["pooled"], summary["classes"]
    paper = published.EMOTIONS
    order = [*(name for name in paper["IEMOCAP"] if name in classes),
             *(name for name in classes if name not in paper["IEMOCAP"])]  # fmt: skip

    def given(corpus: str, emotion: str) -> str:
        value = paper[corpus].get(emotion)
        return published.NOT_GIVEN if value is None else f"{value:.2f}"

    rows = [
        [emotion, percent(pooled["per_class"][emotion]["recall"]), percent(pooled["per_class"][emotion]["precision"]),
         str(pooled["per_class"][emotion]["support"]), *(given(corpus, emotion) for corpus in CORPORA)]
        for emotion in order
    ]  # fmt: skip
    overall = [
        [name, spread(summary, name), over_speakers(summary, name), percent(pooled[name]),
         *(f"{published.OVERALL[corpus][name]:.2f}" for corpus in CORPORA)]
        for name in ("precision", "accuracy", "recall")
    ]  # fmt: skip
    columns = [f"paper, column {corpus}" for corpus in CORPORA]
    title = f"BiGRU-MHA on {summary['data']}, UA {pooled['recall']:.1%} of all predictions\n{summary['protocol']}"
    return Result(
        Table(["emotion", "accuracy (recall) %", "precision %", "utterances", *columns], rows),
        lambda path: confusion(pooled["confusion"], classes, path, title),
        {"systems": {OURS: summary}},
        summary["protocol"],
        [],
        ["An emotion's accuracy is its recall, over the predictions of all folds together.",
         "The mean recall is the unweighted accuracy (UA)."],
        {"Precision, accuracy and recall (table 4)":
            Table(["%", "mean ± std of the folds", "95 % interval over speakers", "all predictions", *columns],
                  overall)},
    )  # fmt: skip


def sentiment(runner: Runner) -> Result:
    """Measure BiGRU-MHA as a regression of sentiment (table 7)."""
    if runner.corpus.classes:
        raise ValueError(
            f"data is {runner.settings.data}, a corpus of classes; it must be synthetic-sentiment or a manifest with "
            "values, which `ser-fast convert ch_sims` and `ser-fast convert mosi` write"
        )
    name = compared(runner)[OURS]
    if runner.corpus.utterances[0].part:
        runs = []
        first = runner.configure(runner.system(name))[0].seed
        for seed in range(first, first + runner.folds.seeds):
            summary = runner.train(name, fold=False, seed=seed)[1]
            runs.append({"seed": seed, "fold": "the test part", "metrics": summary["best"]})
        protocol, folds = summary["protocol"], "runs"
    else:
        summary = runner.cross_validate(name)
        runs, protocol, folds = summary["runs"], summary["protocol"], "folds"
    shared = set.intersection(*(set(run["metrics"]) for run in runs))  # runs of older versions lack some measures
    shown = {key: label for key, label in html.measures(runs[0]["metrics"]).items() if key in shared}
    spans = {
        key: metrics.interval([run["metrics"][key] for run in runs], *metrics.RANGES.get(key, ())) for key in shown
    }
    paper = published.SENTIMENT

    def given(corpus: str, key: str) -> str:
        if key not in paper[corpus]:
            return published.NOT_GIVEN
        return f"{paper[corpus][key]:.3f}" if key in metrics.AGREEMENT else f"{paper[corpus][key]:.2f}"

    rows = []
    for key, label in shown.items():
        span = spans[key]
        between = (
            "one run" if span["low"] is None else " to ".join(html.number(key, span[e]) for e in ("low", "high"))
        )
        rows.append([label, html.number(key, span["mean"]), between, *(given(corpus, key) for corpus in paper)])
    shares = [key for key in shown if key not in metrics.AGREEMENT]
    return Result(
        Table(["measure", f"ours, mean of {len(runs)} {folds}", "95 % interval",
               *(f"paper, {corpus}" for corpus in paper)], rows),
        lambda path: figures.bars(
            path, [shown[key] for key in shares], {"ours": [100 * spans[key]["mean"] for key in shares]}, "%",
            f"BiGRU-MHA on {runner.corpus.name}; {protocol}",
            marks={f"paper, {corpus}": [paper[corpus][key] for key in shares] for corpus in paper},
        ),
        {"runs": runs},
        protocol,
        [],
        ["Acc-2, F1 and Acc-5 use the thresholds of `ser_fast.training.metrics.regression`; the paper does not "
         "define them.",
         "The loss is the mean absolute error, not the recipe's."],
    )  # fmt: skip


def anova(runner: Runner) -> Result:
    """Test whether the systems' UA differs, by one-way analysis of variance over the runs."""
    found = {name: runner.cross_validate(known) for name, known in compared(runner).items()}
    values = {name: [run["metrics"]["recall"] for run in summary["runs"]] for name, summary in found.items()}
    tests = {
        f"{OURS} against Bi-GRU": metrics.anova([values[OURS], values["Bi-GRU"]]),
        "all nine systems of table 6": metrics.anova(list(values.values())),
    }
    rows = []
    for name, test in tests.items():
        f, p = ("none" if test[key] is None else f"{test[key]:.4g}" for key in ("f", "p"))
        paper = [
            f"F({a}, {b}) = {value}, p < 0.05" for value, (a, b) in (published.ANOVA[corpus] for corpus in CORPORA)
        ]
        rows.append([name, f"{f}", "({}, {})".format(*test["df"]), p, *paper])
    rows[1][-2:] = [published.NOT_GIVEN] * 2  # one degree of freedom between groups: the paper compares two
    protocol = found[OURS]["protocol"]
    pair = tests[f"{OURS} against Bi-GRU"]
    differ = pair["p"] is not None and pair["p"] < 0.05
    spans = [metrics.interval(runs, *metrics.RANGES["recall"]) for runs in values.values()]
    title = f"UA of every run on {found[OURS]['data']}; {protocol}"
    return Result(
        Table(["groups", "F", "degrees of freedom", "p", *(f"paper, {corpus}" for corpus in CORPORA)], rows),
        lambda path: figures.intervals(path, list(values), spans, "UA (%)", title, points=list(values.values())),
        {"tests": tests, "systems": found},
        protocol,
        [f"The systems differ at p < 0.05: {holds(differ)} for {OURS} against Bi-GRU."],
        ["Folds are not independent: they share training data, and a speaker that is difficult for one system is "
         "difficult for the others. One-way analysis of variance ignores both; `claims` pairs the folds.",
         "The paper does not say which groups it compared; one degree of freedom means two groups."],
    )  # fmt: skip
