"""Delay of ``ser-fast listen``: ``python -m benchmarks.live [CHECKPOINT] [--rate HERTZ] [--seconds S] [--window S]``.

Starts the command and sends it a synthetic voice as the page sends a microphone, 10 ms at a time in real time. The
delay of a frame of 10 ms is the time from when it is sent until the first answer whose window contains all of it: the
way to the command, the resampling, the wait for the next update, the model, and the way back. What the sound card and
the browser add is not in it; the page shows its own delay. Prints Markdown; ``docs/listen.md`` quotes it.
"""

import argparse
import json
import re
import subprocess
import sys
import threading
import time

import numpy as np
import torch
from websockets.sync.client import connect

from benchmarks.report import table
from ser_fast.backends import info
from ser_fast.data.corpora.synthetic import EMOTIONS, synthesize

FRAME = 0.01  # seconds
WARM_UP = 1.0  # seconds whose frames do not count


def voice(seconds: float, rate: int) -> np.ndarray:
    """Return utterances one after the other, float32 ``[N]``."""
    parts, size, take = [], round(seconds * rate), 0
    while sum(map(len, parts)) < size:
        parts.append(synthesize(EMOTIONS[take % len(EMOTIONS)], take, take, rate))
        take += 1
    return torch.cat(parts)[:size].numpy()


def delays(counts: list[int], sent: list[float], answers: list[tuple[int, float]]) -> list[float]:
    """Return the delay of each frame that was answered, in seconds.

    Args:
        counts: samples up to the end of each frame.
        sent: when each frame was sent.
        answers: samples up to the end of the window of each answer, and when it came.

    Example:
        >>> delays([160, 320, 480], [0.0, 1.0, 2.0], [(160, 0.5), (470, 2.5)])
        [0.5, 1.5]
    """
    found, frame = [], 0
    for samples, when in answers:
        while frame < len(counts) and counts[frame] <= samples:
            found.append(when - sent[frame])
            frame += 1
    return found


def follow(address: str, wave: np.ndarray, rate: int) -> tuple[list[float], list[dict]]:
    """Send a wave in real time; return the delays of its frames in seconds, and the answers."""
    size = round(FRAME * rate)
    counts, sent, answers, times = [], [], [], []
    with connect(f"ws://{address}/live?rate={rate}") as socket:

        def receive() -> None:
            for text in socket:
                times.append(time.perf_counter())
                answers.append(json.loads(text))

        receiving = threading.Thread(target=receive)
        receiving.start()
        begin = time.perf_counter()
        for end in range(size, len(wave) + 1, size):
            time.sleep(max(0.0, begin + end / rate - time.perf_counter()))
            counts.append(end)
            sent.append(time.perf_counter())
            socket.send(wave[end - size : end].tobytes())
        time.sleep(1)  # the last answers
    receiving.join()
    first = round(WARM_UP / FRAME)
    ends = [(answer["samples"], when) for answer, when in zip(answers, times)]
    return delays(counts[first:], sent[first:], ends), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="*", help="as ser-fast listen takes it")
    parser.add_argument("--rate", type=int, default=48000, help="of the microphone, in hertz")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of the recording")
    parser.add_argument("--window", type=float, default=3.0, help="seconds that are predicted")
    options = parser.parse_args()
    command = [sys.executable, "-m", "ser_fast", "listen", *options.checkpoint[:1], "--port=0"]
    with subprocess.Popen([*command, f"--seconds={options.window}"], stdout=subprocess.PIPE, text=True) as process:
        try:
            address = re.match(r"http://(\S+)", process.stdout.readline())[1]
            found, answers = follow(address, voice(options.seconds + WARM_UP, options.rate), options.rate)
        finally:
            process.terminate()
    works = [answer["work"] / 1e3 for answer in answers]
    rows = []
    for name, values in (
        ("a frame of 10 ms to probabilities", found),
        ("of it the model, with the flags", works),
    ):
        shown = (f"{1e3 * value:.1f}" for value in np.quantile(values, [0.5, 0.99, 1]))
        rows.append([name, str(len(values)), *shown])
    print(f"{info.sentence()}; {options.rate} Hz, window {options.window:g} s\n")
    print(table(["", "count", "median ms", "p99 ms", "most ms"], rows))


if __name__ == "__main__":
    main()
