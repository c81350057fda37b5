"""Training of ``GRU`` on a CPU: gradients of parts, second derivatives, and what a caller does with its tensors."""

import copy
import itertools

import pytest
import torch
from samples import assert_exact, spread
from torch import nn

import ser_fast
from ser_fast.backends import state
from ser_fast.ops import gru_layer

pytestmark = pytest.mark.usefixtures("needs_kernels")
OPTIONS = [{}, {"bidirectional": True}, {"num_layers": 2, "bias": False}, {"num_layers": 2, "bidirectional": True}]


def twins(**options) -> tuple[nn.Module, nn.Module]:
    theirs, ours = nn.GRU(5, 7, **options).double(), ser_fast.GRU(5, 7, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def states_of(module: nn.Module, batch: int) -> torch.Tensor:
    return torch.randn(module.num_layers * (1 + module.bidirectional), batch, 7, dtype=torch.float64)


def gradients(module, x, hx, **named) -> list[torch.Tensor | None]:
    module.zero_grad()
    x.grad = hx.grad = None
    y, h_n = module(x, hx, **named)
    (y.square().sum() + h_n.sum()).backward()
    return [None if tensor.grad is None else tensor.grad.clone() for tensor in (x, hx, *module.parameters())]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layer_op_trains_dense_cpu_batches(options):
    _, ours = twins(**options)
    ours.num_layers = 1
    y, _ = ours(torch.randn(6, 3, 5).double(), lengths=torch.tensor([6, 0, 3]))
    assert y.grad_fn.name() == "LayerBackward"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gru_computes_gradients_of_any_part(options):
    theirs, ours = twins(**options)
    x, hx = torch.randn(6, 3, 5).double(), states_of(theirs, 3)
    every = {name for name, _ in theirs.named_parameters()}
    last = max(every)
    for frozen, x_wanted, hx_wanted in itertools.product(
        [set(), {"weight_ih_l0"}, {"weight_hh_l0"}, {last}, every - {last}, every], (False, True), (False, True)
    ):
        if frozen == every and not (x_wanted or hx_wanted):
            continue
        x.requires_grad_(x_wanted), hx.requires_grad_(hx_wanted)
        for module in (theirs, ours):
            for name, weight in module.named_parameters():
                weight.requires_grad_(name not in frozen)
        for wanted, found in zip(gradients(theirs, x, hx), gradients(ours, x, hx), strict=True):
            assert (wanted is None) == (found is None)
            if wanted is not None:
                assert_exact(found, wanted)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gru_second_derivative_equals_nn_gru(options):
    theirs, ours = twins(**options)
    x, hx, results = torch.randn(4, 2, 5).double().requires_grad_(), states_of(theirs, 2).requires_grad_(), []
    for module in (theirs, ours):
        inputs = [x, hx, *module.parameters()]
        y, h_n = module(x, hx)
        first = torch.autograd.grad(y.square().sum() + h_n.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)
        results.append([*first, *second])
    for wanted, found in zip(*results, strict=True):
        assert_exact(found, wanted)


@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_padded_and_packed_frames_agree(batch_first):
    _, ours = twins(bidirectional=True, batch_first=batch_first)
    lengths = torch.tensor([3, 9, 0, 1])
    rows = torch.randn(4, 9, 5).double()
    packed = torch.cat([row[:length] for row, length in zip(rows, lengths.tolist())])
    for row, length in zip(rows, lengths.tolist()):
        row[length:] = torch.nan
    x = rows if batch_first else rows.transpose(0, 1).contiguous()
    hx = states_of(ours, 4)
    results = [gradients(ours, one.requires_grad_(), hx.requires_grad_(), lengths=lengths) for one in (x, packed)]
    padded = results[0][0] if batch_first else results[0][0].transpose(0, 1)
    assert all((row[length:] == 0).all() for row, length in zip(padded, lengths.tolist()))
    results[0][0] = torch.cat([row[:length] for row, length in zip(padded, lengths.tolist())])
    for found, wanted in zip(*results, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("products", ["avx2", "avx512_bf16"])
@pytest.mark.parametrize("reset_after", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gru_trains_in_bfloat16_as_fast_as_the_processor_can(options, reset_after, products, monkeypatch):
    """By the op in float32 where there are no products in bfloat16; a module in bfloat16, autocast, packed frames."""
    calls = []
    monkeypatch.setattr(state.current, "instruction_set", products)
    monkeypatch.setattr(gru_layer, "gru_layer_forward", lambda *args: calls.append(args) or forward(*args))
    forward, kind = torch.ops.ser_fast.gru_layer_forward.default, torch.bfloat16
    exact = ser_fast.GRU(5, 7, **options, reset_after=reset_after).to(kind).double()
    x, lengths = torch.randn(20, 3, 5).to(kind), torch.tensor([20, 0, 11])
    hx, packed = states_of(exact, 3).to(kind), torch.cat([x[:20, 0], x[:11, 2]])
    wide = (x.double().requires_grad_(), hx.double().requires_grad_())
    low, single = copy.deepcopy(exact).to(kind), copy.deepcopy(exact).float()
    truth = gradients(exact, *wide, lengths=lengths)
    calls.clear()
    results = [gradients(low, x.clone().requires_grad_(), hx.clone().requires_grad_(), lengths=lengths)]
    with torch.autocast("cpu", kind):
        results += [gradients(single, x.float().requires_grad_(), hx.float().requires_grad_(), lengths=lengths)]
        y, h_n = single(packed, hx, lengths=lengths)
    assert y.dtype == h_n.dtype == kind
    assert len(calls) == (0 if products == "avx512_bf16" else 3 * exact.num_layers)
    for result, dtype in zip(results, (kind, torch.float32)):
        for found, one in zip(result, truth, strict=True):
            assert found.dtype == dtype
            # The gradient of y**2 doubles y's rounding, 2^-9; products in bfloat16 round every operand once.
            bound = 2**-6 if products == "avx2" else 2**-4
            assert (found.double() - one).abs().max() <= bound * exact.num_layers * one.abs().max()


def test_gru_trains_on_rows_without_frames():
    _, ours = twins()
    x, hx = torch.full((3, 2, 5), torch.nan).double().requires_grad_(), states_of(ours, 2).requires_grad_()
    grad_x, grad_hx, *grads = gradients(ours, x, hx, lengths=torch.tensor([0, 0]))
    assert (grad_hx == 1).all() and all((grad == 0).all() for grad in (grad_x, *grads))


def test_backward_can_run_again_and_from_one_output():
    theirs, ours = twins(bidirectional=True)
    x = torch.randn(6, 3, 5).double().requires_grad_()
    for pick in (
        lambda y, h_n: y.sum(),
        lambda y, h_n: h_n.square().sum(),
        lambda y, h_n: y[3].expand(4, -1, -1).sum(),
    ):
        results = []
        for module in (theirs, ours):
            loss = pick(*module(x))
            inputs = [x, *module.parameters()]
            results.append(torch.autograd.grad(loss, inputs, retain_graph=True))
            assert all(map(torch.equal, torch.autograd.grad(loss, inputs), results[-1]))
        for wanted, found in zip(*results, strict=True):
            assert_exact(found, wanted)


def test_gru_refuses_backward_after_its_input_changed():
    _, ours = twins()
    x = torch.randn(6, 3, 5).double()
    y, _ = ours(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_gru_trains_on_strided_input_and_gradients():
    theirs, ours = twins(batch_first=True)
    x, hx = torch.randn(3, 6, 5).double(), states_of(theirs, 3).requires_grad_()
    wanted = gradients(theirs, x.clone().requires_grad_(), hx)
    for form in (spread(x), x.transpose(0, 1).contiguous().transpose(0, 1)):
        for one, other in zip(gradients(ours, form.requires_grad_(), hx), wanted, strict=True):
            assert_exact(one, other)


def test_saved_tensors_pass_through_hooks():
    _, ours = twins(bidirectional=True)
    x, hx = torch.randn(6, 3, 5).double().requires_grad_(), states_of(ours, 3).requires_grad_()
    wanted = gradients(ours, x, hx)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.numpy(force=True), torch.from_numpy):
        assert all(map(torch.equal, gradients(ours, x, hx), wanted))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_many_gradients_at_once():
    _, ours = twins(bidirectional=True)
    x = torch.randn(3, 2, 5).double()
    for pick in (0, 1):
        jacobians = [
            torch.autograd.functional.jacobian(lambda x, pick=pick: ours(x)[pick], x, vectorize=vectorize)
            for vectorize in (False, True)
        ]
        assert_exact(*jacobians)
