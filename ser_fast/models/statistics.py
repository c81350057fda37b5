"""Statistics of padded batches over the frames that a mask selects, and the groups of them that Functionals uses."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast._require import require
from ser_fast.models.descriptors import SHAPE, Frames

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LEAP = 0.3  # octaves; a larger step between two frames is a pitch error
LOUD = -2.3  # log power relative to the loudest frame: -10 dB
SOFT = -4.6  # -20 dB
BANDS = 16  # frequency bands of the modulation spectrum
MODULATIONS = 8  # log-spaced ranges of modulation frequency, from 1/256 of the frame rate to below half of it
SPAN = 1024  # DFT length of the modulation spectrum, in frames


def moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the (biased) standard deviation over the masked frames.

    Args:
        x: ``[B, T, D]``.
        mask: frames to use, bool ``[B, T]``.

    Returns:
        Mean and standard deviation, each ``[B, D]``; 0 for a row without a selected frame.

    Example:
        >>> x, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]])
        >>> moments(x, mask)
        (tensor([[2.]]), tensor([[1.]]))
    """
    mask, count = mask[..., None], mask.sum(1).clamp(min=1)[:, None]
    mean = x.masked_fill(~mask, 0).sum(1) / count
    variance = (x - mean[:, None]).masked_fill(~mask, 0).square().sum(1) / count
    none = variance == 0  # where the root has no derivative
    return mean, variance.masked_fill(none, 1).sqrt().masked_fill(none, 0)


def distribution(x: Tensor, mask: Tensor) -> Tensor:
    """Return mean, standard deviation and the :data:`QUANTILES` over the masked frames.

    A quantile is interpolated linearly between two values, as ``numpy.quantile`` does.

    Args:
        x: ``[B, T, D]``.
        mask: frames to use, bool ``[B, T]``.

    Returns:
        ``[B, 7 D]``: D means, D standard deviations, then five quantiles of each feature; 0 without a frame.

    Example:
        >>> x = torch.arange(5.0).view(1, 5, 1)
        >>> distribution(x, torch.ones(1, 5, dtype=torch.bool))[0, 2:].tolist()  # quantiles
        [0.20000000298023224, 1.0, 2.0, 3.0, 3.799999952316284]
    """
    x, mask, count = F.pad(x, (0, 0, 0, 1)), F.pad(mask, (0, 1)), mask.sum(1)  # T may be 0, gather needs a frame
    ordered = x.mT.masked_fill(~mask[:, None], torch.inf).sort(2).values  # [B, D, T]
    place = torch.tensor(QUANTILES, device=x.device, dtype=x.dtype) * (count - 1).clamp(min=0)[:, None]
    low = place.long()[:, None].expand(-1, x.shape[2], -1)
    high = (low + 1).minimum((count - 1).clamp(min=0)[:, None, None])
    quantiles = torch.lerp(ordered.gather(2, low), ordered.gather(2, high), (place % 1)[:, None])
    quantiles = quantiles.masked_fill((count == 0)[:, None, None], 0)
    return torch.cat([*moments(x, mask), quantiles.flatten(1)], 1)


def trend(x: Tensor, mask: Tensor) -> Tensor:
    """Return the slope of the regression line over time, times the number of masked frames.

    Args:
        x: ``[B, T, D]``.
        mask: frames to use, bool ``[B, T]``.

    Returns:
        ``[B, D]``, the line's rise over the selected number of frames.

    Example:
        >>> x = 2 * torch.arange(5.0).view(1, 5, 1)
        >>> trend(x, torch.ones(1, 5, dtype=torch.bool)).tolist()
        [[10.0]]
    """
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[None, :, None].expand(len(x), -1, 1)
    count = mask.sum(1)[:, None]
    centred = (time - moments(time, mask)[0][:, None]).masked_fill(~mask[..., None], 0)
    return (centred * x).sum(1) / centred.square().sum(1).clamp(min=1) * count


def slopes(x: Tensor) -> Tensor:
    """Return the delta of frames 2 to T - 3: ``Σ n (x[t+n] - x[t-n]) / (2 Σ n²)``, n = 1, 2.

    Args:
        x: ``[B, T, D]``.

    Returns:
        ``[B, T - 4, D]``.

    Example:
        >>> slopes(3 * torch.arange(6.0).view(1, 6, 1)).flatten().tolist()
        [3.0, 3.0]
    """
    return (2 * (x[:, 4:] - x[:, :-4]) + x[:, 3:-1] - x[:, 1:-3]) / 10


def modulation(x: Tensor, mask: Tensor) -> Tensor:
    """Return the log modulation spectrum: mean power per frame in each range of modulation frequency.

    The mean over the masked frames is subtracted before. Ranges are log-spaced; see :data:`MODULATIONS`.

    Args:
        x: ``[B, T, D]``.
        mask: frames to use, bool ``[B, T]``.

    Returns:
        ``[B, D, MODULATIONS]``, natural logarithms.

    Example:
        >>> x = torch.sin(2 * torch.pi * torch.arange(512) / 16).view(1, 512, 1)  # 1/16 of the frame rate
        >>> modulation(x, torch.ones(1, 512, dtype=torch.bool)).argmax().item()
        4
    """
    x = (x - moments(x, mask)[0][:, None]).masked_fill(~mask[..., None], 0)
    # Summing spans of SPAN frames samples the whole sequence's spectrum at the SPAN-point DFT frequencies.
    spans = F.pad(x, (0, 0, 0, -x.shape[1] % SPAN)).unflatten(1, (-1, SPAN)).sum(1)
    power = torch.fft.rfft(spans, dim=1).abs().square() / mask.sum(1).clamp(min=1)[:, None, None]
    edges = torch.logspace(2, SPAN.bit_length() - 2, MODULATIONS + 1, base=2, device="cpu").round().long().tolist()
    return torch.stack([power[:, a:b].mean(1) for a, b in pairwise(edges)], 2).clamp(min=1e-6).log()


