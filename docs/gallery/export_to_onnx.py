"""Export a model and run it without torch: python export_to_onnx.py [CHECKPOINT] [--out=export_to_onnx.png]

Without a checkpoint a small BiGRU-MHA with random weights is exported.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from matplotlib.figure import Figure

import ser_fast
from ser_fast.training.checkpoint import find_checkpoint, load_checkpoint


def export(model, path):
    """Write the model with free sizes of batch and samples."""
    wave, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples", min=2000)
    sizes = {0: batch, 1: samples}, {0: batch}
    torch.onnx.export(
        model, (wave, lengths), path, input_names=["wave", "lengths"], output_names=["logits"],
        dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False,
    )  # fmt: skip


def milliseconds(call, calls=9):
    """Return the median time of a call after some that are not counted."""
    for _ in range(3):
        call()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


@torch.inference_mode()
def main(checkpoint, out):
    torch.manual_seed(0)
    if checkpoint is None:
        model = ser_fast.BiGRUMHA(4, hidden_size=32).eval()
    else:
        model = load_checkpoint(find_checkpoint(checkpoint)).build(checkpoint)
    path = Path(out).with_suffix(".onnx")
    export(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    gap, times = 0.0, {"torch and ser_fast": [], "ONNX Runtime": []}
    seconds = (1, 2, 4, 8)
    for duration in seconds:  # other sizes than the export's
        wave = 0.1 * torch.randn(3, 16000 * duration)
        lengths = torch.tensor([16000 * duration, 15000 * duration, 4000])
        given = {"wave": wave.numpy(), "lengths": lengths.numpy()}
        ours, theirs = model(wave, lengths).numpy(), session.run(None, given)[0]
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)
        gap = max(gap, float(np.abs(theirs - ours).max()))
        times["torch and ser_fast"].append(milliseconds(lambda: model(wave, lengths)))  # noqa: B023
        times["ONNX Runtime"].append(milliseconds(lambda: session.run(None, given)))  # noqa: B023
    print(f"{path}, {path.stat().st_size / 1e3:.0f} kB; logits differ by at most {gap:.1e}")
    for name, found in times.items():
        print(f"{name}: " + ", ".join(f"{value:.1f} ms for {d} s" for d, value in zip(seconds, found)))

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, found in times.items():
        axes.plot(seconds, found, marker="o", label=name)
    axes.set(xlabel="longest of three utterances (s)", ylabel="median time (ms)", xlim=(0, None), ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--out", default="export_to_onnx.png")
    main(**vars(parser.parse_args()))
