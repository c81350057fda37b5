"""The ops in ONNX's standard operators, for any runtime.

Inside ``torch.onnx.export(model, ...)`` the modules take these forms by themselves. A program of ``torch.export``
holds our own ops instead, which ONNX runtimes do not support: export the module, not the program.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OPSET = 14  # opset that defines the GRU operator


def exporting() -> bool:
    """Return whether ``torch.onnx.export`` is running; the first test avoids importing the exporter needlessly."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def gru(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor | None,
    lengths: Tensor | None,
    reset_after: bool,
) -> tuple[Tensor, Tensor]:
    """Return y ``[T, B, D, H]`` and h_n ``[D, B, H]`` of one layer by ONNX's GRU, with gates in the order z, r, h.

    Arguments: x ``[T, B, I]``, w_ih ``[D, 3H, I]``, w_hh ``[D, 3H, H]``, biases ``[D, 3H]``, h0 ``[D, B, H]``,
    lengths ``[B]``. ``reset_after`` is ONNX's ``linear_before_reset``.
    """
    frames, batch, _ = x.shape
    directions, _, hidden = w_hh.shape
    bias = None if b_ih is None else torch.cat([_ordered(b_ih), _ordered(b_hh)], dim=1)
    sizes = None if lengths is None else lengths.clamp(0, frames).int()
    y, h_n = torch.onnx.ops.symbolic_multi_out(
        "GRU",
        [x, _ordered(w_ih), _ordered(w_hh), bias, sizes, h0],
        {
            "hidden_size": hidden,
            "direction": "forward" if directions == 1 else "bidirectional",
            "linear_before_reset": int(reset_after),
        },
        dtypes=[x.dtype, x.dtype],
        shapes=[[frames, directions, batch, hidden], [directions, batch, hidden]],
        version=OPSET,
    )
    if lengths is not None and h0 is not None:
        # Runtimes lose the first state of an empty row.
        h_n = torch.where(lengths[:, None] > 0, h_n, h0)
    return y.transpose(1, 2), h_n


def _ordered(gates: Tensor) -> Tensor:
    """Reorder r, z, n along the second axis to z, r, n."""
    r, z, n = _parts(gates, 3)
    return torch.cat([z, r, n], dim=1)


def _parts(x: Tensor, count: int) -> list[Tensor]:
    """Return equal slices along the second axis: ``chunk`` becomes a Split that needs opset 18."""
    size = x.shape[1] // count
    return [x[:, place * size : (place + 1) * size] for place in range(count)]


def power(samples: Tensor, window: Tensor, n_fft: int, hop_length: int, bin_begin: int, bin_end: int) -> Tensor:
    """Return |DFT|² ``[B, T, F]`` of the frames of padded ``[B, N]``: one convolution with the DFT's rows."""
    place = torch.arange(len(window), device=samples.device)
    turns = torch.arange(bin_begin, bin_end, device=samples.device)[:, None] * place % n_fft
    angles = turns.double() * (2 * math.pi / n_fft)
    rows = torch.cat([angles.cos(), angles.sin()]).to(window.dtype) * window
    real, imag = _parts(F.conv1d(samples[:, None], rows[:, None], stride=hop_length), 2)
    return (real.square() + imag.square()).transpose(1, 2)
