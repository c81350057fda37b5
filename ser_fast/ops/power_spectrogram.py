"""Power spectrogram: frames, window, DFT, |·|², crop, logarithm and normalisation in one op."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ser_fast.backends import registry
from ser_fast.ops import checks, onnx
from ser_fast.ops.lengths import mask_past

PAD_MODES = ("reflect", "constant", "replicate", "circular")
FLOOR = 1e-10
LARGEST_ON_CUDA = 3072  # complex points of a transform that fits a block of the CUDA kernel


class Arguments(NamedTuple):
    """Arguments of the op ``ser_fast::power_spectrogram``, in its order; :func:`power_spectrogram` explains them."""

    wave: Tensor
    window: Tensor
    n_fft: int
    hop_length: int
    bin_begin: int
    bin_end: int
    lengths: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None
    log: bool = False
    floor: float = FLOOR
    center: bool = False
    pad_mode: str = "reflect"

    @property
    def width(self) -> int:
        """Samples of the window."""
        return len(self.window)

    def mask(self, frames: Tensor) -> Tensor:
        """Return frames ``[B, T, F]`` with zeros past each row's last one."""
        if self.lengths is None:
            return frames
        counts = frame_counts(self.lengths, self.n_fft, self.width, self.hop_length, self.center)
        return mask_past(frames, counts)


