"""``quantize``: int8 weights for the GRUs of a trained model, in place."""

import functools

import torch
from torch import Tensor, nn

from ser_fast.nn.gru import GRU, weight_names
from ser_fast.nn.gru_cell import GRUCell
from ser_fast.nn.swapping import SwapReport, check_module
from ser_fast.ops.gru_layer_int8 import gru_layer_int8, rows_to_int8


@functools.cache
def _buffer_names(layers: int, bidirectional: bool, bias: bool) -> tuple[str, ...]:
    """Return the buffers of each layer: the matrices of all directions, their scales, the biases."""
    each = weight_names(layers, bidirectional, bias)
    directions, names = 2 if bidirectional else 1, []
    for first in range(0, len(each), directions):
        groups = each[first : first + directions]
        matrices = [name for group in groups for name in group[:2]]
        names += matrices + [f"{name}_scale" for name in matrices] + [name for group in groups for name in group[2:]]
    return tuple(names)


class QuantizedGRU(GRU):
    """:class:`ser_fast.GRU` for inference with int8 weights; made by :func:`quantize`.

    Each row of a weight, that is each gate of each unit, has a scale max |w| / 127, and its elements are rounded to
    the nearest multiple. Inputs, biases, gates, state and outputs are float32; on CPU the recurrent products take the
    state rounded to a multiple of 2^-14. Arguments and results are those of :class:`ser_fast.GRU`.

    Attributes:
        weight_ih_l0, weight_hh_l0, ...: int8 buffers, named and shaped as the parameters of :class:`ser_fast.GRU`.
        weight_ih_l0_scale, weight_hh_l0_scale, ...: float32 buffers ``[3H]``, the scales of their rows.
        bias_ih_l0, bias_hh_l0, ...: float32 buffers.

    Raises:
        RuntimeError: if a gradient is wanted: in training mode outside ``torch.no_grad()``, or if the input or hx
            requires one.

    Example:
        >>> gru = QuantizedGRU(40, 64).eval()
        >>> gru.weight_hh_l0.dtype, gru(torch.randn(100, 1, 40))[0].shape
        (torch.int8, torch.Size([100, 1, 64]))
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _round_weights(self)

    @property
    def _like(self) -> Tensor:
        return self.weight_ih_l0_scale

    def _inferring(self, x: Tensor, hx: Tensor | None) -> list[Tensor]:
        wanted = self.training or x.requires_grad or (hx is not None and hx.requires_grad)
        if wanted and torch.is_grad_enabled():
            raise RuntimeError(
                "QuantizedGRU: int8 weights have no gradient; call eval() on the model and use torch.no_grad(), "
                "or train the model before quantize"
            )
        return [getattr(self, name) for name in _buffer_names(self.num_layers, self.bidirectional, self.bias)]

    def _infer(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None, weights: list) -> tuple[Tensor, Tensor]:
        if not torch.is_autocast_enabled(x.device.type):
            return super()._infer(x, hx, lengths, weights)
        with torch.autocast(x.device.type, enabled=False):
            return super()._infer(x.float(), None if hx is None else hx.float(), lengths, weights)

    def _infer_layer(self, x: Tensor, weights: list, h0: Tensor | None, lengths: Tensor | None):
        count = 4 if self.bidirectional else 2
        matrices, scales, biases = weights[:count], weights[count : 2 * count], weights[2 * count :]
        return gru_layer_int8(x, matrices, scales, biases, h0, lengths, self.reset_after, self.batch_first)


def quantize(model: nn.Module) -> SwapReport:
    """Give each :class:`ser_fast.GRU` of a trained model int8 weights, in place, for inference on CPU.

    A single utterance takes as long as reading the weights, which int8 makes four times as short; see
    :class:`QuantizedGRU` for the arithmetic. The modules stay the same objects, with buffers in place of parameters:
    names, hooks, ``state_dict``, pickle, ``deepcopy`` and ``to(device)`` work as before. To load the state dict of a
    quantized model, quantize a new model first.

    With weights as they are initialised, T = 100 and random input the outputs differ from those with float32 weights
    by at most 0.009 (root mean square 0.0012) for H = 64 to 512.

    Not replaced are :class:`ser_fast.GRUCell`, ``nn.GRU`` (see :func:`swap`), weights that are not finite or have
    another dtype than float32, subclasses and parametrized modules, and modules whose ``forward`` was replaced. Other
    modules stay as they are.

    Args:
        model: any module; it is changed in place. Copy it before if the float32 weights are still needed.

    Returns:
        A :class:`SwapReport` of what was replaced, and what was not and why.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> model = nn.Sequential(GRU(40, 256, batch_first=True)).eval()
        >>> print(quantize(model))
        0: ser_fast.GRU is QuantizedGRU(40, 256, batch_first=True)
        >>> model(torch.randn(1, 100, 40))[0].shape
        torch.Size([1, 100, 256])
    """
    check_module("quantize", model)
    report = SwapReport()
    for name, module in model.named_modules():
        if why := _not_quantized(module):
            report.left[name] = why
        elif type(module) is GRU:
            vars(module).pop("_swapped_from", None)
            module.__class__ = QuantizedGRU
            _round_weights(module)
            report.replaced[name] = f"ser_fast.GRU is {module}"
    return report


def _not_quantized(module: nn.Module) -> str:
    """Return why a recurrent module keeps its weights; empty if it does not, and for any other module."""
    if isinstance(module, QuantizedGRU) or not isinstance(module, (GRU, GRUCell, nn.GRU)):
        return ""
    if isinstance(module, GRUCell):
        return "there is no int8 kernel for a single step"
    if isinstance(module, nn.GRU):
        return "torch's class: swap the model before"
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized: remove its parametrizations before"
    if type(module) is not GRU:
        return f"{type(module).__name__} is a subclass, whose code may do something else"
    if "forward" in vars(module):
        return "its forward was replaced on this object"
    dtypes = {weight.dtype for weight in module.parameters()}
    if dtypes != {torch.float32}:
        return f"its weights are {dtypes.pop()}: only float32 is quantized"
    return "" if all(weight.isfinite().all() for weight in module.parameters()) else "a weight is NaN or infinite"


def _round_weights(module: QuantizedGRU) -> None:
    """Replace the parameters by buffers, of int8 and scales for the matrices."""
    for name, weight in list(module.named_parameters(recurse=False)):
        delattr(module, name)
        weight = weight.detach()
        if name.startswith("weight"):
            weight, scale = rows_to_int8(weight)
            module.register_buffer(f"{name}_scale", scale)
        module.register_buffer(name, weight)
