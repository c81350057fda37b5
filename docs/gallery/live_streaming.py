"""Follow a voice while it is recorded: python live_streaming.py [WAVE] [--checkpoint=RUN] [--out=live_streaming.png]

Without a wave an utterance of the embedded corpus is followed; without a checkpoint the model of ser_fast follows it.
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

from ser_fast.data.audio import read_audio
from ser_fast.data.corpora import load_corpus
from ser_fast.data.dataset import load_dataset
from ser_fast.prediction.live import Live
from ser_fast.prediction.predictor import Predictor
from ser_fast.reports import figures

CHUNK = 160  # samples that a microphone delivers at a time: 10 ms at 16 kHz


def follow(predictor, wave):
    """Return the time in seconds, the probabilities and the milliseconds of work of each update."""
    live, found = Live(predictor, predictor.sample_rate), []
    for chunk in np.split(wave, range(CHUNK, len(wave), CHUNK)):
        live.push(chunk)
        update = live.update()
        if update and update.values:
            found.append((update.samples / predictor.sample_rate, update.values, 1e3 * update.work))
    return found


def draw(predictor, wave, found, out):
    """Draw the spectrogram above the probability of each class over time."""
    times, probabilities, _ = zip(*found)
    front = predictor.model.spectrogram
    decibel, first, step, top = figures.spectrogram(front, wave)
    figure = Figure(figsize=(9, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    extent = (first, first + len(decibel) * step, 0, top / 1000)
    above.imshow(decibel.T, origin="lower", aspect="auto", cmap="magma", extent=extent, vmin=decibel.max() - 80)
    above.set(ylabel="frequency (kHz)")
    below.plot(times, probabilities, label=predictor.classes)
    below.set(xlabel="time (s)", ylabel="probability", ylim=(0, 1), xlim=(0, len(wave) / predictor.sample_rate))
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(out, dpi=120)


def main(wave, checkpoint, out):
    predictor = Predictor(checkpoint, device="cpu")
    if wave is None:
        corpus = load_corpus("synthetic")
        samples = load_dataset(corpus, predictor.sample_rate).waves[0]
    else:
        samples = read_audio(wave, predictor.sample_rate)
    found = follow(predictor, samples.numpy())
    for second, values, work in found[:: max(1, len(found) // 10)]:
        best = int(np.argmax(values))
        print(f"{second:5.2f} s  {predictor.classes[best]} {values[best]:.0%}  after {work:.1f} ms")
    draw(predictor, samples, found, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wave", nargs="?")
    parser.add_argument("--checkpoint")
    parser.add_argument("--out", default="live_streaming.png")
    main(**vars(parser.parse_args()))
