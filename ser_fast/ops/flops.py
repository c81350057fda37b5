"""Floating-point operations of each op, for ``torch.utils.flop_counter.FlopCounterMode``.

As for torch's own ops a multiplication with addition counts as two, and a formula follows from shapes alone, so
padding counts. GRUs count like ``nn.GRU``, attention pooling like its matrix products; torch counts no FFT.
"""

import importlib.util
import math
import sys

import torch

COUNTER = "torch.utils.flop_counter"


def gru(gx, w_hh, *args, **named) -> int:
    """Return the recurrent products of all frames: gx ``[..., D, 3H]``, w_hh ``[D, 3H, H]``."""
    return 2 * math.prod(gx[:-2]) * math.prod(w_hh)


def gru_backward(grad_y, grad_h_n, y, gates, w_hh, h0, *args, **named) -> int:
    """Return the products for the states' gradients; the weights' gradient is a product of its own, outside."""
    # Without h0 no gradient is needed before the first step.
    steps = math.prod(y[:-2]) - (grad_h_n[1] if h0 is None else 0)
    return 2 * steps * math.prod(w_hh)


def gru_layer(x, weights, h0, lengths, biased: bool, *args, **named) -> int:
    """Return the products of all frames x ``[..., I]`` with w_ih and w_hh of each direction."""
    return gru_layer_forward(x, weights, h0, lengths, math.prod(x[:-1]), biased)


def gru_layer_forward(x, weights, h0, lengths, total: int, biased: bool, *args, **named) -> int:
    """Return the products of the valid frames with w_ih and w_hh of each direction."""
    each = 4 if biased else 2
    return 2 * total * sum(math.prod(weight) for place, weight in enumerate(weights) if place % each < 2)


def gru_layer_backward(
    grad_y, grad_h_n, x, weights, h0, lengths, gates, states, biased: bool, *flags, **named
) -> int:
    """Return the products for the states' gradients and for those of x and of the weights that are needed."""
    *_, needs_x, needs_weights = flags
    frames, each = gates[0], 4 if biased else 2
    steps = frames - (grad_h_n[1] if h0 is None else 0)
    count = 0
    for place in range(0, len(weights), each):
        w_ih, w_hh = map(math.prod, weights[place : place + 2])
        needs_ih, needs_hh = needs_weights[place : place + 2]
        count += 2 * (frames * w_ih * (needs_x + needs_ih) + (steps + frames * needs_hh) * w_hh)
    return count


def gru_cell(x, weights, *args, **named) -> int:
    """Return the products of a step of x ``[B, I]``."""
    return 2 * x[0] * sum(map(math.prod, weights[:2]))


def gru_layer_int8(x, weights, *args, **named) -> int:
    """Return the products of all frames x ``[..., I]`` with w_ih and w_hh of each direction."""
    return 2 * math.prod(x[:-1]) * sum(map(math.prod, weights))


def attention_pool(h, *args, **named) -> int:
    """Return the products for the scores and for the weighted sum of h ``[B, T, D]``."""
    return 4 * math.prod(h)


def attention_pool_backward(grad_pooled, grad_weights, h, *args, **named) -> int:
    """Return the two products for each gradient, of h ``[B, T, D]`` and of w."""
    return 8 * math.prod(h)


def self_attention(qkv, lengths=None, *args, **named) -> int:
    """Return the product for the weights and, with values, that for the output; a packed batch counts full rows."""
    parts, heads, width = qkv[-3:]
    if len(qkv) == 5:
        batch, frames = qkv[:2]
    else:
        batch, frames = lengths[0], qkv[0] / lengths[0]  # the least for these shapes: equal lengths
    return round(2 * (parts - 1) * batch * frames**2 * heads * width)


def self_attention_backward(grad, qkv, *args, **named) -> int:
    """Return the weights' product again and two products for each product of the forward."""
    return self_attention(qkv, *args) * (3 if qkv[-3] == 2 else 5) // (qkv[-3] - 1)


def power_spectrogram(wave, window, n_fft: int, *args, out_shape, **named) -> int:
    """Return 5/2 n log2 n for the real FFT of each frame, the usual count."""
    frames = args[-1] if out_shape is None else out_shape  # the variant with out returns nothing
    return _transforms(frames, n_fft)


def power_spectrogram_backward(grad, wave, window, n_fft: int, *args, **named) -> int:
    """Return the count of an FFT and an inverse one for each frame."""
    return 2 * _transforms(grad, n_fft)


def _transforms(frames, n_fft: int) -> int:
    batch, count, _ = frames
    return round(batch * count * 2.5 * n_fft * math.log2(n_fft))


def conv_pool(x, weight, *args, **named) -> int:
    """Return the products of the convolution of x ``[..., F, C]`` at all positions of weight ``[O, K, kt, kf]``."""
    return 2 * math.prod(x[:-1]) * (x[-1] - weight[1] + 1) * math.prod(weight)


def conv_pool_backward(grad, x, weight, *args, **named) -> int:
    """Return the products with one pixel of each window, for the gradient of weight and, if needed, of x."""
    return 2 * math.prod(grad) * math.prod(weight[1:]) * (1 + args[-1])


FORMULAS = {
    "gru": gru,
    "gru_backward": gru_backward,
    "gru_backward_with_gates": gru_backward,
    "gru_layer": gru_layer,
    "gru_layer_forward": gru_layer_forward,
    "gru_layer_backward": gru_layer_backward,
    "gru_cell": gru_cell,
    "gru_layer_int8": gru_layer_int8,
    "attention_pool": attention_pool,
    "attention_pool_backward": attention_pool_backward,
    "self_attention": self_attention,
    "self_attention_backward": self_attention_backward,
    "power_spectrogram": power_spectrogram,
    "power_spectrogram_out": power_spectrogram,
    "power_spectrogram_backward": power_spectrogram_backward,
    "conv_pool": conv_pool,
    "conv_pool_backward": conv_pool_backward,
}


class _Finder:
    """Import hook that registers the formulas once torch's counter is imported, which takes 0.3 s with Triton."""

    def find_spec(self, name: str, path=None, target=None):
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module) -> None:
            execute(module)
            _register_with(module)

        spec.loader.exec_module = exec_module
        return spec


def _register_with(counter) -> None:
    for name, formula in FORMULAS.items():
        counter.register_flop_formula(getattr(torch.ops.ser_fast, name))(formula)


def register() -> None:
    """Register the formulas with torch's counter, now or when it is imported."""
    if COUNTER in sys.modules:
        _register_with(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _Finder())
