"""Drop-in replacement of ``nn.GRUCell``."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast import _torch_compat
from ser_fast.nn.inference import infers, recordable
from ser_fast.ops import checks, onnx
from ser_fast.ops.gru import cell
from ser_fast.ops.gru_layer import gru_cell

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def init_uniform(module: nn.Module, hidden_size: int) -> None:
    """Draw all parameters uniformly from ±1/√H, as torch's recurrent modules do."""
    bound = 1 / math.sqrt(hidden_size)
    for weight in module.parameters():
        nn.init.uniform_(weight, -bound, bound)


class GRUCell(nn.Module):
    """Drop-in replacement of ``nn.GRUCell`` with ``reset_after``: one step of :class:`ser_fast.GRU`, for streaming.

    Without a gradient it runs our kernel on a CPU, otherwise torch's own operators: laying out W_hh for a single step
    costs more than a kernel saves.

    Args:
        input_size: I, features of a frame.
        hidden_size: H, features of the state.
        bias: use biases.
        reset_after: form of the candidate n, see :class:`ser_fast.GRU`.
        device, dtype: device and dtype of the parameters.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: parameters, named and shaped as in ``nn.GRUCell``.

    Shape:
        input ``[B, I]`` or unbatched ``[I]``, hx and result ``[B, H]`` or ``[H]``.

    Raises:
        TypeError: if a size is not an int or ``reset_after`` not a bool.
        ValueError: if a size is below 1.

    Example:
        >>> import torch
        >>> cell, h = GRUCell(80, 128, reset_after=False), torch.zeros(1, 128)
        >>> for frame in torch.randn(5, 1, 80):
        ...     h = cell(frame, h)
        >>> h.shape
        torch.Size([1, 128])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        checks.sizes("GRUCell", input_size=input_size, hidden_size=hidden_size)
        checks.of_type("GRUCell", "reset_after", reset_after, bool)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.reset_after = reset_after
        options = {"device": device, "dtype": dtype}
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size, **options))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size, **options))
        self.bias_ih = nn.Parameter(torch.empty(3 * hidden_size, **options)) if bias else None
        self.bias_hh = nn.Parameter(torch.empty(3 * hidden_size, **options)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise all parameters uniformly from ±1/√H."""
        init_uniform(self, self.hidden_size)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}" + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state.

        Args:
            input: frame ``[B, I]``, or unbatched ``[I]``.
            hx: state before it ``[B, H]``, or unbatched ``[H]``; zeros if None.

        Returns:
            State after it, shaped like hx.

        Raises:
            RuntimeError: if an argument has an invalid shape or device, before anything is computed.
            ValueError: if an argument has more than two dimensions, or its dtype differs from that of the weights
                outside autocast.
        """
        if self._has_usual_shape(input, hx) and (weights := infers(input, hx, self._held_weights)):
            return gru_cell(input, weights, hx, self.bias, self.reset_after)
        input, hx = recordable(input, hx)
        if self.reset_after and self._is_usual(input, hx) and not onnx.exporting():
            return _torch_compat.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        self._check(input, hx)
        shape = (*input.shape[:-1], self.hidden_size)
        x = input.reshape(-1, self.input_size)
        h = x.new_zeros(len(x), self.hidden_size) if hx is None else hx.reshape(-1, self.hidden_size)
        if onnx.exporting():
            weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
            stacked = (None if weight is None else weight[None] for weight in weights)
            _, (h,) = onnx.gru(x[None], *stacked, h[None], None, self.reset_after)
        elif self.reset_after:
            h = _torch_compat.gru_cell(x, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        else:
            h, *_ = cell(F.linear(x, self.weight_ih, self.bias_ih), h, self.weight_hh, self.bias_hh, False)
        return h.reshape(shape)

    def _held_weights(self) -> list[Tensor]:
        held = self._parameters
        if tuple(held) == _NAMES and self.bias:
            return list(held.values())
        return [getattr(self, name) for name in (_NAMES if self.bias else _NAMES[:2])]

    def _has_usual_shape(self, x, h) -> bool:
        """Return whether the shapes of a batch are right at first sight."""
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != self.input_size:
            return False
        return h is None or (isinstance(h, Tensor) and h.shape == (x.shape[0], self.hidden_size))

    def _is_usual(self, x: Tensor, h: Tensor | None) -> bool:
        """Return whether the fast path applies: a full check takes as long as a small step."""
        weight = self.weight_ih
        return (
            isinstance(x, Tensor)
            and isinstance(h, Tensor)
            and x.dim() == h.dim() == 2
            and x.shape == (h.shape[0], self.input_size)
            and h.shape[1] == self.hidden_size
            and x.dtype == h.dtype == weight.dtype
            and x.device == h.device == weight.device
            and x.layout == h.layout == torch.strided
        )

    def _check(self, x: Tensor, h: Tensor | None) -> None:
        """Check the arguments, in torch's words where it checks the same."""
        checks.operands("GRUCell", self.weight_ih, input=x, hx=h)
        for name, value in (("input", x), ("hidden", h)):
            if value is not None and value.dim() not in (1, 2):
                raise ValueError(f"GRUCell: Expected {name} to be 1D or 2D, got {value.dim()}D instead")
        found = x.shape[-1]
        if found != self.input_size:
            raise RuntimeError(f"GRUCell: input has inconsistent input_size: got {found} expected {self.input_size}")
        if h is not None and h.shape[-1] != self.hidden_size:
            raise RuntimeError(
                f"GRUCell: hidden0 has inconsistent hidden_size: got {h.shape[-1]}, expected {self.hidden_size}"
            )
        if h is not None and h.shape[:-1] != x.shape[:-1]:
            sizes = [tensor.shape[0] if tensor.dim() == 2 else "none (unbatched)" for tensor in (x, h)]
            raise RuntimeError("GRUCell: Input batch size {} doesn't match hidden0 batch size {}".format(*sizes))
