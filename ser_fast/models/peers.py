"""torch's layers in the place of ours, in the same models: what benchmarks and the experiment `time` race against."""

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
    """What batch-first layers with biases must compute without dropout, by their op's reference."""
    directions = 1 + layer.bidirectional
    for first in range(0, len(layer.all_weights), directions):
        w_ih, w_hh, b_ih, b_hh = zip(*layer.all_weights[first : first + directions])
        gx = F.linear(x, torch.cat(w_ih), torch.cat(b_ih)).unflatten(-1, (directions, -1)).transpose(0, 1)
        y, *_ = gru.reference(gx, torch.stack(w_hh), torch.stack(b_hh), None, lengths, layer.reset_after)
        x = y.transpose(0, 1).flatten(2)
    return x


def packed(layer: nn.RNNBase, x: Tensor, lengths: Tensor) -> Tensor:
    """A ragged batch through torch's layer as torch wants it, packed before and padded again after."""
    y, _ = layer(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]


class TorchRecurrence(nn.Module):
    """nn.GRU or nn.LSTM of our layer's size: over the padding too ("padded"), or packed around it ("packed")."""

    def __init__(self, ours: GRU, cell: type[nn.RNNBase], way: str):
        super().__init__()
        like = ours.weight_hh_l0
        self.rnn = cell(ours.input_size, ours.hidden_size, ours.num_layers, batch_first=True, dropout=ours.dropout,
                        bidirectional=ours.bidirectional, device=like.device, dtype=like.dtype)  # fmt: skip
        self.way = way

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        return (packed(self.rnn, x, lengths) if self.way == "packed" else self.rnn(x)[0]), None


class ReferenceRecurrence(nn.Module):
    """Our layer by its op's reference."""

    def __init__(self, ours: GRU):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
        return reference(self.ours, x, lengths), None


def _recur(model: CGRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, None]:
    return model.rnn(x, lengths)


def with_recurrence(model: nn.Module, recurrence: nn.Module) -> nn.Module:
    """A copy of the model with another recurrence; everything else is alike in kind and in weights."""
    twin = copy.deepcopy(model)
    twin.rnn = copy.deepcopy(recurrence)
    for part in twin.modules():
        if isinstance(part, nn.RNNBase):
            part.flatten_parameters()  # a copy's weights lie apart, and cuDNN would gather them in every call
    if isinstance(twin, CGRU):
        twin._recur = MethodType(_recur, twin)  # CGRU itself gives lengths to our GRU only
    return twin


def with_torch(model: nn.Module) -> dict[str, nn.Module]:
    """The model with each of torch's recurrences, "torch GRU, padded" and so on."""
    return {
        f"torch {cell.__name__}, {way}": with_recurrence(model, TorchRecurrence(model.rnn, cell, way))
        for cell in (nn.GRU, nn.LSTM)
        for way in ("padded", "packed")
    }
