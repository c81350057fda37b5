"""Arguments of every op at the sizes that break kernels, and how close a result must be to the truth."""

import itertools

import pytest
import torch
from torch import Tensor

from ser_fast.ops import attention_pool, conv_pool, gray_deltas, gru, power_spectrogram, self_attention
from ser_fast.ops.power_spectrogram import FLOOR

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter gets bfloat16 products wrong; without a GPU they are only compiled.
HALVES = [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
TRITON = [  # pytest marks of the tests of the Triton kernels
    pytest.mark.usefixtures("three_products"),
    # The interpreter takes loop bounds from arrays of one element, and numpy warns where a GPU goes on to select.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning"),
]

REFERENCES = {
    "gru": gru.reference,
    "attention_pool": attention_pool.reference,
    "power_spectrogram": power_spectrogram.reference,
    "conv_pool": conv_pool.reference,
    "gray_deltas": gray_deltas.reference,
    "self_attention": self_attention.reference,
}


def to(value, dtype=None, device=DEVICE):
    """Tensors among these on a device, the floating ones in this dtype."""
    if isinstance(value, tuple | list):
        return tuple(to(one, dtype, device) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else None)


def op(name: str):
    return getattr(torch.ops.ser_fast, name)


def ragged(batch: int, limit: int) -> Tensor:
    """Lengths that include 0, 1 and the limit as far as there are rows."""
    lengths = torch.randint(0, limit + 1, (batch,))
    special = torch.tensor([limit, 0, 1])[:batch]
    lengths[: len(special)] = special
    return lengths


def spread(tensor: Tensor) -> Tensor:
    """The same values, not contiguous."""
    wide = tensor.new_full((*tensor.shape, 2), float("nan") if tensor.is_floating_point() else 0)
    wide[..., 0] = tensor
    return wide[..., 0]


def gru_arguments(frames, batch, directions, hidden, *, ragged_rows, reset_after, biased=True, save_gates=True,
                  batch_first=False, packed=False, dtype=torch.float64) -> tuple:  # fmt: skip
    gx = torch.randn(frames, batch, directions, 3 * hidden, dtype=dtype)
    if batch_first:
        gx = gx.transpose(0, 1).contiguous().transpose(0, 1)
    w_hh = torch.randn(directions, 3 * hidden, hidden, dtype=dtype) / hidden**0.5
    b_hh = torch.randn(directions, 3 * hidden, dtype=dtype) if biased else None
    h0 = torch.randn(directions, batch, hidden, dtype=dtype) if biased else None
    lengths = ragged(batch, frames) if ragged_rows else None
    if packed:
        gx = torch.cat([gx[:length, row] for row, length in enumerate(lengths.tolist())])
    return gx, w_hh, b_hh, h0, lengths, reset_after, save_gates


def pool_arguments(batch, frames, width, *, ragged_rows, dtype=torch.float64) -> tuple:
    h, w = torch.randn(batch, frames, width, dtype=dtype), torch.randn(width, dtype=dtype)
    return h, w, ragged(batch, frames) if ragged_rows else None


def spectrogram_arguments(batch, samples, width, n_fft, hop, *, ragged_rows=False, normalized=False, log=False,
                          center=False, pad_mode="reflect", bins=None, dtype=torch.float64) -> tuple:  # fmt: skip
    begin, end = bins or (0, n_fft // 2 + 1)
    real = torch.float32 if dtype == torch.int16 else dtype
    wave = torch.randn(batch, samples, dtype=real)
    if dtype == torch.int16:
        wave = torch.randint(-(2**15), 2**15, (batch, samples), dtype=torch.int16)
    mean = torch.randn(end - begin, dtype=real) if normalized else None
    std = torch.rand(end - begin, dtype=real) + 0.5 if normalized else None
    lengths = None
    if ragged_rows:
        # A row that is reflected must be longer than the padding.
        shortest = n_fft // 2 + 1 if center else 0
        lengths = torch.randint(shortest, samples + 1, (batch,))
        lengths[:2] = torch.tensor([samples, 0])[:batch]
    window = torch.rand(width, dtype=real) + 0.1
    return wave, window, n_fft, hop, begin, end, lengths, mean, std, log, FLOOR, center, pad_mode


def conv_pool_arguments(batch, frames, bins, channels, filters, depth, kernel_t, kernel_f, *, ragged_rows,
                        packed=False, biased=True, channels_last=True, dtype=torch.float64) -> tuple:  # fmt: skip
    x = torch.randn(batch, frames, bins, channels, dtype=dtype)
    weight = torch.randn(filters, depth, kernel_t, kernel_f, dtype=dtype) / (depth * kernel_t * kernel_f) ** 0.5
    bias = torch.randn(filters, dtype=dtype) if biased else None
    lengths = ragged(batch, frames) if ragged_rows else None
    if not packed:
        return x, weight, bias, lengths, channels_last, None
    x = torch.cat([row[:length] for row, length in zip(x, lengths.tolist())])
    return x, weight, bias, lengths, channels_last, conv_pool.pooled_total(lengths)


def gray_arguments(batch, frames, bins, *, ragged_rows, packed=False, dtype=torch.float64) -> tuple:
    x, lengths = torch.randn(batch, frames, bins, dtype=dtype), ragged(batch, frames) if ragged_rows else None
    total = batch * frames if lengths is None else int(lengths.sum())
    return x, 3.0, lengths, total if packed else None


def attention_arguments(batch, frames, heads, width, *, ragged_rows, values=False, packed=False, dropout=0.0,
                        dtype=torch.float64) -> tuple:  # fmt: skip
    qkv = torch.randn(batch, frames, 3 if values else 2, heads, width, dtype=dtype)
    lengths = ragged(batch, frames) if ragged_rows else None
    if packed:
        qkv = torch.cat([row[:length] for row, length in zip(qkv, lengths.tolist())])
    return qkv, lengths, dropout, torch.randint(2**63 - 1, ()) if dropout else None


def gru_cases():
    for sizes in [(1, 1, 1, 1), (5, 3, 2, 7), (4, 5, 1, 129), (9, 17, 2, 16), (3, 4, 2, 1)]:
        for ragged_rows, reset_after, biased in itertools.product((False, True), repeat=3):
            yield sizes, {"ragged_rows": ragged_rows, "reset_after": reset_after, "biased": biased,
                          "batch_first": ragged_rows ^ reset_after ^ biased}  # fmt: skip
            if ragged_rows and sizes[1] > 2:
                yield sizes, {"ragged_rows": True, "reset_after": reset_after, "biased": biased, "packed": True}


def pool_cases():
    for sizes in [(1, 1, 1), (3, 5, 7), (4, 1, 129), (5, 33, 16), (2, 300, 1), (2, 3000, 8)]:
        for ragged_rows in (False, True):
            yield sizes, {"ragged_rows": ragged_rows}


def spectrogram_cases():
    """Sizes are batch, samples, window, n_fft, hop."""
    for sizes in [(1, 1, 1, 1, 1), (2, 400, 100, 128, 30), (3, 300, 49, 49, 7), (1, 700, 20, 74, 11),
                  (2, 300, 3, 49, 5), (1, 500, 13, 448, 31)]:  # fmt: skip
        for ragged_rows, plain in itertools.product((False, True), repeat=2):
            yield sizes, {"ragged_rows": ragged_rows, "normalized": not plain, "log": not plain}
    for pad_mode in ("reflect", "constant", "replicate", "circular"):
        yield (3, 200, 60, 96, 25), {"ragged_rows": True, "center": True, "pad_mode": pad_mode}
    yield (2, 60, 100, 128, 30), {"ragged_rows": True, "bins": (3, 50)}


def conv_pool_cases():
    """Sizes are batch, frames, bins, channels, filters, depth, frames and bins of the filter."""
    for sizes in [(1, 1, 1, 1, 1, 1, 1, 1), (4, 9, 12, 3, 16, 2, 5, 3), (3, 8, 7, 16, 33, 16, 5, 3),
                  (3, 5, 3, 5, 7, 2, 3, 7), (2, 3, 6, 70, 2, 8, 1, 3), (3, 7, 41, 17, 5, 17, 7, 3),
                  (3, 19, 13, 3, 33, 2, 3, 3)]:  # fmt: skip
        for ragged_rows in (False, True):
            yield sizes, {"ragged_rows": ragged_rows, "biased": ragged_rows}
        yield sizes, {"ragged_rows": True, "packed": True, "channels_last": False}


def gray_cases():
    for sizes in [(1, 1, 1), (4, 9, 13), (3, 70, 33)]:
        for ragged_rows, packed in itertools.product((False, True), repeat=2):
            yield sizes, {"ragged_rows": ragged_rows, "packed": packed}


def attention_cases():
    """Sizes are batch, frames, heads, width."""
    for sizes in [(1, 1, 1, 1), (3, 5, 2, 7), (2, 33, 3, 32), (4, 50, 1, 17), (1, 130, 2, 8), (2, 17, 1, 130)]:
        for values, dropout in itertools.product((False, True), (0.0, 0.3)):
            yield sizes, {"ragged_rows": False, "values": values, "dropout": dropout}
            yield sizes, {"ragged_rows": True, "values": values, "dropout": dropout, "packed": sizes[1] % 2 == 1}
    yield (2, 1200, 1, 16), {"ragged_rows": True, "values": True}
    yield (1, 1100, 2, 8), {"ragged_rows": False, "dropout": 0.3}


CASES = {
    "gru": (gru_arguments, list(gru_cases())),
    "attention_pool": (pool_arguments, list(pool_cases())),
    "power_spectrogram": (spectrogram_arguments, list(spectrogram_cases())),
    "conv_pool": (conv_pool_arguments, list(conv_pool_cases())),
    "gray_deltas": (gray_arguments, list(gray_cases())),
    "self_attention": (attention_arguments, list(attention_cases())),
}


def all_cases() -> list[tuple]:
    return [(name, make, sizes, options) for name, (make, cases) in CASES.items() for sizes, options in cases]


def case_id(case: tuple) -> str:
    name, _, sizes, options = case
    return f"{name}-{'x'.join(map(str, sizes))}-{'-'.join(key for key, value in options.items() if value)}"


def differentiable(arguments: tuple) -> tuple:
    """Copies of the arguments whose floating tensors of the first four ask for gradients, where the op has them."""
    return tuple(
        value.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point() and position in _DIFFERENTIABLE[len(arguments)]
        else value
        for position, value in enumerate(arguments)
    )


# By the number of arguments: gru 7, attention_pool 3, power_spectrogram 13, conv_pool 6; gray_deltas and self_attention 4.
_DIFFERENTIABLE = {7: (0, 1, 2, 3), 3: (0, 1), 13: (0,), 6: (0, 1, 2), 4: (0,)}


def outputs(result) -> list[Tensor]:
    """The floating results; conv_pool's winners are none."""
    return [result] if isinstance(result, Tensor) else [one for one in result if one.is_floating_point()]


def gradients(function, arguments: tuple, cotangents: list[Tensor]) -> list[Tensor]:
    """Gradients of the sum of outputs times cotangents with respect to all arguments that ask for one."""
    results = outputs(function(*arguments))
    total = sum((result * cotangent).sum() for result, cotangent in zip(results, cotangents))
    return list(torch.autograd.grad(total, [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]))


def assert_exact(found: Tensor, truth: Tensor, what: str = "") -> None:
    """float64 against float64: 1e-12 of the largest value, some thousand roundings of 1.1e-16 each."""
    found, truth = found.detach(), truth.detach()
    scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
    assert found.shape == truth.shape, what
    assert torch.isfinite(found).all(), f"{what} has values that are not finite"
    error = float((found - truth).abs().max()) if truth.numel() else 0.0
    assert error <= 1e-12 * scale, f"{what} is off by {error / scale:.2e} of {scale:.2e}"


def assert_as_accurate(found: Tensor, peer: Tensor, truth: Tensor, what: str = "", factor: float = 2.0) -> None:
    """``found`` may err from the float64 truth at most twice as far as a peer of the same dtype does.

    Four roundings of the largest value are granted besides, for where the peer happens to be exact.
    """
    found, peer, truth = found.detach(), peer.detach(), truth.detach().double()
    scale = float(truth.abs().max()) if truth.numel() else 0.0
    assert torch.isfinite(found).all(), f"{what} has values that are not finite"
    error, allowed = (float((x.double() - truth).abs().max()) if truth.numel() else 0.0 for x in (found, peer))
    slack = 4 * torch.finfo(found.dtype).eps * scale
    assert error <= factor * allowed + slack, (
        f"{what} errs by {error:.2e}, the peer by {allowed:.2e}, scale {scale:.2e}"
    )
