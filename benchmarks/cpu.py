"""Our CPU ops against torch's, side by side in one run: ``python benchmarks/cpu.py [--out results.json]``.

Every case is first compared with the peer's own result and is not timed if it differs. Calls of the two
alternate, and the medians and their ratio are printed as a markdown table.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import ser_fast
from ser_fast.functional import attention_pool, power_spectrogram

GRU_SIZES = [(64, 200, 128, 128, 1), (32, 300, 401, 128, 2), (64, 300, 256, 256, 2), (64, 300, 128, 512, 1)]


def alternate(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn so that a busy moment of the machine falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def require_equal(found: torch.Tensor, wanted: torch.Tensor, tolerance: float, case: str) -> None:
    error = float((found - wanted).detach().abs().max() / wanted.detach().abs().max())
    if not error <= tolerance:
        raise SystemExit(f"{case}: differs from its peer by {error:.1e} of the largest value, so it is not timed")


def gru_rows(repeats: int) -> list[dict]:
    rows = []
    for batch, frames, width, hidden, directions in GRU_SIZES:
        options = {"batch_first": True, "bidirectional": directions == 2}
        theirs, lstm = nn.GRU(width, hidden, **options), nn.LSTM(width, hidden, **options)
        ours, paper = (ser_fast.GRU(width, hidden, reset_after=after, **options) for after in (True, False))
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(batch, frames, width)
        case = f"GRU, B={batch} T={frames} I={width} H={hidden}, {directions} direction{'s' * (directions - 1)}"
        require_equal(ours(x)[0], theirs(x)[0], 1e-5, case)
        modules = {"ours": ours, "nn.GRU": theirs, "nn.LSTM": lstm, "ours, reset_after=False": paper}

        def infer(module: nn.Module, x=x) -> None:
            with torch.inference_mode():
                module(x)

        for mode, call in (("inference", infer), ("training", lambda module, x=x: module(x)[0].sum().backward())):
            calls = {name: lambda module=module, call=call: call(module) for name, module in modules.items()}
            rows.append({"case": f"{case}, {mode}", "peer": "nn.GRU", "seconds": alternate(calls, repeats)})
    return rows


def other_rows(repeats: int) -> list[dict]:
    window, wave = torch.hamming_window(640), torch.randn(32, 48000)

    def chain() -> torch.Tensor:
        return torch.stft(wave, 1600, 160, 640, window, return_complex=True).abs().square()[:, :401].transpose(1, 2)

    def ours() -> torch.Tensor:
        return power_spectrogram(wave, window, 1600, 160, (0, 401), center=True)

    require_equal(ours(), chain(), 1e-5, "power spectrogram")
    h, w = torch.randn(64, 300, 256), torch.randn(256)

    def eager() -> torch.Tensor:
        return (torch.softmax(h @ w, 1)[:, None] @ h).squeeze(1)

    require_equal(attention_pool(h, w)[0], eager(), 1e-5, "attention pooling")
    return [
        {"case": "power spectrogram, 32 × 3 s, inference", "peer": "torch.stft chain",
         "seconds": alternate({"ours": ours, "torch.stft chain": chain}, repeats)},
        {"case": "attention pooling, B=64 T=300 D=256, inference", "peer": "eager torch",
         "seconds": alternate({"ours": lambda: attention_pool(h, w), "eager torch": eager}, repeats)},
    ]  # fmt: skip


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                            cwd=Path(__file__).parent).stdout.strip()  # fmt: skip
    return {
        "processor": f"{model}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ser_fast": ser_fast.__version__,
        "commit": commit,
        "dtype": "float32",
        "backend": ser_fast.backends.select("gru"),
    }


def markdown(result: dict) -> str:
    lines = [
        "| case | ours, ms | peer, ms | speed-up | nn.LSTM, ms | ours, reset_after=False, ms |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in result["rows"]:
        seconds = row["seconds"]
        extra = [
            f"{1e3 * seconds[name]:.1f}" if name in seconds else "" for name in ("nn.LSTM", "ours, reset_after=False")
        ]
        ratio = seconds[row["peer"]] / seconds["ours"]
        lines.append(
            f"| {row['case']} | {1e3 * seconds['ours']:.1f} | {1e3 * seconds[row['peer']]:.1f} ({row['peer']}) "
            f"| {ratio:.2f} | {extra[0]} | {extra[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the figures as JSON too")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    result = {"machine": machine(), "rows": gru_rows(options.repeats) + other_rows(4 * options.repeats)}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(markdown(result))


if __name__ == "__main__":
    main()
