"""Proofs: each runs one backend's kernels of one op and raises if a result is wrong.

Short inputs are compared with the float64 reference, forward and backward; long ones with torch's path in float64.
Outputs that a kernel does not write are NaN, and so are inputs that it may not read. Repeats, two streams and the
replay of a CUDA graph must give the same bits.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ser_fast.backends import dispatch, measured
from ser_fast.ops import attention_pool, gru, power_spectrogram
from ser_fast.ops.lengths import frame_mask
from ser_fast.tuning import cases, timing
from ser_fast.tuning.checks import PRECISIONS, allow, check

SHORT, ROWS = 16, 5  # frames and rows of the short inputs
LONG_ROWS = 8  # rows of the long inputs at most: their float64 path takes memory
REPEATS = 5
PLAIN = (None, None, False, power_spectrogram.FLOOR, False, "reflect")  # no normalisation, no logarithm, not centred


class Proof(NamedTuple):
    """A named check; ``run`` raises AssertionError if a result is wrong."""

    name: str
    run: Callable[[], object]


def proofs(op: str, backend: str, shapes: Sequence[cases.Shape], device: torch.device) -> Iterator[Proof]:
    """Yield the proofs of an op for these shapes of a GRU, with the backend chosen when they run."""
    makers = {"gru": _gru, "attention_pool": _pool, "power_spectrogram": _spectrogram}
    for precision in measured.PRECISIONS[op]:
        dtype, switch, tolerance = PRECISIONS[precision]
        allow(switch)
        for proof in makers[op](backend, cases.shapes_of(op, shapes), dtype, tolerance, device):
            yield Proof(f"{precision} {proof.name}", timing.by(backend, proof.run))  # before the next switch


def gradients(call: Callable, tensors: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of a call and the gradients of its tensors, for cotangents that are alike in every dtype."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in tensors]
    outputs = call(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    random = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(output.shape, generator=random).to(output) for output in outputs]
    return outputs, list(torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None], cotangents))


def compare(ours: Callable, theirs: Callable, tensors: Sequence[Tensor | None], tolerance: float, spoil=None) -> None:
    """Compare outputs and gradients with those of a float64 path; ``spoil`` replaces what ours may not read."""
    given = [*tensors] if spoil is None else [spoil(tensors[0]), *tensors[1:]]
    found, grads = gradients(ours, given)
    wanted, exact = gradients(theirs, [None if tensor is None else tensor.double() for tensor in tensors])
    if not any(tensor.any() for tensor in wanted):
        raise AssertionError("torch's path gives zeros: the GPU does not work")
    check("outputs", found, wanted, tolerance)
    check("gradients", grads, exact, 2 * tolerance)


def same_bits(call: Callable[[], Sequence[Tensor]], device: torch.device) -> None:
    """Check that repeats, two streams at once and the replay of a CUDA graph give the same bits."""
    wanted = [tensor.clone() for tensor in call()]

    def equal(found: Sequence[Tensor], what: str) -> None:
        if not all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True)):
            raise AssertionError(f"{what} gives other bits")

    for _ in range(REPEATS):
        equal(call(), "a repeat")
    found = []
    for stream in [torch.cuda.Stream() for _ in range(2)] * 2:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found.append(call())
    torch.cuda.synchronize()
    for outputs in found:
        equal(outputs, "a second stream")
    outputs, replay = timing.captured(call)
    for tensor in outputs:
        tensor.fill_(torch.nan)
    replay()
    torch.cuda.synchronize()
    equal(outputs, "the replay of a graph")


def _spoilt(lengths: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """Return a function that fills the frames past the lengths with NaN; ``dim`` is the frames' dimension."""

    def spoil(tensor: Tensor) -> Tensor:
        inside = frame_mask(lengths, tensor.shape[dim])
        inside = inside if dim else inside.t()
        return tensor.masked_fill(~inside.reshape(*inside.shape, *(1,) * (tensor.dim() - 2)), torch.nan)

    return spoil


