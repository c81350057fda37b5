"""Features that were computed under ``torch.inference_mode`` in modules that are trained."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map_only

import ser_fast

X, LENGTHS = torch.randn(2, 7, 5), torch.tensor([7, 3])
PACKED = pack_padded_sequence(X.transpose(0, 1), LENGTHS)
CALLS = {
    "GRU": (lambda: ser_fast.GRU(5, 4, batch_first=True), (X,), {}),
    "GRU, time first": (lambda: ser_fast.GRU(5, 4), (X,), {}),
    "GRU, reset_after=False": (lambda: ser_fast.GRU(5, 4, batch_first=True, reset_after=False), (X,), {}),
    "GRU with lengths": (lambda: ser_fast.GRU(5, 4, batch_first=True), (X,), {"lengths": LENGTHS}),
    "GRU with a state": (lambda: ser_fast.GRU(5, 4), (X, torch.randn(1, 7, 4)), {}),
    "GRU, one step": (lambda: ser_fast.GRU(5, 4), (X[:1],), {}),
    "GRU, unbatched": (lambda: ser_fast.GRU(5, 4), (X[0],), {}),
    "GRU, packed": (lambda: ser_fast.GRU(5, 4), (PACKED, torch.randn(1, 2, 4)), {}),
    "GRUCell": (lambda: ser_fast.GRUCell(5, 4), (X[0], torch.randn(7, 4)), {}),
    "GRUCell, reset_after=False": (lambda: ser_fast.GRUCell(5, 4, reset_after=False), (X[0],), {}),
    "AttentionPool": (lambda: ser_fast.AttentionPool(5), (X, LENGTHS), {}),
    "CGRU": (lambda: ser_fast.CGRU(4, hidden_size=8), (torch.randn(2, 4000), torch.tensor([4000, 3000])), {}),
}


def frozen(value):
    """Return a value as ``torch.inference_mode`` makes it; a packed sequence's tensors too."""
    with torch.inference_mode():
        return tree_map_only(torch.Tensor, torch.clone, value)


def gradients(module, args, named) -> list[torch.Tensor]:
    module.zero_grad()
    y = module(*args, **named)
    tree_leaves(y)[0].square().sum().backward()
    return [weight.grad.clone() for weight in module.parameters()]


@pytest.mark.parametrize("name", CALLS)
def test_module_trains_on_inference_tensors(name):
    make, args, named = CALLS[name]
    module = make().eval()
    wanted = gradients(module, args, named)
    given = [frozen(value) for value in args], {key: frozen(value) for key, value in named.items()}
    assert all(torch.equal(one, other) for one, other in zip(gradients(module, *given), wanted, strict=True))


@pytest.mark.parametrize("make", [ser_fast.PowerSpectrogram, ser_fast.MelSpectrogram])
def test_spectrogram_differentiates_with_inference_lengths(make):
    wave = torch.randn(2, 4000, requires_grad=True)
    make(log=True)(wave, frozen(torch.tensor([4000, 3000])))[0].sum().backward()
    assert wave.grad.isfinite().all() and wave.grad.any()