def _distributions(x: Frames) -> list[Tensor]:
    return [distribution(torch.cat([x.mels, x.cepstra, x.voicing, x.level], 2), x.valid)]


def _voiced(x: Frames) -> list[Tensor]:
    steps = x.pitch[:, 1:] - x.pitch[:, :-1]
    small = x.voiced[:, 1:] & x.voiced[:, :-1] & (steps[..., 0].abs() < LEAP)
    return [distribution(torch.cat([x.mels, x.pitch], 2), x.voiced), distribution(steps, small)]


def _correlogram(x: Frames) -> list[Tensor]:
    return [*moments(x.correlogram, x.valid)]


def _changes(x: Frames) -> list[Tensor]:
    spectrum, inside = torch.cat([x.mels, x.cepstra], 2), x.valid[:, 2:]
    changes = spectrum[:, 2:] - spectrum[:, :-2]
    return [moments(changes, inside)[1], moments(changes.abs(), inside)[0]]


def _shape(x: Frames) -> list[Tensor]:
    changes = x.shape[:, 2:] - x.shape[:, :-2]
    return [distribution(x.shape, x.valid), distribution(changes, x.valid[:, 2:]), distribution(x.shape, x.voiced)]


def _slopes(x: Frames) -> list[Tensor]:
    return [distribution(slopes(x.mels), x.voiced[:, 2:-2] & x.valid[:, 4:])]


def _trends(x: Frames) -> list[Tensor]:
    every = torch.cat([x.mels, x.cepstra, x.level, x.voicing], 2)
    return [trend(every, x.valid), trend(x.pitch, x.voiced)]


def _thirds(x: Frames) -> list[Tensor]:
    time = torch.arange(x.valid.shape[1], device=x.valid.device)
    ends = [(x.lengths * part // 3)[:, None] for part in range(4)]
    thirds = [x.valid & (time >= begin) & (time < end) for begin, end in pairwise(ends)]
    first, middle, last = (moments(x.mels, third)[0] for third in thirds)
    return [first - middle, last - middle]


def _rhythm(x: Frames) -> list[Tensor]:
    frames = x.lengths.clamp(min=1).to(x.mels.dtype)
    changes = (x.voiced[:, 1:] != x.voiced[:, :-1]) & x.valid[:, 1:]
    return [torch.stack([x.voiced.sum(1) / frames, changes.sum(1) / frames, frames.log()], 1)]


def _unvoiced(x: Frames) -> list[Tensor]:
    return [distribution(x.mels, x.valid & ~x.voiced)]


def _levels(x: Frames) -> list[Tensor]:
    spectrum, level = torch.cat([x.mels, x.cepstra], 2), x.level[..., 0]
    return [*moments(spectrum, x.valid & (level > LOUD)), *moments(spectrum, x.valid & (level <= SOFT))]


def _modulation(x: Frames) -> list[Tensor]:
    bands = F.adaptive_avg_pool1d(x.mels, min(BANDS, x.mels.shape[2]))
    return [modulation(torch.cat([bands, x.voicing, x.level], 2), x.valid).flatten(1)]


# By name; documented in the docstring of Functionals.
GROUPS: dict[str, Callable[[Frames], list[Tensor]]] = {
    "distributions": _distributions,
    "voiced": _voiced,
    "correlogram": _correlogram,
    "changes": _changes,
    "shape": _shape,
    "slopes": _slopes,
    "trends": _trends,
    "thirds": _thirds,
    "rhythm": _rhythm,
    "unvoiced": _unvoiced,
    "levels": _levels,
    "modulation": _modulation,
}


def ordered(model: str, groups: Sequence[str]) -> tuple[str, ...]:
    """Return groups in the order of :data:`GROUPS`, so that weights do not depend on the order of an option.

    Args:
        model: name for error messages.
        groups: some of the names of :data:`GROUPS`, or none.

    Raises:
        ValueError: if a name is unknown or given twice.

    Example:
        >>> ordered("Functionals", ["trends", "voiced"])
        ('voiced', 'trends')
    """
    names = isinstance(groups, (list, tuple)) and all(isinstance(name, str) for name in groups)
    known = names and len(set(groups) & GROUPS.keys()) == len(groups)
    require(known, f"{model}: groups is {groups!r}", f"some of {', '.join(GROUPS)}, each once")
    return tuple(name for name in GROUPS if name in groups)


def counted(groups: Sequence[str], n_mels: int, n_cepstra: int, n_lags: int) -> int:
    """Return the number of statistics of some groups.

    Args:
        groups: names of :data:`GROUPS`.
        n_mels: mel bands.
        n_cepstra: cepstral coefficients.
        n_lags: lags of the correlogram.

    Example:
        >>> counted(["trends", "rhythm"], n_mels=64, n_cepstra=20, n_lags=64)
        90
    """
    widths = {"mels": n_mels, "cepstra": n_cepstra, "voicing": 1, "pitch": 1, "level": 1, "correlogram": n_lags}
    with torch.device("cpu"):  # on the meta device sorting imports torch's compiler: a second of every prediction
        one = torch.ones(1, 1, dtype=torch.bool)
        zeros = {name: torch.zeros(1, 1, width) for name, width in (widths | {"shape": SHAPE}).items()}
        frames = Frames(lengths=one.sum(1), valid=one, voiced=one, **zeros)
        return sum(values.shape[1] for name in groups for values in GROUPS[name](frames))
