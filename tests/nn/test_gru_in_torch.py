"""ser_fast.GRU inside what training code does: torch.nn.utils, checkpointing, tracing, in-place changes."""

import copy
import io
import itertools

import pytest
import torch
from samples import assert_exact, ragged
from torch import nn
from torch.nn.utils import (
    clip_grad_norm_,
    clip_grad_value_,
    parameters_to_vector,
    parametrizations,
    parametrize,
    prune,
    remove_weight_norm,
    vector_to_parameters,
    weight_norm,
)
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import ser_fast


def pair(*arguments, **options) -> tuple[nn.GRU, ser_fast.GRU]:
    theirs, ours = nn.GRU(*arguments, **options).double(), ser_fast.GRU(*arguments, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def train(module: nn.Module) -> list[torch.Tensor]:
    """Output and every gradient on one batch."""
    x = torch.linspace(-1, 1, 5 * 2 * 3, dtype=torch.float64).view(5, 2, 3)
    y, h_n = module(x)
    module.zero_grad()
    (y.square().sum() + h_n.sum()).backward()
    return [y, *(weight.grad for _, weight in sorted(module.named_parameters()))]


def assert_trains_alike(theirs: nn.Module, ours: nn.Module) -> None:
    for found, truth in zip(train(ours), train(theirs), strict=True):
        assert_exact(found, truth)


NAMES = ("weight_ih_l0", "weight_hh_l0", "weight_hh_l1_reverse")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "prune"])
@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
def test_gru_with_reparametrized_weights(name, kind):
    modules = pair(3, 4, 2, bidirectional=True)
    for module in modules:
        torch.manual_seed(1)
        if kind == "prune":
            prune.random_unstructured(module, name, 0.5)
        elif kind == "old weight_norm":
            weight_norm(module, name)
        else:
            getattr(parametrizations, kind)(module, name)
        # In training every look at a weight is a step of the power iteration, and nn.GRU looks more than once.
        module.train(kind != "spectral_norm")
    assert_trains_alike(*modules)
    for module in modules:
        if kind == "prune":
            prune.remove(module, name)
        elif kind == "old weight_norm":
            remove_weight_norm(module, name)
        else:
            parametrize.remove_parametrizations(module, name)
        module.eval()
    assert_trains_alike(*modules)


def test_parametrized_gru_can_be_cast_and_copied():
    theirs, ours = pair(3, 4)
    for module in (theirs, ours):
        parametrizations.weight_norm(module, "weight_hh_l0")
    twin = copy.deepcopy(ours).float().double()
    twin.flatten_parameters()
    for found, truth in zip(train(twin), train(theirs)):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)  # the weights were float32 for a moment


def test_gru_with_clipping_and_parameter_vectors():
    theirs, ours = pair(3, 4)
    assert_trains_alike(theirs, ours)
    norms = [clip_grad_norm_(module.parameters(), 0.1) for module in (theirs, ours)]
    assert_exact(*norms)
    for module in (theirs, ours):
        clip_grad_value_(module.parameters(), 0.01)
    for one, other in zip(ours.parameters(), theirs.parameters()):
        assert_exact(one.grad, other.grad)
    vector = parameters_to_vector(theirs.parameters()) * 0.5
    for module in (theirs, ours):
        vector_to_parameters(vector, module.parameters())
    assert_trains_alike(theirs, ours)


def test_gru_state_dict_interchanges_with_nn_gru():
    theirs, ours = pair(3, 4, 2, bias=False)
    for source, target in ((theirs, ser_fast.GRU), (ours, nn.GRU)):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        module = target(3, 4, 2, bias=False).double()
        module.load_state_dict(torch.load(file, weights_only=True))
        assert_trains_alike(source, module)


def test_gru_runs_hooks_and_takes_assigned_weights():
    theirs, ours = pair(3, 4)
    seen = []
    ours.register_forward_pre_hook(lambda module, args: seen.append("before"))
    ours.register_full_backward_hook(lambda module, grad_in, grad_out: seen.append("backward"))
    for module in (theirs, ours):
        module.weight_ih_l0.requires_grad_(False)
        module.weight_hh_l0 = nn.Parameter(torch.full_like(module.weight_hh_l0, 0.1))
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    for module in (theirs, ours):
        module(x)[0].sum().backward()
    assert seen == ["before", "backward"]
    assert ours.weight_ih_l0.grad is None
    assert_exact(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("lengths", [None, ragged(4, 6)])
def test_gradient_checkpointing_changes_no_gradient(reentrant, lengths):
    gru = ser_fast.GRU(3, 4, 2, bidirectional=True, batch_first=True).double()
    x = torch.randn(4, 6, 3, dtype=torch.float64, requires_grad=True)

    def call(x):
        return gru(x, lengths=lengths)[0]

    truth = torch.autograd.grad(call(x).square().sum(), [x, *gru.parameters()])
    checkpoint(call, x, use_reentrant=reentrant).square().sum().backward()
    for found, wanted in zip([x.grad, *(weight.grad for weight in gru.parameters())], truth):
        assert_exact(found, wanted)


@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 2]), torch.tensor([5, 5])])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gru_outputs_may_be_changed_in_place(bidirectional, lengths):
    """As nn.GRU's may on a CPU: residuals and dropout in place."""
    ours = ser_fast.GRU(3, 3, bidirectional=bidirectional).double()
    x, found = torch.randn(5, 2, 3, dtype=torch.float64), []
    for change in (lambda y: y * 2, lambda y: y.mul_(2)):
        ours.zero_grad()
        y, h_n = ours(x, lengths=lengths)
        (change(y).square().sum() + change(h_n).sum()).backward()
        found.append([weight.grad for weight in ours.parameters()])
    for one, other in zip(*found):
        assert_exact(one, other)
    y, h_n = ours(x, lengths=lengths)
    y.detach_()
    h_n.detach_()


@pytest.mark.filterwarnings("ignore")  # that tracing is deprecated, and of each size it reads
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_traced_gru_serves_other_lengths(form):
    """torch.jit.trace, which tensorboard's graphs use; made from full rows, it must not take all rows for full."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = ser_fast.GRU(3, 4, 2, bidirectional=True)

        def forward(self, x, lengths):
            if form == "packed":
                packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                return pad_packed_sequence(self.gru(packed)[0], total_length=6)[0]
            return self.gru(x, lengths=lengths if form == "lengths" else None)[0]

    model, x, full = Model(), torch.randn(6, 3, 3), torch.tensor([6, 6, 6])
    traced = torch.jit.trace(model, (x, full))
    for given in ((x, full), (torch.randn(6, 3, 3), torch.tensor([2, 6, 4]))):
        torch.testing.assert_close(traced(*given), model(*given))


def test_gru_in_inference_mode_and_frozen():
    theirs, ours = pair(3, 4)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for manager, frozen in itertools.product((torch.inference_mode, torch.no_grad), (False, True)):
        ours.requires_grad_(not frozen)
        with manager():
            y, _ = ours(x)
            assert not y.requires_grad
            assert_exact(y, theirs(x)[0])


def test_gru_in_shared_memory_and_on_meta():
    ours = ser_fast.GRU(3, 4, 2, bidirectional=True)
    assert ours.share_memory().weight_hh_l0.is_shared()
    y, h_n = ours.to("meta")(torch.empty(5, 2, 3, device="meta"))
    assert y.shape == (5, 2, 8) and h_n.shape == (4, 2, 4) and y.is_meta
