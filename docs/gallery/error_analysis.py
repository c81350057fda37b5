"""Look at what a model gets wrong: python error_analysis.py [--data=emodb:PATH] [--epochs=6] [--run=RUN] [--out=PNG]

The report of a run, report.html, is the same as a page to click through, with the audio.
"""

import argparse
from collections import Counter
from pathlib import Path

from ser_fast import cli
from ser_fast.data.dataset import load_dataset
from ser_fast.prediction.predictor import Predictor
from ser_fast.reports import figures
from ser_fast.training.predictions import read_csv


def main(data, epochs, run, out):
    if cli.main(["train", f"--data={data}", "--model=cgru", f"--epochs={epochs}", f"--out={run}"]) != 0:
        raise SystemExit(1)
    predictor = Predictor(run)
    rows = read_csv(Path(run) / "predictions.csv", predictor.classes)
    wrong = sorted((row for row in rows if row.predicted != row.truth), key=lambda row: -max(row.probabilities))
    print(f"{len(wrong)} of {len(rows)} test utterances are wrong; the surest of them:")
    for row in wrong[:5]:
        print(f"  {row.name} by {row.speaker}: {row.truth}, predicted {row.predicted} ({max(row.probabilities):.0%})")
    for (truth, predicted), count in Counter((row.truth, row.predicted) for row in wrong).most_common(3):
        print(f"  {count} times {truth} was taken for {predicted}")

    row = (wrong or rows)[0]
    dataset = load_dataset(data, predictor.sample_rate)
    wave = dataset.waves[dataset.names.index(row.name)]
    title = f"{row.name}: {row.truth}, predicted {row.predicted} ({max(row.probabilities):.0%})"
    figures.attention(predictor.model, wave, Path(out), title)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--run", default="runs/error_analysis")
    parser.add_argument("--out", default="error_analysis.png")
    main(**vars(parser.parse_args()))
