"""Figures of a run: loss curves, confusion matrix or predicted values, a spectrogram with the attention to frames."""

import io
import math
import textwrap
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ser_fast.data.files import write_atomically
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.reports.curves import panels

BLUE, ORANGE, GREY = "#2563a8", "#d9741a", "#8c8c8c"
# Class names may be Chinese; matplotlib's default font has no glyphs for them.
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "Microsoft YaHei")


@contextmanager
def style():
    """Show names literally, without TeX, in the fonts that are installed, while the context lasts."""
    available = set(font_manager.get_font_names())
    fonts = [name for name in _FONTS if name in available]
    with matplotlib.rc_context({"text.parse_math": False, "font.family": fonts}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, with its folder; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, format="png", bbox_inches="tight")
    write_atomically(path, buffer.getvalue())
    return path


def plain_axes(axes) -> None:
    """Draw axes without top and right spines and with horizontal grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)


@style()
def loss_curves(runs: dict[str, list[dict]], path: Path) -> Path:
    """Draw training and validation loss, and validation UA or MAE, of up to three runs; CCC for several targets.

    Args:
        runs: rows of ``metrics.jsonl`` by the name of the run.
        path: the PNG file.
    """
    figure = Figure(figsize=(9, 3.4))
    colors = dict(zip(runs, (BLUE, ORANGE, GREY)))
    for axes, panel in zip(figure.subplots(1, 2), panels(runs)):
        for line in panel.lines:
            marker = "o" if len(line.epochs) == 1 else None  # a single point has no line
            name, shape = (None, ":") if line.dotted else (line.name, "-")
            axes.plot(line.epochs, line.values, shape, color=colors[line.name], marker=marker, label=name)
        axes.set(xlabel="epoch", ylabel=panel.label, ylim=(panel.low, panel.top))
        plain_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, names = figure.axes[0].get_legend_handles_labels()
    look = {"frameon": False, "fontsize": 9, "loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    figure.legend(handles, names, ncols=len(runs), **look)
    return save(figure, path)


@style()
def confusion(matrix: list[list[int]], classes: list[str], path: Path, title: str = "") -> Path:
    """Draw a confusion matrix with counts, shaded by their share of the row.

    Args:
        matrix: counts; rows are true classes, columns predicted ones.
        classes: names of the classes.
        path: the PNG file.
        title: title of the figure.
    """
    counts = np.asarray(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 1.6 + 0.62 * len(classes)
    figure = Figure(figsize=(size + 0.6, size))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if share[row, column] > 0.55 else "#333333"
        axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="predicted", ylabel="true", title=wrapped(title, 12 * size))
    axes.title.set_fontsize(10)
    figure.colorbar(image, fraction=0.046, label="share of the true class")
    return save(figure, path)


@style()
def scatter(truth: np.ndarray, predicted: np.ndarray, targets: list[str], path: Path, title: str = "") -> Path:
    """Draw the predicted against the true values of each target, with the line of equal values.

    Args:
        truth: true values ``[N, targets]``.
        predicted: predicted values ``[N, targets]``.
        targets: names of the targets.
        path: the PNG file.
        title: title of the figure.
    """
    columns = min(len(targets), 3)
    rows = math.ceil(len(targets) / columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, 3.4 * rows + 0.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    # Many true values are equal, such as means of few ratings; many points would be one dark area.
    look = {"s": 14, "linewidths": 0, "alpha": min(0.7, max(0.08, 6 / math.sqrt(len(truth)))), "color": BLUE}
    for axes, name, x, y in zip(panels, targets, truth.T, predicted.T):
        low, high = min(x.min(), y.min()), max(x.max(), y.max())
        margin = 0.05 * (high - low) or 0.5
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color=GREY, linewidth=1)
        axes.scatter(x, y, **look)
        axes.set(xlabel=f"true {name}", ylabel=f"predicted {name}", xlim=ends, ylim=ends, aspect="equal")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        plain_axes(axes)
    for axes in panels[len(targets) :]:
        axes.set_visible(False)
    figure.suptitle(wrapped(title, 45 * columns), fontsize=10)
    return save(figure, path)


def wrapped(title: str, letters: float) -> str:
    """Return a title with its lines broken after so many letters."""
    return "\n".join(textwrap.fill(line, int(letters)) for line in title.splitlines())


def shortened(name: str, letters: int) -> str:
    """Return the end of a name that is longer than so many letters; of a path it tells more than the beginning."""
    return name if len(name) <= letters else f"\N{HORIZONTAL ELLIPSIS}{name[1 - letters :]}"


def frame_attention(weights: Tensor) -> Tensor:
    """Return the attention ``[T]`` that each frame receives, which sums to 1.

    Args:
        weights: pooling weights ``[T]``, returned as they are, or those of heads ``[heads, T, T]``, averaged over the
            heads and the attending frames.
    """
    return weights if weights.dim() == 1 else weights.mean((0, 1))


class Decibels(NamedTuple):
    """Power of an utterance.

    Attributes:
        values: ``[T, F]``, in decibels.
        first: where the first frame begins, in seconds; it is one hop wide around the middle of its window.
        step: seconds between frames.
        top: frequency of the last bin, in hertz.
    """

    values: Tensor
    first: float
    step: float
    top: float


def log_power(front: nn.Module) -> PowerSpectrogram:
    """Return a spectrogram of the logarithm of the power, in the bins and frames of a model's spectrogram."""
    return PowerSpectrogram(
        front.sample_rate, front.n_fft, win_length=front.win_length, hop_length=front.hop_length, f_max=_top(front),
        log=True,
    )  # fmt: skip


