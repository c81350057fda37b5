"""to_torch: modules written as ser_fast's become torch's, for tools that look for torch's classes."""

import pytest
import torch
from samples import assert_exact
from torch import nn
from torch.nn.utils import parametrizations

import ser_fast

BATCH = torch.randn(3, 7, 5)


class Named(ser_fast.GRU):
    """Subclass of a user."""


class Encoder(nn.Module):
    """GRU and cell written as ser_fast's, called as torch's."""

    def __init__(self):
        super().__init__()
        self.rnn = ser_fast.GRU(5, 4, 2, batch_first=True, bidirectional=True)
        self.cell = ser_fast.GRUCell(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(x)
        return self.cell(y[:, -1], torch.zeros(len(x), 6, dtype=x.dtype))


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}])
def test_to_torch_shares_parameters_and_results(options, swapped):
    make = nn.GRU if swapped else ser_fast.GRU
    model = nn.Sequential(make(5, 4, batch_first=True, **options)).double().eval()
    truth, weights = model(BATCH.double())[0], dict(model.named_parameters())
    ser_fast.swap(model)
    report = ser_fast.to_torch(model)
    (gru,) = model
    fresh = nn.GRU(5, 4, batch_first=True, **options)
    assert type(gru) is nn.GRU and str(gru) == str(fresh) and not report.left
    assert report.replaced == {"0": f"ser_fast.GRU is nn.{fresh}"}
    assert vars(gru).keys() == vars(fresh).keys()
    assert all(weights[name] is weight for name, weight in model.named_parameters())
    assert_exact(model(BATCH.double())[0], truth)
    assert ser_fast.unswap(model) == [] and list(ser_fast.swap(model).replaced) == ["0"]


def test_to_torch_says_what_stays():
    replaced = ser_fast.GRU(5, 4)
    replaced.forward = lambda x: x
    model = nn.ModuleDict({
        "old": ser_fast.GRU(5, 4, reset_after=False),
        "cell": ser_fast.GRUCell(5, 4, reset_after=False),
        "named": Named(5, 4),
        "parametrized": parametrizations.weight_norm(ser_fast.GRU(5, 4), "weight_hh_l0"),
        "replaced": replaced,
        "pool": ser_fast.AttentionPool(5),
        "mel": ser_fast.MelSpectrogram(),
        "linear": nn.Linear(5, 4),
    })  # fmt: skip
    kinds = [type(module) for module in model.modules()]
    report = ser_fast.to_torch(model)
    assert not report.replaced and [type(module) for module in model.modules()] == kinds
    assert {name: why.split(":")[0].split(",")[0] for name, why in report.left.items()} == {
        "old": "reset_after is False",
        "cell": "reset_after is False",
        "named": "Named is a subclass",
        "parametrized": "parametrized",
        "replaced": "its forward was replaced on this object",
        "pool": "torch has no such module",
        "mel": "torch has no such module",
    }
    with pytest.raises(TypeError, match=r"to_torch: model is a list; it must be a torch\.nn\.Module"):
        ser_fast.to_torch([model])


@pytest.mark.filterwarnings("ignore")  # torch's TorchScript and quantization warn of themselves
def test_converted_model_is_scripted_and_quantized():
    model = Encoder().eval()
    truth = model(BATCH)
    assert set(ser_fast.to_torch(model).replaced) == {"rnn", "cell"}
    torch.testing.assert_close(torch.jit.script(model)(BATCH), truth)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.GRU, nn.GRUCell})
    assert type(quantized.rnn) is torch.ao.nn.quantized.dynamic.GRU
    assert type(quantized.cell) is torch.ao.nn.quantized.dynamic.GRUCell
    torch.testing.assert_close(quantized(BATCH), truth, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("model", [ser_fast.CGRU, ser_fast.BiGRUMHA])
def test_models_give_the_same_logits_on_torchs_gru(model):
    model, wave = model(4, hidden_size=8, reset_after=True).eval(), torch.randn(3, 4000)
    lengths = torch.tensor([4000, 3000, 0])
    truth = model(wave, lengths)
    assert list(ser_fast.to_torch(model).replaced) == ["rnn"]
    torch.testing.assert_close(model(wave, lengths), truth)
