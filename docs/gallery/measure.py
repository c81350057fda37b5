"""Measure recurrent layers on your machine: python measure.py [--frames 100 200 400] [--calls=9] [--out=PNG]"""

import argparse
import statistics
import time

import torch
import torch.nn as nn
from matplotlib.figure import Figure

import ser_fast


def milliseconds(layer, x):
    """Return the time of a forward and a backward call."""
    start = time.perf_counter()
    layer(x)[0].sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main(frames, calls, out):
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"batch_first": True, "bidirectional": True, "device": device}
    layers = {"nn.LSTM": nn.LSTM(80, 128, **options), "nn.GRU": nn.GRU(80, 128, **options)}
    layers["ser_fast.GRU"] = ser_fast.GRU(80, 128, **options)
    layers["ser_fast.GRU"].load_state_dict(layers["nn.GRU"].state_dict())
    medians = {name: [] for name in layers}
    for count in frames:
        x = torch.randn(16, count, 80, device=device)
        # Only layers that agree are timed; float32 sums of 128 products in another order differ by less than this.
        torch.testing.assert_close(layers["ser_fast.GRU"](x)[0], layers["nn.GRU"](x)[0], rtol=1e-3, atol=1e-4)
        times = {name: [] for name in layers}
        for call in range(calls + 1):
            for name, layer in layers.items():  # in turns: a busy moment of the machine slows all of them
                found = milliseconds(layer, x)
                if call:  # the first one warms up
                    times[name].append(found)
        for name, found in times.items():
            medians[name].append(statistics.median(found))
        line = ", ".join(f"{name} {found[-1]:.1f} ms" for name, found in medians.items())
        print(f"{count} frames: {line}", flush=True)

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, found in medians.items():
        axes.plot(frames, found, marker="o", label=name)
    title = f"16 rows, 80 inputs, 128 units, two directions; {device}, {torch.get_num_threads()} threads"
    axes.set(xlabel="frames", ylabel="forward and backward (ms)", xlim=(0, None), ylim=(0, None))
    axes.set_title(title, fontsize=9)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--calls", type=int, default=9)
    parser.add_argument("--out", default="measure.png")
    main(**vars(parser.parse_args()))
