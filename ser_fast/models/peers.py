"""torch's recurrent layers in our models, for comparison in benchmarks and in the experiment `time`."""

import copy
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ser_fast.models.cgru import CGRU
from ser_fast.nn.gru import GRU
from ser_fast.ops import gru


def reference(layer: GRU, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the output of a GRU computed by the op's reference implementation, without dropout.

    Args:
        layer: a batch-first GRU with biases.
        x: ``[B, T, I]``.
        lengths: valid frames of each row ``[B]``; by default all.

    Returns:
        ``[B, T, D * H]``, 0 past each length.

    Example:
        >>> layer, x = GRU(8, 16, batch_first=True), torch.randn(2, 5, 8)
        >>> torch.allclose(reference(layer, x), layer(x)[0], atol=1e-5)
        True
    """
    directions = 1 + layer.bidirectional
    for first in range(0, len(layer.all_weights), directions):
        w_ih, w_hh, b_ih, b_hh = zip(*layer.all_weights[first : first + directions])
        gx = F.linear(x, torch.cat(w_ih), torch.cat(b_ih)).unflatten(-1, (directions, -1)).transpose(0, 1)
        y, *_ = gru.reference(gx, torch.stack(w_hh), torch.stack(b_hh), None, lengths, layer.reset_after)
        x = y.transpose(0, 1).flatten(2)
    return x


def packed(layer: nn.RNNBase, x: Tensor, lengths: Tensor) -> Tensor:
    """Return the output ``[B, T, D * H]`` of a torch layer on a ragged batch, packed before and padded after.

    Args:
        layer: a batch-first ``nn.GRU`` or ``nn.LSTM``.
        x: ``[B, T, I]``.
        lengths: valid frames of each row ``[B]``, at least 1.

    Example:
        >>> packed(nn.GRU(8, 16, batch_first=True), torch.randn(2, 5, 8), torch.tensor([5, 3])).shape
        torch.Size([2, 5, 16])
    """
    y, _ = layer(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]


class TorchRecurrence(nn.Module):
    """``nn.GRU`` or ``nn.LSTM`` with the sizes of one of our layers and its call, ``(x, lengths)``.

    Args:
        ours: the layer whose sizes, device and dtype are taken.
        cell: ``nn.GRU`` or ``nn.LSTM``.
        mode: "padded" computes the padding too; "packed" packs and unpacks around the layer.

    Example:
        >>> layer = TorchRecurrence(GRU(8, 16, batch_first=True), nn.LSTM, "packed")
        >>> y, _ = layer(torch.randn(2, 5, 8), torch.tensor([5, 3]))
        >>> y.shape
        torch.Size([2, 5, 16])
    """

    def __init__(self, ours: GRU, cell: type[nn.RNNBase], mode: str):
        super().__init__()
        like = ours.weight_hh_l0
        self.rnn = cell(ours.input_size, ours.hidden_size, ours.num_layers, batch_first=True, dropout=ours.dropout,
                        bidirectional=ours.bidirectional, device=like.device, dtype=like.dtype)  # fmt: skip
        self.mode = mode

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        """Return the output ``[B, T, D * H]`` of ``x`` ``[B, T, I]``, and None in place of the last state."""
        return (packed(self.rnn, x, lengths) if self.mode == "packed" else self.rnn(x)[0]), None


class ReferenceRecurrence(nn.Module):
    """One of our GRU layers, computed by :func:`reference`."""

    def __init__(self, ours: GRU):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        """Return the output ``[B, T, D * H]`` of ``x`` ``[B, T, I]``, and None in place of the last state."""
        return reference(self.ours, x, lengths), None


def _recur(model: CGRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
    """Replacement of ``CGRU._recur`` for a recurrence that takes lengths."""
    return model.rnn(x, lengths)


def with_recurrence(model: nn.Module, recurrence: nn.Module) -> nn.Module:
    """Return a copy of the model with a copy of ``recurrence`` as its ``rnn``; all other weights are equal.

    Example:
        >>> model = CGRU(3, channels=(2, 2), hidden_size=8)
        >>> with_recurrence(model, ReferenceRecurrence(model.rnn))(torch.randn(1, 8000)).shape
        torch.Size([1, 3])
    """
    changed = copy.deepcopy(model)
    changed.rnn = copy.deepcopy(recurrence)
    for part in changed.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()  # copied weights are not contiguous; cuDNN would gather them in every call
    if isinstance(changed, CGRU):
        changed._recur = MethodType(_recur, changed)  # CGRU itself passes lengths to our GRU only
    return changed


def with_torch(model: nn.Module) -> dict[str, nn.Module]:
    """Return copies of the model with torch's recurrences, by name.

    Example:
        >>> list(with_torch(CGRU(3, channels=(2, 2), hidden_size=8)))
        ['torch GRU, padded', 'torch GRU, packed', 'torch LSTM, padded', 'torch LSTM, packed']
    """
    return {
        f"torch {cell.__name__}, {mode}": with_recurrence(model, TorchRecurrence(model.rnn, cell, mode))
        for cell in (nn.GRU, nn.LSTM)
        for mode in ("padded", "packed")
    }