def frame_counts(lengths: Tensor, n_fft: int, win_length: int, hop_length: int, center: bool) -> Tensor:
    """Return the number of frames of each row; a row shorter than a window has one, an empty row none.

    Args:
        lengths: samples of each row ``[B]``.
        n_fft, win_length, hop_length: samples, as in :func:`power_spectrogram`.
        center: True if each row is padded by n_fft // 2 at both ends.

    Returns:
        Frames of each row ``[B]``.

    Example:
        >>> frame_counts(torch.tensor([16000, 100, 0]), 512, 400, 160, center=False).tolist()
        [98, 1, 0]
    """
    spare = lengths + (n_fft // 2 * 2 - n_fft) if center else (lengths - win_length).clamp(min=0)
    return torch.where(lengths > 0, 1 + spare // hop_length, 0)


def reference(*args, **named) -> Tensor:
    """Reference implementation of ``ser_fast::power_spectrogram`` in plain PyTorch, differentiable."""
    a = Arguments(*args, **named)
    _check(a, "power_spectrogram")
    a = a._replace(wave=a.wave / 32768 if a.wave.dtype == torch.int16 else a.wave)
    if onnx.exporting():
        out = onnx.power(_padded(a), a.window, a.n_fft, a.hop_length, a.bin_begin, a.bin_end)
    else:
        spectrum = torch.fft.rfft(_frames(a), n=a.n_fft)[..., a.bin_begin : a.bin_end]
        out = spectrum.real**2 + spectrum.imag**2
    if a.log:
        out = out.clamp(min=a.floor).log()
    if a.mean is not None:
        out = out - a.mean
    if a.std is not None:
        out = out / a.std
    return a.mask(out)


def _frames(a: Arguments) -> Tensor:
    """Return windowed frames [B, T, W] of float waves [B, N]."""
    return _padded(a).unfold(1, a.width, a.hop_length) * a.window


def _padded(a: Arguments) -> Tensor:
    """Return the samples that frames are cut from; each row is continued beyond its own ends by pad_mode."""
    if a.center:
        index, inside = _padded_index(a)
        return a.wave.gather(1, index).masked_fill(~inside, 0)
    return F.pad(mask_past(a.wave, a.lengths), (0, torch.sym_max(0, a.width - a.wave.shape[1])))


def _padded_index(a: Arguments) -> tuple[Tensor, Tensor]:
    """Return the source of each padded sample, and whether it has one.

    torch.stft pads by n_fft // 2 and centres the window inside n_fft, so the windows never see the outermost part.
    """
    batch, samples = a.wave.shape
    margin = (a.n_fft - a.width) // 2
    begin, end = a.n_fft // 2 - margin, a.n_fft // 2 + margin + a.width - a.n_fft
    index = torch.arange(-begin, samples + end, device=a.wave.device).expand(batch, -1)
    length = torch.full((batch, 1), samples, device=a.wave.device)
    length = (length if a.lengths is None else a.lengths[:, None].long()).clamp(1, samples)
    inside = torch.ones_like(index, dtype=torch.bool)
    if a.pad_mode == "constant":
        inside = (index >= 0) & (index < length)
        index = index.clamp(0, samples - 1)
    elif a.pad_mode == "replicate":
        index = index.clamp(min=0).minimum(length - 1)
    elif a.pad_mode == "circular":
        index = index % length
    else:
        period = (2 * (length - 1)).clamp(min=1)
        index = (index % period).minimum(period - index % period)
    return index, inside


def reference_backward(
    grad, wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, std, log, floor, center, pad_mode
) -> Tensor:
    """Reference implementation of ``ser_fast::power_spectrogram_backward``, by torch's FFT.

    With G_k the gradient of P_k, a frame's gradient is 2 window[n] Σ_k G_k Re(X_k exp(2πi k n / n_fft)); frames
    are added where they overlap and padding is folded back.

    Returns:
        Gradient of the wave ``[B, N]``.
    """
    a = _backward_arguments(
        grad, wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, std, log, floor, center, pad_mode
    )
    spectrum = torch.fft.rfft(_frames(a), n=n_fft)
    grad = a.mask(grad)
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
    grad_frames = torch.fft.irfft(spectrum * weights, n=n_fft)[..., : a.width] * window
    return _overlap_add(a, grad_frames)


def _overlap_add(a: Arguments, frames: Tensor) -> Tensor:
    """Return the transpose of :func:`_frames` without the window: frames [B, T, W] added into a wave [B, N]."""
    samples = a.wave.shape[1]
    padded = (frames.shape[1] - 1) * a.hop_length + a.width
    summed = F.fold(frames.transpose(1, 2), (1, padded), (1, a.width), stride=(1, a.hop_length))[:, 0, 0]
    if not a.center:
        summed = F.pad(summed, (0, max(0, samples - padded)))[:, :samples]
        return mask_past(summed, a.lengths).contiguous()
    index, inside = _padded_index(a)
    summed = F.pad(summed, (0, index.shape[1] - padded)) * inside
    return torch.zeros_like(a.wave, memory_format=torch.contiguous_format).scatter_add(1, index, summed)


def _backward_arguments(grad, wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, std, *rest) -> Arguments:
    """Check the arguments of the backward op and return those of its forward, without the mean."""
    op = "power_spectrogram_backward"
    a = Arguments(wave, window, n_fft, hop_length, bin_begin, bin_end, lengths, None, std, *rest)
    checks.dtype(op, "wave", wave, torch.float32, torch.float64)
    checks.operand(op, "grad", grad, wave, output_shape(a, op), "[B, T, F]")
    return a


def _check(a: Arguments, op: str) -> None:
    n_fft = a.n_fft
    checks.first(op, "wave", a.wave, torch.float32, torch.float64, torch.int16)
    sizes = tuple(a.wave.shape)
    checks.require(len(sizes) == 2 and 0 not in sizes, op, f"wave has shape {list(sizes)}", "[B, N] with no size 0")
    checks.require(n_fft >= 1, op, f"n_fft is {n_fft}", "at least 1")
    checks.require(a.hop_length >= 1, op, f"hop_length is {a.hop_length}", "at least 1")
    checks.require(0 <= a.bin_begin <= n_fft // 2, op, f"bin_begin is {a.bin_begin}", f"in 0..{n_fft // 2}")
    ends = f"in {a.bin_begin + 1}..{n_fft // 2 + 1}"
    checks.require(a.bin_begin < a.bin_end <= n_fft // 2 + 1, op, f"bin_end is {a.bin_end}", ends)
    checks.require(a.window.device == a.wave.device, op, f"window is on {a.window.device}", f"on {a.wave.device}")
    checks.stored(op, "window", a.window)
    checks.dtype(op, "window", a.window, torch.float32 if a.wave.dtype == torch.int16 else a.wave.dtype)
    good = a.window.dim() == 1 and 0 < a.width <= n_fft
    checks.require(good, op, f"window has shape {list(a.window.shape)}", f"[W] with W in 1..{n_fft}")
    checks.optional(op, "mean", a.mean, a.window, (a.bin_end - a.bin_begin,), "[F]")
    checks.optional(op, "std", a.std, a.window, (a.bin_end - a.bin_begin,), "[F]")
    good = not a.log or torch.finfo(a.window.dtype).tiny <= a.floor <= torch.finfo(a.window.dtype).max
    checks.require(good, op, f"floor is {a.floor}", "a normal positive number of the window's dtype, for a logarithm")
    modes = "'reflect', 'constant', 'replicate' or 'circular'"
    checks.require(a.pad_mode in PAD_MODES, op, f"pad_mode is '{a.pad_mode}'", modes)
    checks.lengths(op, a.lengths, a.wave, sizes[0], sizes[1])
    if checks.readable(a.wave):
        _check_samples(a, op)


def _check_samples(a: Arguments, op: str) -> None:
    """Check what depends on values: rows long enough to be padded, and finite samples."""
    batch, samples = a.wave.shape
    longest_pad = a.n_fft // 2 + (a.pad_mode == "reflect")
    limited = a.center and a.pad_mode in ("reflect", "circular")
    allowed = f"empty or at least {longest_pad} samples long to be padded by n_fft / 2 at each end"
    for b, length in enumerate([samples] * batch if a.lengths is None else a.lengths.tolist()):
        good = not limited or length == 0 or length >= longest_pad
        checks.require(good, op, f"row {b} of wave has {length} samples", allowed)
        if a.wave.dtype != torch.int16 and not a.wave[b, :length].isfinite().all():
            n = int((~a.wave[b].isfinite()).nonzero()[0])
            checks.require(False, op, f"wave[{b}, {n}] is {a.wave[b, n]}", "finite")


def output_shape(a: Arguments, op: str = "power_spectrogram") -> tuple:
    """Check the arguments and return the shape ``[B, T, F]`` of the result."""
    _check(a, op)
    batch, samples = a.wave.shape
    spare = samples + a.n_fft // 2 * 2 - a.n_fft if a.center else torch.sym_max(samples - a.width, 0)
    return batch, 1 + spare // a.hop_length, a.bin_end - a.bin_begin


def new_output(*args) -> Tensor:
    """Check the arguments and return an uninitialised output."""
    a = Arguments(*args)
    return a.window.new_empty(output_shape(a))


def new_gradient(*args) -> Tensor:
    """Check the arguments and return an uninitialised gradient."""
    return args[0].new_empty(_backward_arguments(*args).wave.shape)


_tables: dict[tuple, Tensor] = {}


def table(make: Callable[..., Tensor], *key) -> Tensor:
    """Return ``make(*key)``, computed once and kept for the process, since captured CUDA graphs may read it.

    Args:
        make: makes the table.
        key: its arguments, the device last.
    """
    whole_key = make, *key
    found = _tables.get(whole_key)
    if found is None:
        found = make(*key)
        if found.is_cuda and torch.cuda.is_current_stream_capturing():
            return found  # its memory belongs to the graph
        if found.is_cuda:
            torch.cuda.current_stream(found.device).synchronize()  # other streams may use it from now on
        _tables[whole_key] = found
    return found


def roots(n_fft: int, device: torch.device) -> Tensor:
    """Return exp(−2πi k / n_fft) for every k, in float32 [n_fft, 2]."""
    turns = torch.arange(n_fft, dtype=torch.float64, device=device) * (-2 * math.pi / n_fft)
    return torch.stack([turns.cos(), turns.sin()], 1).float()


def transforms_on_cuda(n_fft: int) -> bool:
    """Return whether the CUDA kernel has a plan: few enough points for a block, and no prime factor above 5."""
    points = n_fft if n_fft % 2 else n_fft // 2
    if not 0 < points <= LARGEST_ON_CUDA:
        return False
    for factor in (2, 3, 5):
        while points % factor == 0:
            points //= factor
    return points == 1


def _returning(write: Callable[..., None]) -> Callable[..., Tensor]:
    """Return the op that returns its result, from the one that writes it into its last argument."""

    def call(*args) -> Tensor:
        out = new_output(*args)
        write(*args, out)
        return out

    return call


def out_on_cuda(*args) -> None:
    """CUDA kernel of ``power_spectrogram_out``; falls back to the reference if it has no plan for n_fft."""
    *inputs, out = args
    a = Arguments(*inputs)
    if not transforms_on_cuda(a.n_fft):
        _reference_out(*args)
        return
    with torch.cuda.device_of(a.wave):
        turns = table(roots, a.n_fft, a.wave.device)
    torch.ops.ser_fast_cuda.power_spectrogram(*inputs, turns, out)


def out_on_triton(*args) -> None:
    """Triton kernel of ``power_spectrogram_out``; falls back to the reference if the DFT's table is too large."""
    from ser_fast.kernels import power_spectrogram as kernels

    check_out(*args)
    *inputs, out = args
    a = Arguments(*inputs)
    if not kernels.fits(a.width, a.bin_end - a.bin_begin):
        out.copy_(reference(*a))
        return
    with torch.cuda.device_of(a.wave):
        basis = table(kernels.basis, a.n_fft, a.width, a.bin_begin, a.bin_end, a.wave.device)
    kernels.power_spectrogram(
        a.wave, a.window, a.n_fft, a.hop_length, a.lengths, a.mean, a.std, a.log, a.floor, a.center, a.pad_mode,
        basis, out,
    )  # fmt: skip


on_cuda, on_triton = _returning(out_on_cuda), _returning(out_on_triton)


def _setup_context(ctx, inputs, output):
    a, wanted = Arguments(*inputs), Arguments(*ctx.needs_input_grad[: len(inputs)])
    for name in ("window", "mean", "std"):
        found, allowed = f"{name} requires a gradient", "a constant: only wave can have a gradient"
        checks.require(not getattr(wanted, name), "power_spectrogram", found, allowed)
    ctx.arguments = a._replace(wave=None, window=None, lengths=None, mean=None, std=None)
    ctx.save_for_backward(a.wave, a.window, a.lengths, a.std)


def _backward(ctx, grad):
    wave, window, lengths, std = ctx.saved_tensors
    a = ctx.arguments
    grad_wave = torch.ops.ser_fast.power_spectrogram_backward(
        grad, wave, window, a.n_fft, a.hop_length, a.bin_begin, a.bin_end, lengths, std, a.log, a.floor, a.center,
        a.pad_mode,
    )  # fmt: skip
    return grad_wave, *(None,) * (len(Arguments._fields) - 1)


def _reference_out(*args) -> None:
    check_out(*args)
    *inputs, out = args
    out.copy_(reference(*inputs))


def check_out(*args) -> None:
    """Check the arguments of ``power_spectrogram_out``, the last of which is ``out``."""
    *inputs, out = args
    a = Arguments(*inputs)
    checks.operand("power_spectrogram", "out", out, a.window, output_shape(a), "[B, T, F]")
    checks.require(out.is_contiguous(), "power_spectrogram", "out is strided", "contiguous")
    checks.apart("power_spectrogram", out, wave=a.wave, window=a.window, lengths=a.lengths, mean=a.mean, std=a.std)


# The kernels' tables are made by their first call and outlive it, which a compiled CUDA graph's memory may not.
_TAGS = (torch.Tag.cudagraph_unsafe,)
_ARGUMENTS = (
    "Tensor wave, Tensor window, int n_fft, int hop_length, int bin_begin, int bin_end, Tensor? lengths,"
    " Tensor? mean, Tensor? std, bool log, float floor, bool center, str pad_mode"
)
registry.register(
    "power_spectrogram",
    f"power_spectrogram({_ARGUMENTS}) -> Tensor",
    reference=reference,
    fake=new_output,
    triton=on_triton,
    cuda=on_cuda,
    backward=_backward,
    setup_context=_setup_context,
    tags=_TAGS,
)
registry.register(
    "power_spectrogram",
    "power_spectrogram_backward(Tensor grad, Tensor wave, Tensor window, int n_fft, int hop_length, int bin_begin,"
    " int bin_end, Tensor? lengths, Tensor? std, bool log, float floor, bool center, str pad_mode) -> Tensor",
    reference=reference_backward,
    fake=new_gradient,
)
registry.cuda_library.define(f"power_spectrogram({_ARGUMENTS}, Tensor roots, Tensor(a!) out) -> ()")
registry.library.define(f"power_spectrogram_out({_ARGUMENTS}, Tensor(a!) out) -> ()", tags=_TAGS)
registry.library.impl("power_spectrogram_out", _reference_out, "CompositeExplicitAutograd")
registry.library.impl(
    "power_spectrogram_out",
    registry.on_cuda_tensors("power_spectrogram", _reference_out, out_on_triton, out_on_cuda),
    "CUDA",
)
torch.library.register_fake("ser_fast::power_spectrogram_out", check_out, lib=registry.library)


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
    """Compute |STFT|² of a padded batch, time-major, optionally cropped, in logarithm and normalised.

    P[t, k] = |Σ_n window[n] wave[t·hop + n] exp(−2πi k n / n_fft)|², then log(max(P, floor)) with ``log``, then
    (· − mean) / std. Equivalent to ``torch.stft(...).abs() ** 2`` transposed: with ``center=False`` to its
    ``align_to_window=True``, that is 1 + (N − W) // hop frames, and with ``center=True`` each row is padded by
    n_fft // 2 at both ends.

    Args:
        wave: float32, float64, or int16, which stands for sample / 32768.
        window: window of the wave's dtype (float32 for int16), W ≤ n_fft.
        n_fft: size of the DFT in samples. Prime factors above 500 are slow, and less accurate than torch's in
            float32.
        hop_length: samples from one frame to the next.
        bins: first bin and the one past the last; all n_fft // 2 + 1 if None.
        lengths: samples of each row, int64 or int32, on the wave's device; all samples if None. A row shorter than
            one window is one frame padded with zeros; an empty row has no frame.
        mean, std: normalisation of each bin, of the window's dtype.
        log: natural logarithm of the power.
        floor: smallest power before the logarithm.
        center: centre frame t on sample t·hop, by padding each row.
        pad_mode: mode of the padding: "reflect", "constant", "replicate" or "circular".
        out: where the result is written, contiguous; there is no gradient then.

    Shape:
        wave ``[B, N]``, window ``[W]``, lengths ``[B]``, mean and std ``[F]``; result and out ``[B, T, F]``.

    Returns:
        The spectrogram in the window's dtype, 0 past each row's frames. Differentiable in ``wave``.

    Raises:
        RuntimeError: if an argument has an invalid shape, dtype, device or value, or a sample is not finite. On CUDA
            neither samples nor lengths are read.

    Example:
        >>> import torch
        >>> wave, lengths = torch.randn(2, 16000), torch.tensor([16000, 8000])
        >>> power = power_spectrogram(wave, torch.hamming_window(640), 1600, 160, bins=(0, 401), lengths=lengths)
        >>> power.shape
        torch.Size([2, 97, 401])
    """
    checks.given("power_spectrogram", wave=wave, window=window)
    checks.tensors("power_spectrogram", wave=wave, window=window, lengths=lengths, mean=mean, std=std)
    begin, end = (0, n_fft // 2 + 1) if bins is None else bins
    for name, constant in (("window", window), ("mean", mean), ("std", std)):
        good = constant is None or not constant.requires_grad
        checks.require(
            good, "power_spectrogram", f"{name} requires a gradient", "a constant: only wave can have a gradient"
        )
    args = (wave, window, n_fft, hop_length, begin, end, lengths, mean, std, log, floor, center, pad_mode)
    if out is None:
        plain = checks.transforming() or onnx.exporting()
        return (reference if plain else torch.ops.ser_fast.power_spectrogram)(*args)
    checks.tensors("power_spectrogram", out=out)
    good = not (torch.is_grad_enabled() and (wave.requires_grad or out.requires_grad))
    if not good:
        raise RuntimeError("power_spectrogram: out does not support autograd; omit it or use torch.no_grad()")
    torch.ops.ser_fast.power_spectrogram_out(*args, out)
    return out
