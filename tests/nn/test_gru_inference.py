"""GRU and GRUCell without a gradient: the same results as with one, whatever happens to the weights."""

import copy
import io
import os
import pickle
import subprocess
import sys
import threading

import pytest
import torch
from samples import assert_exact
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.rnn import pack_sequence

import ser_fast
from ser_fast.nn import gru as gru_module
from ser_fast.ops.gru_layer import gru_layer

FRAMES = 20  # more than the frames up to which the weights are taken as they lie


def differentiable(module, *args, **kwargs):
    with torch.enable_grad():
        return module(*args, **kwargs)


def assert_same(module, *args, **kwargs) -> None:
    with torch.no_grad():
        found = module(*args, **kwargs)
    truth = differentiable(module, *args, **kwargs)
    for one, other in zip(found, truth) if isinstance(found, tuple) else ((found, truth),):
        assert not one.requires_grad
        assert_exact(one, other)


@pytest.mark.parametrize("frames", [1, 5, 40])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"num_layers": 3, "bidirectional": True, "dropout": 0.5}, {"batch_first": True}]
)
def test_gru_equals_itself_with_gradients(options, reset_after, frames):
    module = ser_fast.GRU(7, 19, **options, reset_after=reset_after, dtype=torch.float64).eval()
    x = torch.randn(*((3, frames) if module.batch_first else (frames, 3)), 7).double()
    hx = torch.randn(module.num_layers * (1 + module.bidirectional), 3, 19).double()
    lengths = torch.tensor([frames, 0, frames // 2 + 1])
    for state in (None, hx):
        assert_same(module, x, state)
        assert_same(module, x, state, lengths=lengths)
        assert_same(module, x[:, 0] if not module.batch_first else x[0], None if state is None else state[:, 0])
    rows = x if module.batch_first else x.transpose(0, 1)
    assert_same(module, torch.cat([row[:n] for row, n in zip(rows, lengths.tolist())]), hx, lengths=lengths)


def test_gru_equals_itself_on_a_packed_sequence():
    module = ser_fast.GRU(7, 19, num_layers=2, bidirectional=True, dtype=torch.float64)
    packed = pack_sequence([torch.randn(n, 7).double() for n in (3, 20, 9)], enforce_sorted=False)
    with torch.no_grad():
        (y, *_), h_n = module(packed)
    (truth, *_), last = differentiable(module, packed)
    assert_exact(y, truth)
    assert_exact(h_n, last)


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("frames", [5, 40])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
def test_gru_infers_in_bfloat16_by_the_op(options, reset_after, frames, monkeypatch):
    """As a module in bfloat16 and under autocast, from float32 and from bfloat16: near float64, by 2^-6 a layer."""
    calls = []
    monkeypatch.setattr(gru_module, "gru_layer", lambda *args: calls.append(args) or gru_layer(*args))
    exact = ser_fast.GRU(7, 19, **options, reset_after=reset_after).bfloat16().double()
    x, lengths = torch.randn(frames, 3, 7).bfloat16(), torch.tensor([frames, 0, frames // 2 + 1])
    hx = torch.randn(exact.num_layers * (1 + exact.bidirectional), 3, 19).bfloat16()
    truth = exact(x.double(), hx.double(), lengths=lengths)
    single = copy.deepcopy(exact).float()
    with torch.no_grad():
        results = [copy.deepcopy(exact).bfloat16()(x, hx, lengths=lengths)]
        with torch.autocast("cpu", torch.bfloat16):
            results += [single(one, hx, lengths=lengths) for one in (x, x.float())]
            assert single(x.float(), hx.float())[0].dtype == torch.bfloat16
    assert len(calls) == 4 * exact.num_layers
    for result in results:
        for found, one in zip(result, truth, strict=True):
            assert found.dtype == torch.bfloat16 and not found.requires_grad
            assert (found.double() - one).abs().max() < 4 * 2**-8 * exact.num_layers
    assert all(torch.equal(one, other) for one, other in zip(results[1], results[2]))


@pytest.mark.usefixtures("needs_kernels")
def test_gru_under_autocast_to_float16_stays_float32():
    module, x = ser_fast.GRU(7, 19), torch.randn(20, 3, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert module(x)[0].dtype == differentiable(module, x)[0].dtype == torch.float32


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cell_equals_itself_with_gradients(bias, reset_after, batch):
    cell = ser_fast.GRUCell(7, 19, bias, reset_after=reset_after, dtype=torch.float64)
    x, h = torch.randn(batch, 7).double(), torch.randn(batch, 19).double()
    assert_same(cell, x, h)
    assert_same(cell, x)
    assert_same(cell, x[0], h[0])


def in_place(module):
    with torch.no_grad():
        module.weight_hh_l0.mul_(1.5)


def data_in_place(module):
    module.weight_hh_l0.data.mul_(1.5)


def one_element(module):
    module.weight_ih_l0.data.view(-1)[-1] += 1


def through_numpy(module):
    module.weight_hh_l0.detach().numpy()[3] += 0.5


def through_dlpack(module):
    torch.from_dlpack(module.bias_hh_l0.detach()).add_(0.5)


def new_data(module):
    module.weight_hh_l0.data = module.weight_hh_l0.data * 1.5


def new_parameter(module):
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach() * 1.5)


def optimizer_step(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module(torch.randn(FRAMES, 2, 7).double())[0].square().sum().backward()
    optimizer.step()


def state_dict(module):
    module.load_state_dict({name: value + 0.25 for name, value in module.state_dict().items()})


def assigned_state_dict(module):
    module.load_state_dict({name: value + 0.25 for name, value in module.state_dict().items()}, assign=True)


def through_float(module):
    module.float().double()


def reinitialised(module):
    module.reset_parameters()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(module):
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())


def original_of_parametrization(module):
    parametrize.register_parametrization(module, "weight_hh_l0", Doubled())
    module.parametrizations.weight_hh_l0.original.data.add_(0.25)


def pruned(module):
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)


def shared(module):
    module.weight_ih_l0 = nn.Parameter(torch.randn(57, 7, dtype=torch.float64))
    nn.utils.parameters_to_vector(module.parameters()).mul_(2)
    nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(module.parameters()), module.parameters())


CHANGES = [in_place, data_in_place, one_element, through_numpy, through_dlpack, new_data, new_parameter, optimizer_step,
           state_dict, assigned_state_dict, through_float, reinitialised, parametrized, original_of_parametrization,
           pruned, shared]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("frames", [1, FRAMES])
def test_gru_sees_changed_weights(change, frames):
    module, x, hx = ser_fast.GRU(7, 19, dtype=torch.float64), torch.randn(frames, 2, 7), torch.randn(1, 2, 19)
    x, hx = x.double(), hx.double()
    with torch.inference_mode():
        before, _ = module(x, hx)
    change(module)
    assert_same(module, x, hx)
    with torch.inference_mode():
        assert not torch.equal(module(x, hx)[0], before)


def test_gru_takes_the_weights_of_functional_call():
    module, x = ser_fast.GRU(7, 19, dtype=torch.float64), torch.randn(FRAMES, 2, 7).double()
    other = ser_fast.GRU(7, 19, dtype=torch.float64)
    with torch.no_grad():
        own, _ = module(x)
        found, _ = torch.func.functional_call(module, dict(other.named_parameters()), (x,))
        assert torch.equal(found, other(x)[0]) and torch.equal(module(x)[0], own)


def test_gru_keeps_nothing_in_the_module():
    """Neither the state dict nor a pickle nor a copy knows of the laid-out weights."""
    module, x = ser_fast.GRU(7, 19), torch.randn(FRAMES, 2, 7)
    names, size = set(vars(module)), len(pickle.dumps(module))
    with torch.inference_mode():
        y, _ = module(x)
    assert set(vars(module)) == names and len(pickle.dumps(module)) == size
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(file, weights_only=False)):
        with torch.inference_mode():
            assert torch.equal(twin(x)[0], y)
            twin.weight_hh_l0.data.mul_(2)
            assert not torch.equal(twin(x)[0], y) and torch.equal(module(x)[0], y)


def test_gru_infers_in_several_threads_while_weights_change():
    """Each thread has a module of its own, whose weights it changes; all share the laid-out weights."""
    wrong = []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(FRAMES, 1, 7, generator=generator, dtype=torch.float64)
        module = ser_fast.GRU(7, 19, dtype=torch.float64)
        for _ in range(60):
            module.weight_hh_l0.data.add_(torch.randn(57, 19, generator=generator, dtype=torch.float64) / 8)
            with torch.inference_mode():
                y, _ = module(x)
            if not torch.allclose(y, differentiable(module, x)[0], rtol=0, atol=1e-12):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_gru_infers_after_fork():
    """A child process takes over the laid-out weights, and sees changes of its own."""
    script = """
import os, torch, ser_fast
torch.set_num_threads(1)
gru, x = ser_fast.GRU(7, 19), torch.randn(20, 2, 7)
with torch.inference_mode():
    before, _ = gru(x)
child = os.fork()
with torch.inference_mode():
    assert torch.equal(gru(x)[0], before)
    if not child:
        gru.weight_hh_l0.data.mul_(2)
        os._exit(torch.equal(gru(x)[0], before))
    assert os.waitpid(child, 0)[1] == 0 and torch.equal(gru(x)[0], before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_gru_infers_with_gradients_enabled_if_none_is_wanted():
    module = ser_fast.GRU(7, 19).requires_grad_(False)
    x = torch.randn(FRAMES, 2, 7)
    y, _ = module(x)
    assert not y.requires_grad
    with torch.no_grad():
        assert torch.equal(module(x)[0], y)
    assert module(x.requires_grad_())[0].requires_grad


def test_gru_inference_refuses_what_training_refuses():
    module, x = ser_fast.GRU(7, 19), torch.randn(5, 2, 7)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="GRU: input has 6 features; it must be 7"):
            module(x[..., :6])
        with pytest.raises(ValueError, match="dtype"):
            module(x.double())
        with pytest.raises(ValueError, match="dtype"):
            module(x, torch.zeros(1, 2, 19).double())
        with pytest.raises(RuntimeError, match=r"hx has shape \[1, 3, 19\]"):
            module(x, torch.zeros(1, 3, 19))
        with pytest.raises(RuntimeError, match=r"lengths\[1\] is 6; it must be in 0..5"):
            module(x, lengths=torch.tensor([1, 6]))
        assert module(x[:, :0])[0].shape == (5, 0, 19)
