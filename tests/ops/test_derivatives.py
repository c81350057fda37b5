"""Derivatives beyond the first, torch.func and forward mode: all through the references, so right where torch is."""

import pytest
import torch
from samples import assert_exact, ragged
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

import ser_fast
from ser_fast.functional import attention_pool, gru, power_spectrogram, self_attention

DOUBLE = {"dtype": torch.float64}


def leaves(*shapes) -> list[torch.Tensor]:
    return [torch.randn(shape, **DOUBLE, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("reset_after", [True, False])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("form", ["padded", "lengths", "packed"])
def test_gru_has_second_derivatives(reset_after, directions, form):
    lengths = None if form == "padded" else torch.tensor([4, 1, 3])
    first = (8,) if form == "packed" else (4, 3)
    arguments = leaves((*first, directions, 6), (directions, 6, 2), (directions, 6), (directions, 3, 2))

    def call(*arguments):
        return gru(*arguments, lengths, reset_after=reset_after)

    assert gradcheck(call, arguments, fast_mode=True) and gradgradcheck(call, arguments, fast_mode=True)


def test_gru_module_has_second_derivatives():
    module = ser_fast.GRU(2, 3, 2, bidirectional=True, batch_first=True, reset_after=False).double()
    x, lengths = torch.randn(3, 4, 2, **DOUBLE, requires_grad=True), torch.tensor([4, 0, 2])
    assert gradgradcheck(lambda x: module(x, lengths=lengths), (x,), fast_mode=True)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_self_attention_has_second_derivatives(parts, packed):
    lengths, dropout = torch.tensor([4, 0, 2]), 0.3
    (qkv,) = leaves((6, parts, 2, 3) if packed else (3, 4, parts, 2, 3))

    def call(qkv):
        torch.manual_seed(0)
        return self_attention(qkv, lengths, dropout)

    assert gradcheck(call, (qkv,)) and gradgradcheck(call, (qkv,))


def test_pool_and_spectrogram_have_second_derivatives():
    h, w = leaves((3, 5, 2), (2,))
    assert gradgradcheck(lambda h, w: attention_pool(h, w, torch.tensor([5, 0, 2])), (h, w))
    (wave,) = leaves((2, 40))
    window = torch.rand(12, **DOUBLE) + 0.1
    for options in ({}, {"log": True}, {"center": True, "pad_mode": "reflect"}):
        call = lambda wave, options=options: power_spectrogram(wave, window, 16, 5, (1, 7), **options)  # noqa: E731
        assert gradgradcheck(call, (wave,), fast_mode=True)


def test_gradient_penalty_equals_nn_gru():
    """Somebody's WGAN: the norm of the input's gradient is a loss, equal to nn.GRU's to rounding."""
    theirs, ours = nn.GRU(3, 4).double(), ser_fast.GRU(3, 4).double()
    ours.load_state_dict(theirs.state_dict())
    x, found = torch.randn(5, 2, 3, **DOUBLE), []
    for module in (ours, theirs):
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(module(given)[0].sum(), given, create_graph=True)
        (slope.norm() - 1).square().backward()
        found.append([weight.grad for weight in module.parameters()])
    for one, other in zip(*found):
        assert_exact(one, other)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = ser_fast.GRU(4, 3, bidirectional=True, batch_first=True)
        self.pool = ser_fast.AttentionPool(6)

    def forward(self, x, lengths):
        return self.pool(self.gru(x, lengths=lengths)[0], lengths)


def test_per_sample_gradients_equal_single_rows():
    model, x, lengths = Model().double(), torch.randn(5, 7, 4, **DOUBLE), ragged(5, 7)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(weights, x, length):
        return functional_call(model, weights, (x[None], length[None])).square().sum()

    each = vmap(grad(loss), (None, 0, 0))(weights, x, lengths)
    for row in range(5):
        model.zero_grad()
        model(x[row : row + 1], lengths[row : row + 1]).square().sum().backward()
        for name, weight in model.named_parameters():
            assert_exact(each[name][row], weight.grad, name)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in its forward mode
def test_func_transforms_agree_with_autograd():
    model, x, lengths = Model().double(), torch.randn(2, 4, 4, **DOUBLE), torch.tensor([4, 2])

    def loss(x):
        return model(x, lengths).square().sum()

    given = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(given), given)
    assert_exact(grad(loss)(x), slope)
    assert_exact(jacfwd(loss)(x), slope)
    assert_exact(hessian(loss)(x), jacrev(jacrev(loss))(x))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    assert_exact(tangent, slope.sum())


def test_vmap_over_weights_equals_an_ensemble():
    models, x = [ser_fast.GRU(3, 2, 2).double() for _ in range(3)], torch.randn(6, 2, 3, **DOUBLE)
    weights, buffers = torch.func.stack_module_state(models)
    y, _ = vmap(lambda weights: functional_call(models[0], (weights, buffers), (x,)))(weights)
    for one, model in zip(y, models):
        assert_exact(one, model(x)[0])
    wave = torch.randn(3, 2, 50, **DOUBLE)
    spectrogram = ser_fast.PowerSpectrogram(100, 16, win_length=10, hop_length=5, f_max=50).double()
    assert_exact(vmap(spectrogram)(wave), torch.stack([spectrogram(one) for one in wave]))
