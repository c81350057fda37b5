"""``quantize``: GRUs with int8 weights inside a model."""

import copy
import io
import pickle

import pytest
import torch
from samples import assert_exact
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import ser_fast


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.project, self.gru = nn.Linear(9, 7), ser_fast.GRU(7, 19, **options)

    def forward(self, x, *args, **kwargs):
        return self.gru(self.project(x), *args, **kwargs)


@pytest.mark.parametrize("hidden", [64, 128, 256, 512])
@pytest.mark.parametrize("reset_after", [False, True])
def test_quantized_gru_errs_as_its_weights_do(hidden, reset_after):
    """Each weight errs by a scale / sqrt(12), 1 / (127 sqrt(12 H)) on average.

    So a sum of H products with inputs of variance 1 errs by 0.0023; the gates' slopes are at most 1, so neither does
    the state by more; the largest of 200 000 errors is some 5 times the root mean square.
    """
    module = ser_fast.GRU(hidden, hidden, reset_after=reset_after).eval()
    rounded, x = copy.deepcopy(module), torch.randn(100, 4, hidden)
    ser_fast.quantize(rounded)
    with torch.no_grad():
        error = rounded(x)[0] - module(x)[0]
    expected = 1 / (127 * 12**0.5)
    assert error.square().mean().sqrt() < expected and error.abs().max() < 6 * expected


@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"num_layers": 3, "bidirectional": True, "dropout": 0.5}, {"batch_first": True}]
)
def test_quantized_gru_takes_what_gru_takes(options, reset_after):
    """The result is that of a float32 module with the rounded weights, within 2^-12 a layer for the rounded state."""
    module = ser_fast.GRU(7, 19, **options, reset_after=reset_after).eval()
    rounded = copy.deepcopy(module)
    ser_fast.quantize(rounded)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name.startswith("weight"):
                weight.copy_(getattr(rounded, name) * getattr(rounded, f"{name}_scale")[:, None])
    x = torch.randn(*((3, 20) if module.batch_first else (20, 3)), 7)
    hx = torch.rand(module.num_layers * (1 + module.bidirectional), 3, 19)
    lengths = torch.tensor([20, 0, 11])
    rows = x if module.batch_first else x.transpose(0, 1)
    packed = pack_sequence([row[:n] for row, n in zip(rows, (3, 20, 9))], enforce_sorted=False)
    frames = torch.cat([row[:n] for row, n in zip(rows, lengths.tolist())])
    alone = x[0] if module.batch_first else x[:, 0]
    for args, kwargs in [((x,), {}), ((x, hx), {}), ((x, hx), {"lengths": lengths}), ((alone, hx[:, 0]), {}),
                         ((frames, hx), {"lengths": lengths}), ((packed, hx), {})]:  # fmt: skip
        with torch.no_grad():
            found, truth = rounded(*args, **kwargs), module(*args, **kwargs)
        for one, other in zip(found, truth):
            one, other = (getattr(value, "data", value) for value in (one, other))
            assert (one - other).abs().max() < module.num_layers * 2**-12


def test_quantized_model_is_saved_copied_and_loaded():
    model, x = Model(num_layers=2, bidirectional=True).eval(), torch.randn(30, 2, 9)
    report = ser_fast.quantize(model)
    assert report.replaced == {"gru": "ser_fast.GRU is QuantizedGRU(7, 19, num_layers=2, bidirectional=True)"}
    assert type(model.project) is nn.Linear and not list(model.gru.parameters())
    assert model.gru.weight_hh_l1_reverse.dtype == torch.int8
    again = Model(num_layers=2, bidirectional=True).eval()
    ser_fast.quantize(again)
    again.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [again, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    with torch.no_grad():
        for other in (*others, model.to("cpu")):
            assert torch.equal(other(x)[0], model(x)[0]) and str(other) == str(model)
    size = sum(value.nbytes for value in model.gru.state_dict().values())
    assert size < 0.4 * sum(value.nbytes for value in Model(num_layers=2, bidirectional=True).gru.parameters())
    assert not ser_fast.quantize(model).replaced


def test_quantized_gru_refuses_a_gradient():
    gru, x = ser_fast.GRU(7, 19), torch.randn(20, 2, 7)
    ser_fast.quantize(gru)
    with pytest.raises(RuntimeError, match=r"int8 weights have no gradient; call eval\(\) on the model"):
        gru(x)
    with torch.no_grad():
        assert torch.equal(gru(x)[0], gru.eval()(x)[0])
    assert not gru(x)[0].requires_grad
    for args in [(x.requires_grad_(),), (x.detach(), torch.zeros(1, 2, 19, requires_grad=True))]:
        with pytest.raises(RuntimeError, match="have no gradient"):
            gru(*args)
    with pytest.raises(RuntimeError, match="x has dtype float64; it must be float32"):
        gru(x.detach().double())


def test_quantize_reports_what_it_leaves():
    class Own(ser_fast.GRU):
        pass

    parts = {
        "own": Own(2, 3),
        "cell": ser_fast.GRUCell(2, 3),
        "torch": nn.GRU(2, 3),
        "low": ser_fast.GRU(2, 3).half(),
    }
    broken = ser_fast.GRU(2, 3)
    with torch.no_grad():
        broken.weight_hh_l0[1, 1] = torch.inf
    changed = nn.utils.parametrizations.weight_norm(ser_fast.GRU(2, 3), "weight_hh_l0")
    parts |= {"changed": changed, "broken": broken}
    report = ser_fast.quantize(nn.ModuleDict(parts | {"linear": nn.Linear(2, 3)}))
    assert not report.replaced and set(report.left) == set(parts)
    assert report.left["broken"] == "a weight is NaN or infinite"
    assert report.left["low"] == "its weights are torch.float16: only float32 is quantized"
    with pytest.raises(TypeError, match="quantize: model is a int; it must be a torch"):
        ser_fast.quantize(3)


@pytest.mark.parametrize("make", [ser_fast.CGRU, ser_fast.BiGRUMHA])
def test_quantize_takes_the_papers_models(make):
    model, wave = make(4).eval(), torch.randn(2, 24000)
    exact = model(wave)
    assert len(ser_fast.quantize(model).replaced) == 1
    with torch.no_grad():
        assert (model(wave) - exact).abs().max() < 0.05 * exact.abs().max()
        with torch.autocast("cpu", torch.bfloat16):
            assert model(wave).isfinite().all()


def test_quantized_gru_compiles_and_exports():
    model, x = Model().eval(), torch.randn(30, 2, 9)
    ser_fast.quantize(model)
    with torch.no_grad():
        wanted = model(x)
        program = torch.export.export(model, (x,)).module()
        for found, one in zip(program(x), wanted):
            assert_exact(found.double(), one.double())
