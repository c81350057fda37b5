"""ser_fast.GRUCell against the layer and against torch's cell."""

import pytest
import torch
from samples import assert_exact
from torch import nn

import ser_fast


@pytest.mark.parametrize("reset_after", [True, False])
def test_gru_cell_steps_equal_the_layer(reset_after):
    layer = ser_fast.GRU(4, 6, reset_after=reset_after).double()
    cell = ser_fast.GRUCell(4, 6, reset_after=reset_after).double()
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in layer.state_dict().items()})
    x, state = torch.randn(5, 3, 4, dtype=torch.float64), None
    for frame, wanted in zip(x, layer(x)[0]):
        state = cell(frame, state)
        assert_exact(state, wanted)
    assert torch.equal(cell(x[0, 0]), cell(x[0])[0]) or torch.allclose(cell(x[0, 0]), cell(x[0])[0])
    if reset_after:
        theirs = nn.GRUCell(4, 6).double()
        theirs.load_state_dict(cell.state_dict())
        assert_exact(cell(x[0], state), theirs(x[0], state))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ser_fast.GRUCell(3, 0), ValueError, "GRUCell: hidden_size must be greater than zero, got: 0"),
        (lambda: ser_fast.GRUCell(3, 4, reset_after=1), TypeError, "GRUCell: reset_after should be of type bool, got: int"),
        (lambda: ser_fast.GRUCell(3, 2)(torch.zeros(2, 2, 3)), ValueError, "GRUCell: Expected input to be 1D or 2D, got 3D instead"),
        (lambda: ser_fast.GRUCell(3, 2)(torch.randn(4, 5)), RuntimeError, "GRUCell: input has inconsistent input_size: got 5 expected 3"),
        (lambda: ser_fast.GRUCell(3, 2)(torch.randn(4, 3), torch.zeros(3, 2)), RuntimeError, "GRUCell: Input batch size 4 doesn't match hidden0 batch size 3"),
    ],
)  # fmt: skip
def test_gru_cell_refuses_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()
