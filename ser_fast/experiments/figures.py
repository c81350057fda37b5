"""Figures of the experiments: bars, matrices, intervals and spectrograms, ours with the paper's numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ser_fast.reports.figures import BLUE, GREY, ORANGE, plain_axes, save, style, wrapped

COLORS = (BLUE, ORANGE, "#3a8f5c", "#8a5fb0", GREY)


def _bars(axes, groups: Sequence[str], series: dict[str, Sequence[float]]) -> None:
    """Draw the series as bars side by side in each group."""
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        axes.bar(places, values, width * 0.92, label=name, color=COLORS[number % len(COLORS)])
    axes.set_xticks(range(len(groups)), groups, rotation=30, ha="right")
    plain_axes(axes)


def _marks(axes, values: Sequence[float | None], name: str, marker: str) -> None:
    """Draw the paper's numbers as markers over the groups that have one."""
    given = [(place, value) for place, value in enumerate(values) if value is not None]
    if given:
        axes.plot(*zip(*given), linestyle="none", marker=marker, color="#222222", markersize=6, label=name)


def _finish(figure: Figure, axes, title: str, path: Path) -> Path:
    """Add the title, and a legend above the axes if there are several series, and save the figure."""
    figure.suptitle(wrapped(title, 12 * figure.get_figwidth()), fontsize=10)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return save(figure, path)


def _cells(axes, values: np.ndarray, texts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Draw a matrix as cells shaded by their values, with texts in them."""
    low, high = (float(end(values)) for end in (np.nanmin, np.nanmax))
    axes.imshow(values, cmap="Blues", vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    for (row, column), text in np.ndenumerate(texts):
        dark = values[row, column] > low + 0.55 * (high - low)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "#333333")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), rows)


@style()
def bars(
    path: Path,
    groups: Sequence[str],
    series: dict[str, Sequence[float]],
    label: str,
    title: str,
    *,
    marks: dict[str, Sequence[float | None]] | None = None,
    lines: dict[str, float] | None = None,
) -> Path:
    """Draw bars of each group, with the paper's numbers as ``marks`` over the groups and ``lines`` across."""
    figure = Figure(figsize=(max(6.0, 1.6 + 0.9 * len(groups)), 4.4), layout="constrained")
    axes = figure.subplots()
    _bars(axes, groups, series)
    for (name, values), marker in zip((marks or {}).items(), "Dv"):
        _marks(axes, values, name, marker)
    for (name, value), look in zip((lines or {}).items(), ("--", ":", "-.")):
        axes.axhline(value, color="#222222", linewidth=1, linestyle=look, label=name)
    axes.set(ylabel=label)
    return _finish(figure, axes, title, path)


@style()
def attention(
    path: Path, classes: list[str], measures: dict[str, dict[str, list[float]]],
    matrices: dict[str, list[list[int]]], title: str,
) -> Path:  # fmt: skip
    """Draw bars of each measure with and without attention, and both confusion matrices."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    figure.suptitle(wrapped(title, 140), fontsize=10)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.4))
    for axes, (measure, series) in zip(top.subplots(1, len(measures), sharey=True), measures.items()):
        _bars(axes, classes, series)
        axes.set(title=f"{measure} (%)", ylim=(0, 100))
    top.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    for axes, (name, matrix) in zip(bottom.subplots(1, len(matrices)), matrices.items()):
        counts = np.asarray(matrix)
        _cells(axes, counts / np.maximum(counts.sum(1, keepdims=True), 1), counts.astype(str), classes, classes)
        axes.set(xlabel="predicted", ylabel="true", title=name)
    return save(figure, path)


@style()
def heat_maps(
    path: Path, panels: dict[str, list[list[float]]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Path:
    """Draw a matrix for each measure; a value that is not finite is shown as "diverged"."""
    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
        array = np.asarray(values, float)
        texts = np.vectorize(lambda value: f"{value:.1f}" if np.isfinite(value) else "diverged")(array)
        _cells(axes, array, texts, rows, columns)
        axes.set(xlabel="learning rate", title=name)
    figure.suptitle(wrapped(title, 110), fontsize=10)
    return save(figure, path)


@style()
def intervals(
    path: Path, names: Sequence[str], found: Sequence[dict], label: str, title: str, *,
    curves: dict[str, Sequence[float]] | None = None, marks: dict[str, Sequence[float | None]] | None = None,
    points: Sequence[Sequence[float]] = (), zero: bool = False,
) -> Path:  # fmt: skip
    """Draw means with their intervals in percent, the papers' ``curves`` or ``marks``, and each run as a point."""
    figure = Figure(figsize=(max(6.0, 1.6 + 0.8 * len(names)), 4.6), layout="constrained")
    axes = figure.subplots()
    means = [100 * entry["mean"] for entry in found]
    lows, highs = (
        [0.0 if entry["low"] is None else 100 * abs(entry["mean"] - entry[end]) for entry in found]
        for end in ("low", "high")
    )
    for place, values in enumerate(points):
        look = {"color": "#9aa4b0", "markersize": 3, "linestyle": "none", "marker": "o"}
        axes.plot([place] * len(values), [100 * value for value in values], **look)
    line = "-" if curves else "none"
    axes.errorbar(
        range(len(names)), means, (lows, highs), fmt="o", linestyle=line, color=BLUE, capsize=4, label="ours"
    )
    for (name, values), look in zip((curves or {}).items(), ("--", ":")):
        axes.plot(range(len(names)), values, marker="D", linestyle=look, color=ORANGE, label=name)
    for name, values in (marks or {}).items():
        _marks(axes, values, name, "D")
    if zero:
        axes.axhline(0, color="#222222", linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(ylabel=label)
    plain_axes(axes)
    return _finish(figure, axes, title, path)


@style()
def spectrograms(path: Path, images: dict[str, tuple[np.ndarray, float]], top: float, rows: list[dict]) -> Path:
    """Draw gray images ``[T, F]`` in 0..1 with their durations, up to ``top`` hertz, above the loss of each epoch."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
    for axes, (name, (image, seconds)) in zip(
        np.atleast_1d(upper.subplots(1, len(images), sharey=True)), images.items()
    ):
        axes.imshow(
            image.T, origin="lower", aspect="auto", cmap="gray_r", vmin=0, vmax=1, extent=(0, seconds, 0, top / 1000)
        )
        axes.set(title=name, xlabel="time (s)")
    upper.axes[0].set(ylabel="frequency (kHz)")
    axes = lower.subplots()
    axes.plot([row["epoch"] for row in rows], [row["loss"] for row in rows], color=BLUE, marker="o", markersize=3)
    axes.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    plain_axes(axes)
    return save(figure, path)
