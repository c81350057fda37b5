"""The power spectrogram in Triton: kernel and launcher, for float32 and int16 waves.

The DFT is a matrix product on tensor cores. Only the power is needed, so the time origin is free: about the window's
centre, sums of mirrored samples multiply cosines only and differences sines only, half the multiplications. Samples
and basis are split into two float16 numbers each and three of the four products are kept, which is as accurate as
float32 once each tile of frames is scaled by its loudest sample. torch's tf32 switches have no effect.

The launcher writes into an output that the caller has allocated and whose arguments it has checked.
"""

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG_BASIS = 14  # the basis is scaled by 2^14: both halves are then normal float16 numbers
_WINDOW_CHUNK = 1024
_LARGEST_TABLE = 2**24  # cosines; beyond 134 MB of tables torch's FFT is faster
# Slope of the source position beyond a row's ends; constant padding needs no mapping and is compiled apart.
_SLOPES = {"reflect": -1, "replicate": 0, "circular": 1}


@triton.jit
def _samples(row, position, length, mask, slope, PADDED: tl.constexpr):
    """Load samples of a row that is 0 beyond its ends, or continued there by ``slope``."""
    if PADDED:
        before = tl.where(slope > 0, length, 0) + slope * position
        after = tl.where(slope > 0, -length, (length - 1) * (1 - slope)) + slope * position
        position = tl.where(position < 0, before, tl.where(position < length, position, after))
        # A row too short to be padded gives wrong samples, but no access out of bounds.
        position = tl.minimum(tl.maximum(position, 0), length - 1)
    else:
        # Unsigned, so that a negative position counts as beyond the end.
        unsigned: tl.constexpr = tl.uint64 if position.dtype == tl.int64 else tl.uint32
        mask = mask & (position.to(unsigned, bitcast=True) < length.to(unsigned, bitcast=True))
    return tl.load(row + position, mask=mask, other=0).to(tl.float32)


@triton.jit
def _exponent(x):
    """Return the biased exponent of a non-negative float32."""
    return x.to(tl.int32, bitcast=True) >> 23


