"""Power spectrogram: frames, window, DFT, |·|², crop, logarithm and normalisation in one op."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast import backends
from ser_fast.ops import checks, onnx

PAD_MODES = ("reflect", "constant", "replicate", "circular")
FLOOR = 1e-10


def frame_counts(lengths: Tensor, n_fft: int, win_length: int, hop_length: int, center: bool) -> Tensor:
    """Frames of each row of ``lengths`` samples; a row shorter than one window is one frame, an empty row none."""
    spare = lengths + (n_fft // 2 * 2 - n_fft) if center else (lengths - win_length).clamp(min=0)
    return torch.where(lengths > 0, 1 + spare // hop_length, 0)


def reference(
    wave: Tensor,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    bin_begin: int,
    bin_end: int,
    lengths: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    log: bool = False,
    floor: float = FLOOR,
    center: bool = False,
    pad_mode: str = "reflect",
) -> Tensor:
    """The op ``ser_fast::power_spectrogram`` in plain torch, differentiable: the truth kernels are held to."""
    _check(wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log, floor, center, pad_mode)
    samples = wave / 32768 if wave.dtype == torch.int16 else wave
    if onnx.exporting():
        padded = _padded(samples, n_fft, len(window), lengths, center, pad_mode)
        out = onnx.power(padded, window, n_fft, hop_length, bin_begin, bin_end)
    else:
        frames = _frames(samples, window, n_fft, hop_length, lengths, center, pad_mode)
        spectrum = torch.fft.rfft(frames, n=n_fft)[..., bin_begin:bin_end]
        out = spectrum.real**2 + spectrum.imag**2
    if log:
        out = out.clamp(min=floor).log()
    if mean is not None:
        out = out - mean
    if std is not None:
        out = out / std
    if lengths is not None:
        counts = frame_counts(lengths, n_fft, len(window), hop_length, center)
        out = out.masked_fill((torch.arange(out.shape[1], device=out.device) >= counts[:, None])[..., None], 0)
    return out


def _frames(wave, window, n_fft, hop_length, lengths, center, pad_mode) -> Tensor:
    """Windowed frames [B, T, W] of float waves [B, N]."""
    padded = _padded(wave, n_fft, len(window), lengths, center, pad_mode)
    return padded.unfold(1, len(window), hop_length) * window


def _padded(wave, n_fft, width, lengths, center, pad_mode) -> Tensor:
    """The samples that the frames are cut from, each row going on beyond its own end as pad_mode says."""
    if center:
        index, inside = _padded_index(wave, n_fft, width, lengths, pad_mode)
        return wave.gather(1, index).masked_fill(~inside, 0)
    if lengths is not None:
        wave = wave.masked_fill(torch.arange(wave.shape[1], device=wave.device) >= lengths[:, None], 0)
    return F.pad(wave, (0, torch.sym_max(0, width - wave.shape[1])))


def _padded_index(wave, n_fft, width, lengths, pad_mode) -> tuple[Tensor, Tensor]:
    """Where each sample of the padded rows comes from, and whether it comes from anywhere.

    torch.stft pads by n_fft // 2 and centres the window inside n_fft, so the windows never see the outermost part.
    """
    batch, samples = wave.shape
    margin = (n_fft - width) // 2
    begin, end = n_fft // 2 - margin, n_fft // 2 + margin + width - n_fft
    index = torch.arange(-begin, samples + end, device=wave.device).expand(batch, -1)
    length = torch.full((batch, 1), samples, device=wave.device) if lengths is None else lengths[:, None].long()
    length = length.clamp(1, samples)
    inside = torch.ones_like(index, dtype=torch.bool)
    if pad_mode == "constant":
        inside = (index >= 0) & (index < length)
        index = index.clamp(0, samples - 1)
    elif pad_mode == "replicate":
        index = index.clamp(min=0).minimum(length - 1)
    elif pad_mode == "circular":
        index = index % length
    else:
        period = (2 * (length - 1)).clamp(min=1)
        index = (index % period).minimum(period - index % period)
    return index, inside


def reference_backward(
    grad: Tensor,
    wave: Tensor,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    bin_begin: int,
    bin_end: int,
    lengths: Tensor | None,
    std: Tensor | None,
    log: bool,
    floor: float,
    center: bool,
    pad_mode: str,
) -> Tensor:
    """The op ``ser_fast::power_spectrogram_backward``: the gradient of the wave [B, N], by torch's FFT.

    With G_k the gradient of P_k, a frame's gradient is 2 window[n] Σ_k G_k Re(X_k exp(2πi k n / n_fft)); frames
    are added where they overlap and padding is folded back.
    """
    samples, width = wave.shape[1], len(window)
    frames = _frames(wave, window, n_fft, hop_length, lengths, center, pad_mode)
    spectrum = torch.fft.rfft(frames, n=n_fft)
    if lengths is not None:
        counts = frame_counts(lengths, n_fft, width, hop_length, center)
        grad = grad.masked_fill((torch.arange(grad.shape[1], device=grad.device) >= counts[:, None])[..., None], 0)
    if std is not None:
        grad = grad / std
    if log:
        power = spectrum.real[..., bin_begin:bin_end] ** 2 + spectrum.imag[..., bin_begin:bin_end] ** 2
        grad = torch.where(power > floor, grad / power.clamp(min=floor), 0)
    # irfft counts each bin but the first and, for even n_fft, the last twice, and divides by n_fft.
    scale = torch.full((n_fft // 2 + 1,), float(n_fft), dtype=grad.dtype, device=grad.device)
    scale[0] *= 2
    if n_fft % 2 == 0 and n_fft > 1:
        scale[-1] = 2.0 * n_fft
    weights = F.pad(grad, (bin_begin, n_fft // 2 + 1 - bin_end)) * scale
    grad_frames = torch.fft.irfft(spectrum * weights, n=n_fft)[..., :width] * window
    padded = (grad_frames.shape[1] - 1) * hop_length + width
    summed = F.fold(grad_frames.transpose(1, 2), (1, padded), (1, width), stride=(1, hop_length))[:, 0, 0]
    if not center:
        summed = F.pad(summed, (0, max(0, samples - padded)))[:, :samples]
        if lengths is not None:
            summed = summed.masked_fill(torch.arange(samples, device=wave.device) >= lengths[:, None], 0)
        return summed.contiguous()
    index, inside = _padded_index(wave, n_fft, width, lengths, pad_mode)
    summed = F.pad(summed, (0, index.shape[1] - padded)) * inside
    return torch.zeros_like(wave, memory_format=torch.contiguous_format).scatter_add(1, index, summed)


def _check(wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log, floor, center, pad_mode):
    op = "power_spectrogram"
    checks.dtype(op, "wave", wave, torch.float32, torch.float64, torch.int16)
    sizes = tuple(wave.shape)
    checks.require(len(sizes) == 2 and 0 not in sizes, op, f"wave has shape {list(sizes)}", "[B, N] with no size 0")
    checks.require(n_fft >= 1, op, f"n_fft is {n_fft}", "at least 1")
    checks.require(hop_length >= 1, op, f"hop_length is {hop_length}", "at least 1")
    checks.require(0 <= bin_begin <= n_fft // 2, op, f"bin_begin is {bin_begin}", f"in 0..{n_fft // 2}")
    checks.require(
        bin_begin < bin_end <= n_fft // 2 + 1, op, f"bin_end is {bin_end}", f"in {bin_begin + 1}..{n_fft // 2 + 1}"
    )
    checks.require(window.device == wave.device, op, f"window is on {window.device}", f"on {wave.device}")
    checks.dtype(op, "window", window, torch.float32 if wave.dtype == torch.int16 else wave.dtype)
    checks.require(
        window.dim() == 1 and 0 < len(window) <= n_fft, op, f"window has shape {list(window.shape)}",
        f"[W] with W in 1..{n_fft}",
    )  # fmt: skip
    checks.operand(op, "mean", mean, window, (bin_end - bin_begin,), "[F]")
    checks.operand(op, "std", std, window, (bin_end - bin_begin,), "[F]")
    checks.require(
        not log or floor >= torch.finfo(window.dtype).tiny, op, f"floor is {floor}",
        "a normal positive number of the window's dtype, for a logarithm",
    )  # fmt: skip
    checks.require(
        pad_mode in PAD_MODES, op, f"pad_mode is '{pad_mode}'", "'reflect', 'constant', 'replicate' or 'circular'"
    )
    checks.lengths(op, lengths, wave, sizes[0], sizes[1])
    if not checks.readable(wave):
        return
    longest_pad = n_fft // 2 + (pad_mode == "reflect")
    for b, length in enumerate([sizes[1]] * sizes[0] if lengths is None else lengths.tolist()):
        checks.require(
            not center or pad_mode not in ("reflect", "circular") or length == 0 or length >= longest_pad, op,
            f"row {b} of wave has {length} samples",
            f"empty or at least {longest_pad} samples long to be padded by n_fft / 2 at each end",
        )  # fmt: skip
        if wave.dtype != torch.int16 and not wave[b, :length].isfinite().all():
            n = int((~wave[b].isfinite()).nonzero()[0])
            checks.require(False, op, f"wave[{b}, {n}] is {wave[b, n]}", "finite")


def output_shape(
    wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log, floor, center, pad_mode
) -> tuple:
    _check(wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, mean, std, log, floor, center, pad_mode)
    batch, samples = wave.shape
    spare = samples + n_fft // 2 * 2 - n_fft if center else torch.sym_max(samples - len(window), 0)
    return batch, 1 + spare // hop_length, bin_end - bin_begin


def new_output(wave, window, *rest) -> Tensor:
    return window.new_empty(output_shape(wave, window, *rest))


def new_gradient(grad, wave, *_):
    return grad.new_empty(wave.shape)


_tables: dict[tuple, Tensor] = {}


def table(make: Callable[..., Tensor], *key) -> Tensor:
    """``make(*key)`` of the first call, the device being last in key, kept for good: captured graphs may read it."""
    whole_key = make, *key
    found = _tables.get(whole_key)
    if found is None:
        found = make(*key)
        if found.is_cuda and torch.cuda.is_current_stream_capturing():
            return found  # it belongs to the graph
        if found.is_cuda:
            torch.cuda.current_stream(found.device).synchronize()  # other streams may use it from now on
        _tables[whole_key] = found
    return found


def roots(n_fft: int, device: torch.device) -> Tensor:
    """exp(−2πi k / n_fft) for every k, in float32 [n_fft, 2]."""
    turns = torch.arange(n_fft, dtype=torch.float64, device=device) * (-2 * math.pi / n_fft)
    return torch.stack([turns.cos(), turns.sin()], 1).float()


def transforms_on_cuda(n_fft: int) -> bool:
    """Whether the CUDA C++ kernel has a plan: few enough points for a block, and no prime factor above 5."""
    points = n_fft if n_fft % 2 else n_fft // 2
    return 0 < points <= 3072 and 30**12 % points == 0


def on_cuda(wave: Tensor, window: Tensor, n_fft: int, *rest) -> Tensor:
    """The op by the CUDA C++ kernel, or by the reference where there is no plan for n_fft."""
    out = new_output(wave, window, n_fft, *rest)
    out_on_cuda(wave, window, n_fft, *rest, out)
    return out


def out_on_cuda(wave: Tensor, window: Tensor, n_fft: int, *rest) -> None:
    """Likewise, into the last argument."""
    *rest, out = rest
    if transforms_on_cuda(n_fft):
        with torch.cuda.device_of(wave):
            turns = table(roots, n_fft, wave.device)
        torch.ops.ser_fast_cuda.power_spectrogram(wave, window, n_fft, *rest, turns, out)
    else:
        _reference_out(wave, window, n_fft, *rest, out)


def _setup_context(ctx, inputs, output):
    wave, window, *ctx.numbers, lengths, _, std, ctx.log, ctx.floor, ctx.center, ctx.pad_mode = inputs
    ctx.save_for_backward(wave, window, lengths, std)


def _backward(ctx, grad):
    wave, window, lengths, std = ctx.saved_tensors
    grad_wave = torch.ops.ser_fast.power_spectrogram_backward(
        grad, wave, window, *ctx.numbers, lengths, std, ctx.log, ctx.floor, ctx.center, ctx.pad_mode
    )
    return grad_wave, *(None,) * 12


# The kernels' tables are made by their first call and outlive it, which a compiled CUDA graph's memory may not.
_TAGS = (torch.Tag.cudagraph_unsafe,)
_ARGUMENTS = (
    "Tensor wave, Tensor window, int n_fft, int hop_length, int bin_begin, int bin_end, Tensor? lengths,"
    " Tensor? mean, Tensor? std, bool log, float floor, bool center, str pad_mode"
)
backends.register(
    f"power_spectrogram({_ARGUMENTS}) -> Tensor",
    reference=reference,
    cuda=on_cuda,
    fake=new_output,
    backward=_backward,
    setup_context=_setup_context,
    tags=_TAGS,
)
backends.register(
    "power_spectrogram_backward(Tensor grad, Tensor wave, Tensor window, int n_fft, int hop_length, int bin_begin,"
    " int bin_end, Tensor? lengths, Tensor? std, bool log, float floor, bool center, str pad_mode) -> Tensor",
    reference=reference_backward,
    fake=new_gradient,
)


def _reference_out(*args) -> None:
    check_out(*args)
    *inputs, out = args
    out.copy_(reference(*inputs))


def check_out(wave, window, *rest) -> None:
    *rest, out = rest
    checks.operand("power_spectrogram", "out", out, window, output_shape(wave, window, *rest), "[B, T, F]")
    checks.require(out.is_contiguous(), "power_spectrogram", "out is strided", "contiguous")


backends.cuda_library.define(f"power_spectrogram({_ARGUMENTS}, Tensor roots, Tensor(a!) out) -> ()")
backends.library.define(f"power_spectrogram_out({_ARGUMENTS}, Tensor(a!) out) -> ()", tags=_TAGS)
backends.library.impl("power_spectrogram_out", _reference_out, "CompositeExplicitAutograd")
backends.library.impl(
    "power_spectrogram_out",
    backends.on_cuda_tensors("power_spectrogram_out", _reference_out, out_on_cuda),
    "CUDA",
)
torch.library.register_fake("ser_fast::power_spectrogram_out", check_out, lib=backends.library)


def power_spectrogram(
    wave: Tensor,
    window: Tensor,
    n_fft: int,
    hop_length: int,
    bins: tuple[int, int] | None = None,
    lengths: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    *,
    log: bool = False,
    floor: float = FLOOR,
    center: bool = False,
    pad_mode: str = "reflect",
    out: Tensor | None = None,
) -> Tensor:
    """|STFT|² of a padded batch, time-major, optionally cropped, in logarithm and normalised.

    P[t, k] = |Σ_n window[n] wave[t·hop + n] exp(−2πi k n / n_fft)|², then log(max(P, floor)) with ``log``, then
    (· − mean) / std. Equals ``torch.stft(...).abs() ** 2`` transposed: with ``center=False`` its
    ``align_to_window=True``, that is 1 + (N − W) // hop frames, and with ``center=True`` each row is padded by
    n_fft // 2 at both of its own ends.

    Args:
        wave: ``[B, N]`` float32, float64, or int16, which stands for sample / 32768.
        window: ``[W]``, W ≤ n_fft, of the wave's dtype (float32 for int16).
        n_fft, hop_length: samples. Prime factors of n_fft above 500 are slow, and less accurate than torch's in
            float32.
        bins: first bin and the one past the last; all n_fft // 2 + 1 if not given.
        lengths: samples of each row, int64 or int32 ``[B]``, on the wave's device. A row shorter than one window
            is one frame padded with zeros; an empty row has no frame.
        mean, std: ``[F]``, per bin.
        out: where the result is written, contiguous; there is no gradient then.

    Returns:
        ``[B, T, F]`` in the window's dtype, 0 past each row's frames. Differentiable in ``wave``.

    Raises:
        RuntimeError: an argument that does not fit, by name; samples that are not finite. On CUDA neither samples
            nor lengths are read.
    """
    checks.tensors("power_spectrogram", wave=wave, window=window, lengths=lengths, mean=mean, std=std)
    begin, end = (0, n_fft // 2 + 1) if bins is None else bins
    for name, constant in (("window", window), ("mean", mean), ("std", std)):
        good = constant is None or not constant.requires_grad
        checks.require(good, "power_spectrogram", f"{name} requires a gradient", "a constant: only wave has one")
    args = (wave, window, n_fft, hop_length, begin, end, lengths, mean, std, log, floor, center, pad_mode)
    if out is None:
        plain = checks.transforming() or onnx.exporting()
        return (reference if plain else torch.ops.ser_fast.power_spectrogram)(*args)
    checks.tensors("power_spectrogram", out=out)
    good = not (torch.is_grad_enabled() and (wave.requires_grad or out.requires_grad))
    checks.require(good, "power_spectrogram", "out is given where a gradient is wanted", "left out")
    torch.ops.ser_fast.power_spectrogram_out(*args, out)
    return out
