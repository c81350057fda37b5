"""Tables and figure of the run: ``python -m device.report FOLDER/run.json`` writes run.md and run.png beside it."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from report import DPI, colour, milliseconds, table

from device.aims import AIMS, CUDA, TRITON, reached
from ser_fast.data.files import write_atomically

TITLES = {
    "recurrence": "The GRU's recurrence alone",
    "plans": "The recurrence on clusters of one to eight blocks",
    "gru": "GRU layers",
    "pool": "Attention pooling",
    "spectrogram": "Power spectrogram, 0 to 4 kHz of a DFT of 1600",
    "models": "Training steps, from waveforms to updated weights",
}
GRAPH = ", graph"
WAYS = {"": "Called one by one", GRAPH: "Replayed as a CUDA graph"}
EXTRAS = ("us a step", "% of the copy bandwidth", "ns a frame")
PANELS = ("tf32", "bfloat16", "float32", "float16")


def markdown(run: dict) -> str:
    """Return the report: machine, aims, parts, and a section for every part."""
    machine, found = run["machine"], run["parts"]
    rows = [
        [aim.name, f"{'at least' if aim.at_least else 'at most'} {aim.bound:g} {aim.unit}", *reached(aim, found)]
        for aim in AIMS
    ]
    text = [
        f"# {machine['gpu']}",
        *(["A rehearsal on the CPU at small sizes: its times are meaningless."] if run["rehearsal"] else []),
        f"Installed: {run['install']['how']}.",
        ", ".join(f"{name} {value}" for name, value in machine.items()) + ".",
        "## Aims",
        table(["aim", "wanted", "reached", ""], rows),
        "## Parts",
        table(
            ["part", "state", "seconds", "cases", "commit", "date"],
            [part_row(name, part) for name, part in found.items()],
        ),
    ]
    text += [section(name, found[name]) for name in (*proofs, *TITLES, "epochs", "papers") if name in found]
    return "\n\n".join(text) + "\n"


def part_row(name: str, part: dict) -> list[str]:
    """Return a part's row of the table of parts."""
    seconds, cases = f"{part.get('seconds', 0):.0f}", str(len(part["cases"]))
    return [name, part["state"], seconds, cases, part["commit"], part["date"]]


def section(name: str, part: dict) -> str:
    """Return a part's section, with what failed and what did not run."""
    if name in proofs:
        text = proofs[name](part["cases"])
    elif name == "epochs":
        text = epochs(part["cases"])
    elif name == "papers":
        text = "## The papers' experiments\n\n" + "\n\n".join(
            case["table"] for case in part["cases"] if "table" in case
        )
    else:
        text = timings(name, part["cases"])
    open_cases = [
        f"- {case['case']}: {case.get('error', '').strip()[-1500:]}"
        for case in part["cases"]
        if case.get("state") == "failed"
    ]
    not_run = [case["case"] for case in part["cases"] if case.get("state") == "not run"]
    if part.get("error"):
        open_cases.append(f"- {part['error'][-1500:]}")
    if open_cases:
        text += "\n\nFailed:\n\n" + "\n".join(open_cases)
    if not_run:
        text += f"\n\nNot run: {'; '.join(not_run)}."
    return text


def tests(cases: list[dict]) -> str:
    """Return the counts by file and backend, the outcomes by test, and the failures."""
    rows = [[case["case"], *(str(case.get(name, "")) for name in ("passed", "failed", "skipped"))] for case in cases]
    text = "## Tests\n\n" + table(["tests", "passed", "failed", "skipped"], rows)
    by_test = {case["backend"]: case["by test"] for case in cases if "by test" in case}
    names = columns([*by_test.values()])
    if names:
        outcomes = [[name, *(found.get(name, "") for found in by_test.values())] for name in names]
        text += "\n\n" + table(["test that needs a GPU", *by_test], outcomes)
    failures = {name: error for case in cases for name, error in case.get("failures", {}).items()}
    return text + "".join(f"\n\n`{name}`\n\n```\n{error[-1500:]}\n```" for name, error in failures.items())


def sanitizer(cases: list[dict]) -> str:
    """Return the table of compute-sanitizer's results."""
    rows = [
        [case["tool"], case["backend"], case.get("state", "passed"), case.get("said", "")]
        for case in cases
        if "tool" in case
    ]
    return "## compute-sanitizer\n\n" + table(["tool", "kernels", "state", "output"], rows)


proofs = {"tests": tests, "sanitizer": sanitizer}


def timings(name: str, cases: list[dict]) -> str:
    """Return a part's tables of times, one by one and as graphs, and of derived values."""
    text = [f"## {TITLES[name]}"]
    if name not in ("recurrence", "plans"):  # reported per time step below
        text += [found for way, title in WAYS.items() for found in by_way(cases, way, title)]
    for extra in EXTRAS:
        names = columns([case.get(extra, {}) for case in cases])
        rows = [numbers(case["case"], case[extra], names) for case in cases if extra in case]
        text += [f"{extra}:", table(["case", *names], rows)] if rows else []
    text += [by_part(case) for case in cases if case.get("parts")]
    return "\n\n".join([*text, *left_out(cases)])


def columns(found: list[dict]) -> list[str]:
    """Return all names, in order of first appearance."""
    return list(dict.fromkeys(name for each in found for name in each))


def by_way(cases: list[dict], way: str, title: str) -> list[str]:
    """Return the table of the calls whose name ends with ``way``: ms, and the time over the first call's."""
    names = [
        name for name in columns([case.get("seconds", {}) for case in cases]) if name.endswith(GRAPH) == bool(way)
    ]
    rows = [timing_row(case, names) for case in cases if any(name in case.get("seconds", {}) for name in names)]
    heads = [name.removesuffix(GRAPH) for name in names]
    return [f"{title}, ms:", table(["case", *heads], rows)] if rows else []