@triton.jit
def _power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _split(x):
    """Return two float16 numbers whose sum is x up to its last two bits."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _product(basis, plane, high, low):
    """Multiply both halves of a basis tile by high + low, without the product of the low parts."""
    basis_high = tl.load(basis)
    basis_low = tl.load(basis + plane)
    product = tl.dot(basis_high, low)
    product = tl.dot(basis_low, high, product)
    return tl.dot(basis_high, high, product)


@triton.jit(
    do_not_specialize=[
        "samples", "stride", "width", "hop", "begin", "taken", "slope", "frames", "bins", "plane", "floor",
        "has_lengths", "has_mean", "has_std", "log",
    ],
    do_not_specialize_on_alignment=["wave", "window", "lengths", "mean", "std", "out"],
)  # fmt: skip
def _forward(
    wave, window, table, lengths, mean, std, out,
    samples, stride, width, hop, begin, taken, slope, frames, bins, columns, plane, floor,
    has_lengths, has_mean, has_std, log,
    PADDED: tl.constexpr, WIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr, WINDOW_CHUNK: tl.constexpr, LOG_BASIS: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = tl.int64 if WIDE else tl.int32
    integral: tl.constexpr = wave.dtype.element_ty == tl.int16
    # Tiles of bins are neighbours, so that programs that share samples run together.
    bin_tiles = tl.cdiv(bins, BLOCK_N)
    frame_tiles = tl.cdiv(frames, BLOCK_M)
    tile = tl.program_id(0)
    bin = tile % bin_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tile // bin_tiles % frame_tiles * BLOCK_M
    b = (tile // bin_tiles // frame_tiles).to(tl.int64)
    row = wave + b * stride

    length = tl.load(lengths + b, mask=has_lengths != 0, other=samples)
    length = tl.minimum(tl.maximum(length, 0), samples).to(kind)
    count = tl.where(length > 0, 1 + tl.maximum(length - taken, 0) // hop, 0)
    frame = first + tl.arange(0, BLOCK_M)
    valid = frame < count
    # Frames that do not exist begin past the last sample.
    start = tl.where(valid, frame.to(kind) * hop - begin, length)

    origin = first.to(kind) * hop - begin
    span = tl.where(first < count, (tl.minimum(first + BLOCK_M, count) - 1 - first).to(kind) * hop + width, 0)
    peak = tl.zeros([CHUNK], tl.float32)
    for at in range(0, span, CHUNK):
        position = at + tl.arange(0, CHUNK)
        x = tl.abs(_samples(row, origin + position, length, position < span, slope, PADDED))
        peak = tl.maximum(peak, tl.where(x < float("inf"), x, 0))
    window_peak = tl.zeros([WINDOW_CHUNK], tl.float32)
    for at in range(0, width, WINDOW_CHUNK):
        n = at + tl.arange(0, WINDOW_CHUNK)
        window_peak = tl.maximum(window_peak, tl.abs(tl.load(window + n, mask=n < width, other=0)))
    # Windowed samples are scaled to less than 2^14 and their sums to less than 2^15, short of float16's 65504.
    exponent = 12 + 2 * 127 - _exponent(tl.max(peak, 0)) - _exponent(tl.max(window_peak, 0))
    # This keeps the scale and its inverse normal; samples that need more than 2^96 have powers that underflow anyway.
    exponent = tl.minimum(tl.maximum(exponent, -126), 96)
    scale = _power_of_two(exponent)

    # Tiles are [F, T], so that neighbouring samples lie along k in the load of the mirrored half too.
    half = (width + 1) // 2
    depth = tl.where(first < count, half, 0)
    basis = table + bin[:, None] * columns + tl.arange(0, BLOCK_K)[None, :]
    plane = tl.multiple_of(plane.to(tl.int64), 16)
    real = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    imaginary = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for k in range(0, depth, BLOCK_K):
        n = k + tl.arange(0, BLOCK_K)
        early = n < half
        late = n < width // 2  # the middle sample of an odd window has no other
        early_weight = tl.load(window + n, mask=early, other=0) * scale
        late_weight = tl.load(window + (width - 1 - n), mask=late, other=0) * scale
        near = _samples(row, start[None, :] + n[:, None], length, early[:, None], slope, PADDED)
        near = near * early_weight[:, None]
        far = start[None, :] + (width - 1 - n)[:, None]
        far = _samples(row, far, length, late[:, None], slope, PADDED) * late_weight[:, None]
        # Tensor cores cut off where float32 would round: sums that run through the whole window stay outside of them.
        high, low = _split(near + far)
        real += _product(basis, plane, high, low)
        high, low = _split(near - far)
        imaginary += _product(basis + 2 * plane, plane, high, low)
        basis += BLOCK_K

    inverse = _power_of_two(-LOG_BASIS - exponent - (15 if integral else 0))
    real *= inverse
    imaginary *= inverse
    value = real * real + imaginary * imaginary
    if log != 0:
        value = tl.log(tl.maximum(value, floor, propagate_nan=tl.PropagateNan.ALL))
    known = bin < bins
    value = value - tl.load(mean + bin, mask=bin < bins * has_mean, other=0)[:, None]
    divisor = tl.load(std + bin, mask=bin < bins * has_std, other=1)
    value = tl.div_rn(value, tl.broadcast_to(divisor[:, None], [BLOCK_N, BLOCK_M]))
    at = (b * frames + frame)[None, :] * bins + bin[:, None]
    tl.store(out + at, tl.where(valid[None, :], value, 0), mask=(frame < frames)[None, :] & known[:, None])


_PLANS = {
    "few": {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 32, "CHUNK": 1024, "num_warps": 4, "num_stages": 3},
    "many": {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "CHUNK": 4096, "num_warps": 4, "num_stages": 3},
}


def plan(frames: int) -> dict[str, int]:
    """Return tile sizes, warps and pipeline stages for rows of so many frames."""
    return _PLANS["few" if frames <= 16 else "many"]


def basis(n_fft: int, width: int, begin: int, end: int, device: torch.device) -> Tensor:
    """Return cos and sin of π k (W − 1 − 2j) / n_fft times 2^14, as two float16 numbers: [4, F, W / 2], padded."""
    j = torch.arange(triton.cdiv(width + 1, 64) * 32, device=device)
    k = torch.arange(begin, begin + triton.cdiv(end - begin, 64) * 64, device=device)
    angle = ((width - 1 - 2 * j) * k[:, None] % (2 * n_fft)).double() * (math.pi / n_fft)
    table = torch.empty(4, len(k), len(j), dtype=torch.float16, device=device)
    for part, function in enumerate((torch.cos, torch.sin)):
        exact = function(angle) * 2**_LOG_BASIS
        table[2 * part] = exact
        table[2 * part + 1] = exact - table[2 * part]
    return table


def fits(width: int, bins: int) -> bool:
    """Return whether the DFT's table is small enough."""
    return width // 2 * bins <= _LARGEST_TABLE