def _lengths(frames: int, batch: int, device: torch.device) -> Tensor:
    """Return ragged lengths: the first row is whole, the second empty."""
    return torch.tensor([frames, 0, 1, frames - 1, frames // 2] * -(-batch // 5), device=device)[:batch]


def _gru(backend: str, shapes, dtype: torch.dtype, tolerance: float, device: torch.device) -> Iterator[Proof]:
    layers = set()
    for frames, batch, directions, hidden in shapes:
        if not cases.fits(backend, dtype, hidden, device.index):
            continue
        first = (directions, hidden) not in layers  # short inputs depend on these alone
        layers.add((directions, hidden))
        for reset_after in (True, False):
            named = f"T={frames} B={batch} D={directions} H={hidden} reset_after={reset_after}"
            given = partial(_gru_tensors, directions, dtype=dtype, device=device)
            run = partial(_gru_short, given, reset_after, tolerance)
            if first:
                yield Proof(f"{named}, ragged", partial(run, SHORT, ROWS, hidden))
                yield Proof(f"{named}, odd H", partial(run, SHORT, ROWS, hidden - 1 + hidden % 2))
                yield Proof(f"{named}, packed", partial(run, SHORT, ROWS, hidden, packed=True))
            for power in range(4) if backend == "cuda" else ():
                one = partial(_gru_clusters, run, batch, directions, hidden, dtype, reset_after, device, power)
                yield Proof(f"{named}, clusters of {1 << power}", one)
            yield Proof(
                f"{named}, long",
                partial(_gru_long, given, frames, min(batch, LONG_ROWS), hidden, reset_after, tolerance),
            )
            call = partial(_gru_once, given(SHORT, batch, hidden), _lengths(SHORT, batch, device), reset_after)
            yield Proof(f"{named}, same bits", partial(same_bits, call, device))


def _gru_tensors(directions: int, frames: int, batch: int, hidden: int, dtype, device) -> list[Tensor]:
    """Return gx, w_hh, b_hh and h0."""
    shapes = (
        (frames, batch, directions, 3 * hidden),
        (directions, 3 * hidden, hidden),
        (directions, 3 * hidden),
        (directions, batch, hidden),
    )
    scales = (1.0, hidden**-0.5, hidden**-0.5, 1.0)
    return [(torch.randn(shape, device=device) * scale).to(dtype) for shape, scale in zip(shapes, scales)]


def _gru_short(
    given, reset_after: bool, tolerance: float, frames: int, batch: int, hidden: int, packed=False
) -> None:
    """Compare a ragged batch, padded or packed, with the reference, and a full one without bias and first state."""
    gx, w_hh, b_hh, h0 = given(frames, batch, hidden)
    lengths = _lengths(frames, batch, gx.device)

    def call(op: Callable, lengths: Tensor | None) -> Callable:
        return lambda *tensors: op(*tensors, lengths, reset_after=reset_after)[:2]

    if packed:
        gx = gx.transpose(0, 1)[frame_mask(lengths, frames)]
    spoil = None if packed else _spoilt(lengths, 0)
    compare(call(gru.gru, lengths), call(gru.reference, lengths), (gx, w_hh, b_hh, h0), tolerance, spoil)
    if not packed:
        compare(call(gru.gru, None), call(gru.reference, None), (gx, w_hh, None, None), tolerance)


def _gru_clusters(run, batch, directions, hidden, dtype, reset_after, device, power) -> None:
    """Run on clusters of ``2 ** power`` blocks, if a plan for this shape has them."""
    plan = torch.ops.ser_fast.gru_plan
    with cases.restricted(device, power) as limits:
        given = limits, batch, directions, hidden, reset_after, dispatch.gru_product(dtype)
        if all(plan(*given, backward)[0] for backward in (False, True)):
            run(SHORT, batch, hidden)


def _gru_long(given, frames: int, batch: int, hidden: int, reset_after: bool, tolerance: float) -> None:
    """Compare all frames with torch's path in float64: nn.GRU, or the reference for ``reset_after=False``.

    The gradient of gx is compared only: those of the weights are products of torch's own.
    """
    gx, w_hh, b_hh, _ = given(frames, batch, hidden)

    def ours(gx: Tensor) -> Tensor:
        return gru.gru(gx, w_hh, b_hh, reset_after=reset_after)[0].flatten(2)

    def theirs(gx: Tensor) -> Tensor:
        w, b = w_hh.double(), b_hh.double()
        return (_torch_gru(gx, w, b) if reset_after else gru.reference(gx, w, b, reset_after=False)[0]).flatten(2)

    if reset_after:
        compare(ours, theirs, (gx,), tolerance)
    else:  # the reference's backward takes time quadratic in T
        with torch.no_grad():
            check("outputs", ours(gx), theirs(gx.double()), tolerance)


def _torch_gru(gx: Tensor, w_hh: Tensor, b_hh: Tensor) -> Tensor:
    """Run nn.GRU in one direction at a time on the projected input: its own projection is the identity."""
    found = []
    for d in range(gx.shape[2]):
        layer = nn.GRU(gx.shape[3], w_hh.shape[2], device=gx.device, dtype=gx.dtype).requires_grad_(False)
        values = torch.eye(gx.shape[3]), w_hh[d], torch.zeros(gx.shape[3]), b_hh[d]
        for parameter, value in zip(layer.parameters(), values):
            parameter.copy_(value)
        x = gx[:, :, d].flip(0) if d else gx[:, :, d]
        y = layer(x)[0]
        found.append(y.flip(0) if d else y)
    return torch.stack(found, 2)


def _gru_once(given: list[Tensor], lengths: Tensor, reset_after: bool) -> list[Tensor]:
    """Run both ops once; nothing is copied from the CPU, which a graph cannot hold."""
    gx, w_hh, b_hh, h0 = given
    y, h_n, gates = torch.ops.ser_fast.gru(gx, w_hh, b_hh, h0, lengths, reset_after, True)
    grads = torch.ops.ser_fast.gru_backward(y, h_n, y, gates, w_hh, h0, lengths, reset_after)
    return [y, h_n, gates, *grads]


def _pool(backend: str, shapes, dtype: torch.dtype, tolerance: float, device: torch.device) -> Iterator[Proof]:
    def tensors(frames: int, batch: int, width: int) -> tuple[Tensor, Tensor]:
        h, w = torch.randn(batch, frames, width, device=device), torch.randn(width, device=device)
        return h.to(dtype), (w / width**0.5).to(dtype)

    def compared(lengths: Tensor | None, h: Tensor, w: Tensor) -> None:
        spoil = None if lengths is None else _spoilt(lengths, 1)
        calls = attention_pool.attention_pool, attention_pool.reference
        ours, theirs = (lambda h, w, call=call: call(h, w, lengths) for call in calls)
        compare(ours, theirs, (h, w), tolerance, spoil)

    def once(h: Tensor, w: Tensor, lengths: Tensor) -> list[Tensor]:
        pooled, weights = torch.ops.ser_fast.attention_pool(h, w, lengths)
        backward = torch.ops.ser_fast.attention_pool_backward
        return [pooled, weights, *backward(pooled, weights, h, w, pooled, weights, lengths)]

    tolerance = max(tolerance, 1e-4)  # a softmax over up to 1000 scores
    for frames, batch, width in shapes:
        named = f"T={frames} B={batch} F={width}"
        for what, size in (("ragged", (frames, batch, width)), ("odd F", (SHORT, ROWS, width - 1 + width % 2))):
            run = partial(compared, _lengths(*size[:2], device), *tensors(*size))
            yield Proof(f"{named}, {what}", run)
        yield Proof(f"{named}, full", partial(compared, None, *tensors(frames, batch, width)))
        given = *tensors(frames, batch, width), _lengths(frames, batch, device)
        yield Proof(f"{named}, same bits", partial(same_bits, partial(once, *given), device))


def _spectrogram(backend: str, shapes, dtype: torch.dtype, tolerance: float, device: torch.device) -> Iterator[Proof]:
    sizes = {"": (cases.N_FFT, cases.WINDOW, cases.HOP, cases.BINS), "odd n_fft, ": (135, 63, 20, 60)}

    def arguments(frames: int, batch: int, size: tuple[int, ...], options: tuple = PLAIN) -> tuple:
        n_fft, width, hop, bins = size
        samples = width + hop * (frames - 1)
        wave = torch.randn(batch, samples, device=device)
        window = torch.hamming_window(width, device=device)
        lengths = _lengths(samples, batch, device)
        return wave, window, n_fft, hop, 0, bins, lengths, *options

    def wide(given: tuple) -> list:
        return [
            value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in given
        ]

    def compared(given: tuple) -> None:
        wave, *rest = given
        ours, theirs = (partial(_after_wave, op, values) for op, values in (
            (torch.ops.ser_fast.power_spectrogram, rest), (power_spectrogram.reference, wide(given)[1:])
        ))  # fmt: skip
        compare(ours, theirs, (wave,), tolerance, _spoilt(given[6], 1))

    def outputs(given: tuple, tolerance: float) -> None:
        wave, *rest = given
        exact = wave.double() / 32768 if wave.dtype == torch.int16 else wave.double()
        exact = power_spectrogram.reference(exact, *wide(given)[1:])
        check("outputs", torch.ops.ser_fast.power_spectrogram(wave, *rest), exact, tolerance)

    for frames, batch in shapes:
        for what, size in sizes.items():
            named = f"{what}T={frames} B={batch}"
            yield Proof(f"{named}, ragged", partial(compared, arguments(frames, batch, size)))
            wave, *rest = arguments(frames, batch, size)
            yield Proof(f"{named}, int16", partial(outputs, ((wave * 3000).short(), *rest), tolerance))
            # The mean power of white noise under the window is the floor, so the error of a logarithm is at most that
            # of the power, times the largest power over the mean: 10. A gradient would jump at the floor.
            power = size[1] * 0.4
            mean, std = (torch.full((size[3],), value, device=device) for value in (math.log(power), 2.0))
            logarithm = arguments(SHORT, ROWS, size, (mean, std, True, power, True, "constant"))
            yield Proof(f"{what}log, normalised, centred", partial(outputs, logarithm, 10 * tolerance))
            given = arguments(frames, batch, size)
            once = partial(_listed, torch.ops.ser_fast.power_spectrogram, given)
            yield Proof(f"{named}, same bits", partial(same_bits, once, device))


def _after_wave(op: Callable, rest: Sequence, wave: Tensor) -> Tensor:
    return op(wave, *rest)


def _listed(op: Callable, given: tuple) -> list[Tensor]:
    return [op(*given)]