def left_out(cases: list[dict]) -> list[str]:
    """Return a sentence for each call and reason that was left out."""
    reasons: dict[str, list[str]] = {}
    for case in cases:
        for name, why in case.get("left out", {}).items():
            reasons.setdefault(f"{name} ({why})", []).append(case["case"])
    return [f"Left out: {what}, in {len(where)} cases, first {where[0]}." for what, where in reasons.items()]


def numbers(first: str, values: dict[str, float], names: list[str]) -> list[str]:
    """Return a row of values to three digits, empty where there is none."""
    return [first, *(f"{values[name]:.3g}" if name in values else "" for name in names)]


def timing_row(case: dict, names: list[str]) -> list[str]:
    """Return a case's row of times, each with its ratio to the first."""
    seconds = case["seconds"]
    first = next((seconds[name] for name in names if name in seconds), None)
    return [
        case["case"],
        *(
            f"{milliseconds(seconds[name])} ({seconds[name] / first:.2f})" if name in seconds else ""
            for name in names
        ),
    ]


def by_part(case: dict) -> str:
    """Return the table of a training step's time by part, with synchronisation between parts."""
    names = columns([*case["parts"].values()])
    rows = [
        [kind, *(milliseconds(found.get(name, 0.0)) for name in names), milliseconds(case["seconds"][kind])]
        for kind, found in case["parts"].items()
    ]
    ratios = "; ".join(
        f"{kind}: {100 * parts:.0f} % of the LSTM version's time by the parts, {100 * whole:.0f} % measured"
        for kind, (parts, whole) in case.get("predicted", {}).items()
    )
    return f"{table([case['case'], *names, 'whole step'], rows)}\n\n{ratios}"


def epochs(cases: list[dict]) -> str:
    """Return the tables of epoch times and of their ratios."""
    text = ["## Whole epochs on Emo-DB"]
    for case in cases:
        if "epochs" not in case:
            continue
        rows = [
            [model, kind, f"{sorted(values)[len(values) // 2]:.3f}", f"{min(values):.3f} to {max(values):.3f}"]
            for model, kinds in case["epochs"].items()
            for kind, values in kinds.items()
        ]
        shares = [
            [model, kind, f"{100 * value:.0f} %"]
            for model, kinds in case["ratios"].items()
            for kind, value in kinds.items()
        ]
        text += [
            f"Kernels: {case['backend']}. {case['notes'][0]}",
            table(["model", "recurrence", "seconds", "fastest to slowest"], rows),
            table(["model", "ratio of epochs", ""], shares),
        ]
    return "\n\n".join(text)


def draw(run: dict, path: Path) -> None:
    """Draw the peers' time over ours in bidirectional GRU training, by precision, hidden size and raggedness."""
    cases = [
        case
        for case in run["parts"].get("gru", {}).get("cases", [])
        if case.get("directions") == 2 and case.get("mode") == "training" and case.get("seconds")
    ]
    shown = [name for name in PANELS if any(case["precision"] == name for case in cases)]
    if not shown:
        return
    figure = Figure(figsize=(3.4 * len(shown) + 0.6, 7), layout="constrained")
    figure.suptitle(f"{run['machine']['gpu']}: GRU, both directions, forward and backward; above 1 ours is faster")
    for half, ragged in zip(figure.subfigures(2, 1), (False, True)):
        peers = tuple(f"{peer}{', packed' if ragged else ''}" for peer in ("nn.GRU", "nn.LSTM"))
        panels = half.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for panel, precision in zip(panels, shown):
            some = [case for case in cases if (case["precision"], case.get("ragged", False)) == (precision, ragged)]
            largest = max(map(size, some), default=0)
            bars(panel, sorted(filter(lambda case: size(case) == largest, some), key=hidden_size), peers)
            panel.set_title(f"{precision}, {'ragged' if ragged else 'padded'}", fontsize=10)
        panels[0].set_ylabel("peer's time over ours")
        keys, names = panels[0].get_legend_handles_labels()
        half.legend(keys, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def size(case: dict) -> int:
    """Return the elements of the input, B T I."""
    return case["batch"] * case["frames"] * case["width"]


def hidden_size(case: dict) -> int:
    """Return H."""
    return case["hidden_size"]


def bars(panel, cases: list[dict], peers: tuple[str, ...]) -> None:
    """Draw a bar for every pair of our kernels and a peer, in groups by hidden size."""
    kernels = [name for name in (CUDA, TRITON, "ours, compiled") if any(name in case["seconds"] for case in cases)]
    kinds = [(ours, peer) for ours in kernels for peer in peers]
    width = 0.8 / max(len(kinds), 1)
    for number, (ours, peer) in enumerate(kinds):
        points = [
            (position, case["seconds"][peer] / case["seconds"][ours])
            for position, case in enumerate(cases)
            if ours in case["seconds"] and peer in case["seconds"]
        ]
        places = [position + (number - (len(kinds) - 1) / 2) * width for position, _ in points]
        drawn = panel.bar(
            places,
            [ratio for _, ratio in points],
            width,
            color=colour(peer),
            hatch=None if ours != TRITON else "///",
            edgecolor="white",
            label=f"{peer} / {ours.removeprefix('ours, ')}",
        )
        panel.bar_label(drawn, fmt="%.1f", fontsize=7)
    panel.set_xticks(range(len(cases)), [f"H={case['hidden_size']}" for case in cases])
    panel.axhline(1, color="black", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)


def main() -> None:
    path = Path(sys.argv[1])
    run = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path.with_suffix(".md"), markdown(run).encode())
    draw(run, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
