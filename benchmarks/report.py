"""Tables and figures of benchmarks: ``python benchmarks/report.py RESULTS.json [--markdown FILE] [--plot FILE]``.

``pytest --benchmark --benchmark-json=RESULTS.json`` writes the results. ``--plot out.png`` draws two figures: the
ratios to the peers in ``out.png`` and the sweeps in ``out-sweeps.png``.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

SWEEP = "GRU, sweeps over T, B and H"
AXES = {"T": "frames T, B=32 H=128", "B": "batch B, T=200 H=128", "H": "hidden units H, B=32 T=200"}
MARKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)  # ticks of the ratio axis
COLOURS = {
    "ours": "black",
    "GRU": "#4477aa",
    "GRU, packed": "#223f5f",
    "GRUCell": "#4477aa",
    "LSTM": "#ee6677",
    "LSTM, packed": "#9a2b3c",
    "LSTM on our kernels": "#f7b6bd",
    "LSTM on our kernels, packed": "#cc8a93",
    "eager torch": "#228833",
    "eager torch, channels first": "#8ecb98",
    "one-query SDPA": "#ccbb44",
    "SDPA": "#ccbb44",
    "torch.compile": "#66ccee",
    "torch.stft chain": "#aa3377",
    "torchaudio": "#999999",
    "ONNX Runtime": "#228833",
    "OpenVINO": "#66ccee",
    "JAX": "#ccbb44",
    "Flax": "#ddd48f",
    "pyFFTW": "#228833",
    "SciPy": "#66ccee",
    "librosa": "#ccbb44",
}
DPI = 150


def groups(run: dict) -> dict[str, list[dict]]:
    """Return the ``extra_info`` of all timed cases, by group."""
    found: dict[str, list[dict]] = {}
    for benchmark in run["benchmarks"]:
        if "case" in benchmark["extra_info"]:
            found.setdefault(benchmark["group"], []).append(benchmark["extra_info"])
    return found


def columns(cases: list[dict]) -> list[str]:
    """Return the peers of these cases, in order of first appearance."""
    return list(dict.fromkeys(name for case in cases for name in case["ratios"]))


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, to three digits or whole."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, all columns but the first right-aligned."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fastest(case: dict) -> str:
    """Return the peer that took the least time, and its time over ours; other versions of ours do not count."""
    others = {name: ratio for name, ratio in case["ratios"].items() if not name.startswith("ours")}
    return "{} ({:.2f})".format(*min(others.items(), key=lambda item: item[1]))


def timings(cases: list[dict]) -> str:
    """Return the table of times, ratios to the peers, floor and error."""
    peers = columns(cases)
    with_floor = any("floor" in case for case in cases)
    several = sum(not name.startswith("ours") for name in peers) > 1
    rows = []
    for case in cases:
        row = [case["case"], milliseconds(case["seconds"]["ours"]), *([fastest(case)] if several else [])]
        for name in peers:
            if name in case["ratios"]:
                row.append(f"{milliseconds(case['seconds'][name])} ({case['ratios'][name]:.2f})")
            else:
                row.append("left out" if name in case.get("left out", {}) else "")
        if with_floor:
            known = "floor" in case
            row.append(f"{milliseconds(case['floor'])} ({100 * case['fraction of floor']:.0f} %)" if known else "")
        rows.append([*row, f"{case['error']:.0e}"])
    return table(
        ["case", "ours", *(["fastest peer"] if several else []), *peers, *(["floor"] if with_floor else []), "error"],
        rows,
    )


def memory(cases: list[dict]) -> str:
    """Return the table of peak memory beyond the output, and of the error against float64."""
    names = ["ours", "torch.stft chain"]
    rows = []
    for case in cases:
        size, row = case["memory"]["output"], [case["case"]]
        for name in names:
            peak = case["memory"][name]
            row.append(
                "not known" if peak is None else f"{(peak - size) / 1e6:.1f} ({100 * (peak / size - 1):.0f} %)"
            )
        rows.append([*row, *(f"{case['errors'][name]:.1e}" for name in names)])
    header = ["case", *(f"{name}: MB beyond the output" for name in names), *(f"{name}: error" for name in names)]
    return table(header, rows)


def parts(case: dict) -> str:
    """Return the table of a training step's time by part."""
    names = [name for name in ("spectrogram", "convolution", "recurrence", "attention", "optimiser", "other")
             if name in case["parts"]["ours"]]  # fmt: skip
    rows = [
        [kind, *(milliseconds(seconds[name]) for name in names), milliseconds(case["seconds"][kind])]
        for kind, seconds in case["parts"].items()
    ]
    return table([case["case"], *names, "whole step"], rows)


def lstm_share(cases: list[dict]) -> str:
    """Return the table of our times as a percentage of an LSTM's; the attention-CGRU paper reports 60 %."""
    peers = [name for name in cases[0]["seconds"] if "LSTM" in name]
    rows = []
    for case in cases:
        recurrence = {kind: seconds["recurrence"] for kind, seconds in case["parts"].items()}
        shares = [seconds["ours"] / seconds[peer] for seconds in (recurrence, case["seconds"]) for peer in peers]
        rows.append([case["case"], *(f"{100 * share:.0f} %" for share in shares)])
    return table(["", *(f"{what}: {peer}" for what in ("recurrence", "whole step") for peer in peers)], rows)


