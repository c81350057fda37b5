"""Evaluation of a saved model as the command line starts it, with a figure and a report."""

import numpy as np

from ser_fast.data.failures import listed
from ser_fast.reports import corpus_tables, figures, html
from ser_fast.reports.runs import draw, scatter, utterances
from ser_fast.reports.terminal import print_table, say
from ser_fast.training import evaluation
from ser_fast.training.evaluation import EvaluateConfig

CAPTION = "Utterances by true class (rows) and predicted class; classes that occur in neither are left out."


def evaluate(config: EvaluateConfig) -> dict:
    """Run :func:`ser_fast.training.evaluation.evaluate`; write a figure and a report into ``config.out``.

    Args and returns are those of that function.
    """
    with listed(config.out):
        results = evaluation.results(config, say)
    result, page = results.summary, config.out / "report.html"
    header, rows = html.scores({"all utterances": result["metrics"]})
    spans = html.intervals(result)
    parts = [
        html.note(result["protocol"]),
        *([html.note(result["notice"])] if result["notice"] else []),
        *map(html.note, result["corpus_summary"]),
        html.table(header, rows),
        html.table(*spans),
    ]
    head = list(parts)
    if result["classes"]:
        parts += [html.per_class(result["metrics"]), *_confusion(config, result)]
    else:
        title = f"{result['model']} on {result['data']}, {result['utterances']} utterances"
        parts += scatter([config.out / "predictions.csv"], result["targets"], config.out, title)
    parts += [
        *utterances(results, page),
        html.heading("Speakers"),
        *html.speakers(result),
        *corpus_tables.section(results.dataset, results.sample_rate, result["skipped"]),
        html.heading("Options"),
        html.preformatted((config.out / "config.json").read_text()),
        html.machine(),
    ]
    html.write(page, f"{result['model']} on {result['data']}", parts)
    say(result["protocol"])  # not a title, which would be folded within paths
    print_table("", header, rows)
    print_table("", *spans)
    if result["notice"]:
        say(f"note: {result['notice']}")
    say(f"report: {page}")
    return html.Shown(result, head, page)


def _confusion(config: EvaluateConfig, result: dict) -> list[str]:
    counts = np.array(result["metrics"]["confusion"])
    shown = np.flatnonzero(counts.sum(0) + counts.sum(1))
    path = config.out / "figures" / "confusion.png"
    uas = result["intervals"]["recall"]["pooled"]
    spread = "" if uas["low"] is None else f" (95 %: {uas['low']:.1%} to {uas['high']:.1%})"
    title = f"{result['model']} on {result['data']}, {result['utterances']} utterances, UA {uas['value']:.1%}{spread}"
    names = [result["classes"][i] for i in shown]
    return draw(path, CAPTION, lambda: figures.confusion(counts[np.ix_(shown, shown)].tolist(), names, path, title))
