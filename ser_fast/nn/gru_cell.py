"""One GRU step as a module."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast.ops import checks
from ser_fast.ops.gru import cell


def init_uniform(module: nn.Module, hidden_size: int) -> None:
    bound = 1 / math.sqrt(hidden_size)
    for weight in module.parameters():
        nn.init.uniform_(weight, -bound, bound)


class GRUCell(nn.Module):
    """``nn.GRUCell`` with ``reset_after`` as in :class:`GRU`: one step, for streaming.

    It runs torch's own operators, since a kernel that lays W_hh out anew for a single step is slower: see
    ``ser-fast info``.
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
        init_uniform(self, self.hidden_size)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}" + ("" if self.reset_after else ", reset_after=False")

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state ``[B, H]`` from the input ``[B, I]`` and the state ``hx`` ``[B, H]``; unbatched likewise.

        Raises:
            RuntimeError: an argument that does not fit, by name, before anything is computed.
            ValueError: more than two dimensions, or another dtype than the weights', outside autocast.
        """
        try:
            if self.reset_after and input.dim() == 2 and hx.dim() == 2 and input.shape[0]:
                return torch._VF.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        except (AttributeError, RuntimeError, TypeError):
            pass  # a small step takes no longer than checking it, so what does not fit is named only once it failed
        self._check(input, hx)
        shape = (*input.shape[:-1], self.hidden_size)
        x = input.reshape(-1, self.input_size)
        h = x.new_zeros(len(x), self.hidden_size) if hx is None else hx.reshape(-1, self.hidden_size)
        if self.reset_after:
            h = torch._VF.gru_cell(x, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        else:
            h, *_ = cell(F.linear(x, self.weight_ih, self.bias_ih), h, self.weight_hh, self.bias_hh, False)
        return h.reshape(shape)

    def _check(self, x: Tensor, h: Tensor | None) -> None:
        """In torch's words, as far as it checks the same."""
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