def power_spectrogram(
    wave: Tensor,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    lengths: Tensor | None,
    mean: Tensor | None,
    std: Tensor | None,
    log: bool,
    floor: float,
    center: bool,
    pad_mode: str,
    table: Tensor,
    out: Tensor,
) -> None:
    """Launch ``ser_fast::power_spectrogram_out`` for float32 and int16 waves.

    Args:
        table: :func:`basis` of the window's width and the bins of ``out``.
        out: output ``[B, T, F]``, contiguous.
    """
    batch, samples = wave.shape
    width, (_, frames, bins) = len(window), out.shape
    wave = wave if wave.stride(1) == 1 else wave.contiguous()
    window, mean, std = (None if x is None else x.contiguous() for x in (window, mean, std))
    begin = n_fft // 2 - (n_fft - width) // 2 if center else 0
    sizes = plan(frames)
    tiles = triton.cdiv(bins, sizes["BLOCK_N"]) * triton.cdiv(frames, sizes["BLOCK_M"]) * batch
    wide = (frames + sizes["BLOCK_M"]) * hop_length + n_fft + samples >= 2**31
    with torch.cuda.device_of(wave):
        _forward[(tiles,)](
            wave, window, table, table.view(torch.int64) if lengths is None else lengths.to(torch.int64).contiguous(),
            window if mean is None else mean, window if std is None else std, out,
            samples, wave.stride(0), width, hop_length, begin, n_fft % 2 if center else width,
            _SLOPES.get(pad_mode, 0), frames, bins, table.shape[2], table[0].numel(), floor,
            int(lengths is not None), int(mean is not None), int(std is not None), int(log),
            PADDED=center and pad_mode in _SLOPES,
            WIDE=wide, maxnreg=255 if wide else None,
            WINDOW_CHUNK=_WINDOW_CHUNK, LOG_BASIS=_LOG_BASIS, **sizes,
        )  # fmt: skip


def configurations() -> Iterator[dict]:
    """Yield every kernel that the launcher can choose, in the form that ahead-of-time compilation takes."""
    pointers = {"table": "*fp16", "lengths": "*i64", **dict.fromkeys(("window", "mean", "std", "out"), "*fp32")}
    for kind in ("*fp32", "*i16"):
        for padded, wide in ((False, False), (True, False), (False, True), (True, True)):
            for sizes in _PLANS.values():
                options = {name: sizes[name] for name in ("num_warps", "num_stages")}
                constants = {name: size for name, size in sizes.items() if name not in options}
                options |= {"maxnreg": 255} if wide else {}
                constants |= {"PADDED": padded, "WIDE": wide}
                constants |= {"WINDOW_CHUNK": _WINDOW_CHUNK, "LOG_BASIS": _LOG_BASIS}
                types = {"wave": kind, "floor": "fp32", **pointers, **dict.fromkeys(constants, "constexpr")}
                yield {
                    "kernel": _forward,
                    "signature": {name: types.get(name, "i32") for name in _forward.arg_names},
                    "constexprs": constants,
                    "options": options,
                    "aligned": ["table", "columns"],
                }