def markdown(run: dict) -> str:
    """Return the report: machine, and a section for every group."""
    parts_of = [", ".join(f"{name} {value}" for name, value in run["machine_info"].items()) + "."]
    parts_of.append(
        "Medians in milliseconds of alternating calls; in brackets the peer's time over ours, and the floor as a "
        "percentage of ours. The error is the largest difference from the peer or the reference, relative to the "
        "largest value."
    )
    for group, cases in groups(run).items():
        parts_of += [f"## {group}", timings(cases)]
        if "memory" in cases[0]:
            parts_of.append(memory(cases))
        for case in cases:
            parts_of += [
                f"Left out in {case['case']}: {name} ({why})" for name, why in case.get("left out", {}).items()
            ]
        if "parts" in cases[0]:
            parts_of += map(parts, cases)
            parts_of += [
                "Our time as a percentage of an LSTM's; the attention-CGRU paper reports 60 %.",
                lstm_share(cases),
            ]
    return "\n\n".join(parts_of) + "\n"


def colour(name: str) -> str:
    """Return the colour of a peer, whatever its prefix."""
    return COLOURS[name.removeprefix("nn.").removeprefix("torch ").removesuffix(", padded")]


def plot_ratios(run: dict, path: Path) -> None:
    """Draw a panel for every group, in two columns of similar height, with a bar for every case and peer."""
    panels = {}
    for group, cases in groups(run).items():
        peers = [name for name in columns(cases) if not name.startswith("ours")]
        if peers and group != SWEEP:
            panels[group] = cases, peers
    if not panels:
        return
    heights = {group: 8 + sum(len(case["ratios"]) + 0.6 for case in cases) for group, (cases, _) in panels.items()}
    sides: list[list[str]] = [[], []]
    for group in sorted(panels, key=heights.get, reverse=True):
        min(sides, key=lambda side: sum(heights[name] for name in side)).append(group)
    tallest = max(sum(heights[name] for name in side) for side in sides)
    figure = Figure(figsize=(13, 0.16 * tallest + 0.4), layout="constrained")
    figure.suptitle("The peer's time over ours; right of the line ours is faster", fontsize=12)
    for side, half in zip(sides, figure.subfigures(1, 2)):
        if side:
            missing = tallest - sum(heights[name] for name in side)
            rows = half.subfigures(len(side) + 1, height_ratios=[*(heights[name] for name in side), missing + 0.01])
            for group, panel in zip(side, rows):
                bars(panel, group, *panels[group])
    figure.savefig(path, dpi=DPI)


def bars(panel, group: str, cases: list[dict], peers: list[str]) -> None:
    """Draw ratios as bars that start at 1, on a logarithmic scale."""
    axis, top, ticks = panel.subplots(), 0.0, []
    for case in cases:
        names = [name for name in peers if name in case["ratios"]]
        ticks.append(top + (len(names) - 1) / 2)
        for position, name in enumerate(names):
            ratio = case["ratios"][name]
            axis.barh(top + position, ratio - 1, 0.9, left=1, color=colour(name))
            axis.annotate(
                f" {ratio:.{1 if ratio >= 1 else 2}f}", (max(ratio, 1), top + position), va="center", fontsize=8
            )
        top += len(names) + 0.6
    ratios = [1.0, *(case["ratios"][name] for case in cases for name in peers if name in case["ratios"])]
    low, high = min(ratios) / 1.1, max(ratios) * 1.5
    axis.set(xscale="log", xlim=(low, high), ylim=(top - 0.9, -0.7))
    marks = [mark for mark in MARKS if low <= mark <= high]
    axis.set_xticks(marks, [f"{mark:g}×" for mark in marks], fontsize=8)
    axis.set_yticks(ticks, [case["case"] for case in cases], fontsize=9)
    axis.minorticks_off()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    keys = [Patch(color=colour(name), label=name) for name in peers]
    panel.legend(handles=keys, ncols=4, loc="outside upper left", frameon=False, fontsize=9,
                 handlelength=1, handleheight=1, columnspacing=1, title=group, alignment="left",
                 title_fontproperties={"weight": "bold", "size": 10})  # fmt: skip


def plot_sweeps(run: dict, path: Path) -> None:
    """Draw the time over T, B and H, one line for each layer."""
    cases = groups(run).get(SWEEP, [])
    if not cases:
        return
    modes = list(dict.fromkeys(case["sweep"][2] for case in cases))
    figure = Figure(figsize=(12, 3.2 * len(modes)), layout="constrained")
    panels = figure.subplots(len(modes), len(AXES), sharey="row", squeeze=False)
    for row, mode in zip(panels, modes):
        for panel, (axis, title) in zip(row, AXES.items()):
            points = [case for case in cases if case["sweep"][0] == axis and case["sweep"][2] == mode]
            values = [case["sweep"][1] for case in points]
            for name in ("ours", *columns(points)):
                seconds = [1e3 * case["seconds"][name] for case in points]
                panel.plot(values, seconds, "o-", color=colour(name), label=name, linewidth=2, markersize=5)
            panel.set(xscale="log", yscale="log", xlabel=title)
            panel.set_xticks(values, values)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{mode}, ms")
    panels[0][0].legend(frameon=False)
    figure.savefig(path, dpi=DPI)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file that --benchmark-json wrote")
    parser.add_argument("--markdown", type=Path, help="file for the tables, which are printed otherwise")
    parser.add_argument(
        "--plot", type=Path, help="file for the plot of the ratios; FILE-sweeps is that of the sweeps"
    )
    options = parser.parse_args()
    run = json.loads(options.results.read_text())
    if options.markdown:
        options.markdown.write_text(markdown(run))
    else:
        print(markdown(run))
    if options.plot:
        plot_ratios(run, options.plot)
        plot_sweeps(run, options.plot.with_stem(f"{options.plot.stem}-sweeps"))


if __name__ == "__main__":
    main()