def _top(front: nn.Module) -> float:
    """Return the frequency of a spectrogram's last bin, in hertz."""
    return (front.bins[1] - 1) * front.sample_rate / front.n_fft


def spectrogram(front: nn.Module, wave: Tensor) -> Decibels:
    """Return the power of one utterance ``[N]`` in the bins of a model's spectrogram."""
    rate = front.sample_rate
    decibel = log_power(front)(wave[None].float())[0] * (10 / math.log(10))
    first = (front.win_length - front.hop_length) / 2 / rate
    return Decibels(decibel, first, front.hop_length / rate, _top(front))


@style()
def attention(model: nn.Module, wave: Tensor, path: Path, title: str = "", taken: Tensor | None = None) -> Path:
    """Draw the spectrogram of one utterance above the attention over its frames.

    Args:
        model: the model; it is set to evaluation mode.
        wave: ``[N]``.
        path: the PNG file.
        title: title of the figure.
        taken: features ``[T, D]`` that the model takes in place of the wave.
    """
    device = next(model.parameters()).device
    taken = wave if taken is None else taken
    with torch.no_grad():
        _, weights = model.eval()(taken[None].to(device), return_weights=True)
    decibel, first, step, top_frequency = spectrogram(model.spectrogram, wave)
    rate = model.spectrogram.sample_rate
    seconds = len(wave) / rate
    figure = Figure(figsize=(8, 4.2 if weights is not None else 3.2))
    top, *below = np.atleast_1d(figure.subplots(2, 1, sharex=True, height_ratios=(3, 1)) if weights is not None
                                else figure.subplots())  # fmt: skip
    top.imshow(
        decibel.T.numpy(), origin="lower", aspect="auto", cmap="magma",
        extent=(first, first + len(decibel) * step, 0, top_frequency / 1000), vmin=float(decibel.max()) - 80,
    )  # fmt: skip
    top.set(ylabel="frequency (kHz)", title=wrapped(title, 90), facecolor="black", xlim=(0, seconds))
    top.title.set_fontsize(10)
    for bottom in below:
        share = 100 * frame_attention(weights[0].cpu())
        times = (first + torch.arange(len(share) + 1) * model.weights_hop / rate).tolist()
        bottom.stairs(share.tolist(), times, color=BLUE, fill=True, alpha=0.85)
        bottom.set(ylabel="attention (%)", xlim=(0, seconds), ylim=(0, None))
        plain_axes(bottom)
    (below or [top])[-1].set(xlabel="time (s)")
    return save(figure, path)
