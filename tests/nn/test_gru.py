"""ser_fast.GRU against torch.nn.GRU, and the reset-before form against a plain loop over its equations."""

import copy
import pickle
import random

import pytest
import torch
from samples import assert_exact
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import ser_fast
from ser_fast import backends

pytestmark = pytest.mark.usefixtures("two_threads")


def random_case(seed: int) -> dict:
    draw = random.Random(seed)
    return {
        "input_size": draw.randint(1, 40),
        "hidden_size": draw.choice([1, 2, 7, 16, 33, 64, 129]),
        "num_layers": draw.randint(1, 3),
        "bias": draw.random() < 0.8,
        "batch_first": draw.random() < 0.5,
        "bidirectional": draw.random() < 0.5,
        "frames": draw.randint(1, 60),
        "batch": draw.randint(1, 12),
        "packed": draw.random() < 0.5,
    }


def build(case: dict) -> tuple[nn.GRU, ser_fast.GRU]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
    theirs = nn.GRU(**{name: case[name] for name in names})
    ours = ser_fast.GRU(**{name: case[name] for name in names})
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def inputs(case: dict) -> tuple:
    """Input, first states, lengths (sorted or not) and the cotangents of the outputs."""
    directions = 2 if case["bidirectional"] else 1
    frames, batch, hidden = case["frames"], case["batch"], case["hidden_size"]
    x = torch.randn(*((batch, frames) if case["batch_first"] else (frames, batch)), case["input_size"])
    hx = torch.randn(case["num_layers"] * directions, batch, hidden)
    lengths = torch.randint(1, frames + 1, (batch,)) if case["packed"] else None
    rows = (int(lengths.sum()),) if case["packed"] else x.shape[:2]
    return x, hx, lengths, torch.randn(*rows, directions * hidden), torch.randn_like(hx)


def run(module: nn.Module, x, hx, lengths, grad_y, grad_h, batch_first: bool) -> list[torch.Tensor]:
    """Outputs, last states, and the gradients of input, first states and every weight."""
    x, hx = x.clone().requires_grad_(), hx.clone().requires_grad_()
    if lengths is None:
        y, h_n = module(x, hx)
    else:
        y, h_n = module(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False), hx)
        y = y.data
    module.zero_grad()
    ((y * grad_y).sum() + (h_n * grad_h).sum()).backward()
    return [y.detach(), h_n.detach(), x.grad, hx.grad, *(weight.grad for weight in module.parameters())]


def doubled(module: nn.Module, *arguments) -> tuple:
    tensors = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]
    return copy.deepcopy(module).double(), *tensors


@pytest.mark.parametrize("seed", range(60))
def test_gru_equals_nn_gru(seed):
    """float64 to 1e-12; float32 errs from float64 no more than twice nn.GRU does.

    The error of a case is the root mean square over all outputs and gradients, each by its tensor's largest value.
    """
    torch.manual_seed(seed)
    case = random_case(seed)
    theirs, ours = build(case)
    arguments = inputs(case)
    truth = run(*doubled(theirs, *arguments), case["batch_first"])
    for position, (one, other) in enumerate(
        zip(run(*doubled(ours, *arguments), case["batch_first"]), truth, strict=True)
    ):
        assert_exact(one, other, f"{case}, tensor {position}")

    def error(module: nn.Module) -> float:
        results = run(module, *arguments, case["batch_first"])
        shares = [
            (one.double() - other).norm() / other.abs().max().clamp(min=1e-30) for one, other in zip(results, truth)
        ]
        return float(torch.stack(shares).norm())

    assert error(ours) <= 2 * error(theirs), case


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gru_with_lengths_equals_packing(bidirectional, batch_first):
    theirs = nn.GRU(5, 7, 2, batch_first=batch_first, bidirectional=bidirectional).double()
    ours = ser_fast.GRU(5, 7, 2, batch_first=batch_first, bidirectional=bidirectional).double()
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.tensor([4, 9, 1, 6])
    x = torch.randn(*((4, 9) if batch_first else (9, 4)), 5, dtype=torch.float64)
    packed, h_n = theirs(pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False))
    y, _ = pad_packed_sequence(packed, batch_first)
    # Values past a row's length must not change the results.
    valid = (torch.arange(9)[:, None] < lengths)[..., None]
    noisy = torch.where(valid.transpose(0, 1) if batch_first else valid, x, float("nan"))
    for given in (lengths, lengths.int()):
        found, states = ours(noisy, lengths=given)
        assert_exact(found, y)
        assert_exact(states, h_n)
        ours.zero_grad()
        (found.sum() + states.sum()).backward()
        theirs.zero_grad()
        (y.sum() + h_n.sum()).backward(retain_graph=True)
        for one, other in zip(ours.parameters(), theirs.parameters()):
            assert_exact(one.grad, other.grad)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "batch_first": True, "num_layers": 2, "reset_after": False}]
)
@pytest.mark.parametrize("packs", [True, False])
def test_gru_of_packed_frames_equals_padded(options, packs, monkeypatch):
    """Packed frames run as they are, and padded where the kernel does not take them."""
    module, lengths = ser_fast.GRU(3, 4, **options).double(), torch.tensor([5, 0, 2, 3])
    if not packs:
        monkeypatch.setattr(ser_fast.GRU, "_takes_packed", lambda *_: False)
    rows = torch.randn(4, 5, 3, dtype=torch.float64)
    valid = torch.arange(5) < lengths[:, None]
    hx = torch.randn(sum(name.startswith("weight_hh") for name in module.state_dict()), 4, 4, dtype=torch.float64)
    y, h_n = module(rows if module.batch_first else rows.transpose(0, 1), hx, lengths=lengths)
    found, states = module(rows[valid], hx, lengths=lengths)
    assert_exact(found, (y if module.batch_first else y.transpose(0, 1))[valid])
    assert_exact(states, h_n)


def test_gru_gradients_of_biases_share_no_memory():
    """Gradient scaling changes them in place, one after the other."""
    module = ser_fast.GRU(3, 4, reset_after=False, bidirectional=True)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    addresses = {weight.grad.data_ptr() for weight in module.parameters()}
    assert len(addresses) == len(list(module.parameters()))
    assert torch.equal(module.bias_ih_l0.grad, module.bias_hh_l0.grad)


def test_gru_keeps_the_state_of_an_empty_row():
    gru = ser_fast.GRU(3, 4, bidirectional=True)
    hx = torch.randn(2, 2, 4, requires_grad=True)
    x = torch.randn(5, 2, 3, requires_grad=True)
    y, h_n = gru(x, hx, lengths=torch.tensor([0, 5]))
    assert torch.equal(h_n[:, 0], hx[:, 0]) and not y[:, 0].any()
    (y.sum() + h_n.sum()).backward()
    assert not x.grad[:, 0].any() and torch.equal(hx.grad[:, 0], torch.ones(2, 4))


def paper_gru(x, w_ih, w_hh, b_ih, b_hh):
    """Equations 1 to 4 of the attention-CGRU paper, sample by sample: x [T, I] to states [T, H]."""
    hidden = w_hh.shape[1]
    w_xr, w_xz, w_xh = w_ih.split(hidden)
    w_hr, w_hz, w_hc = w_hh.split(hidden)
    b_r, b_z, b_h = (b_ih + b_hh).split(hidden)
    state, states = x.new_zeros(hidden), []
    for frame in x:
        r = torch.sigmoid(w_xr @ frame + w_hr @ state + b_r)
        z = torch.sigmoid(w_xz @ frame + w_hz @ state + b_z)
        candidate = torch.tanh(w_xh @ frame + w_hc @ (r * state) + b_h)
        state = z * state + (1 - z) * candidate
        states.append(state)
    return torch.stack(states)


@pytest.mark.parametrize("hidden", [1, 7, 40])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gru_reset_before_equals_the_equations(hidden, bidirectional):
    gru = ser_fast.GRU(6, hidden, bidirectional=bidirectional, reset_after=False).double()
    lengths = torch.tensor([11, 3, 8])
    x = torch.randn(11, 3, 6, dtype=torch.float64)
    y, h_n = gru(x, lengths=lengths)
    wanted = torch.zeros_like(y)
    for row, length in enumerate(lengths.tolist()):
        for d, weights in enumerate(gru.all_weights):
            frames = x[:length, row].flip(0) if d else x[:length, row]
            states = paper_gru(frames, *weights)
            assert_exact(h_n[d, row], states[-1])
            wanted[:length, row, d * hidden : (d + 1) * hidden] = states.flip(0) if d else states
    assert_exact(y, wanted)
    cotangent = torch.randn_like(y)
    for one, other in zip(torch.autograd.grad((y * cotangent).sum(), gru.parameters()),
                          torch.autograd.grad((wanted * cotangent).sum(), gru.parameters())):  # fmt: skip
        assert_exact(one, other)


def test_gru_forms_differ():
    after, before = ser_fast.GRU(3, 4), ser_fast.GRU(3, 4, reset_after=False)
    before.load_state_dict(after.state_dict())
    x = torch.randn(5, 2, 3)
    assert not torch.allclose(after(x)[0], before(x)[0], atol=1e-3)


def test_gru_draws_weights_and_dropout_like_nn_gru():
    torch.manual_seed(3)
    theirs = nn.GRU(4, 5, 3, dropout=0.5, bidirectional=True)
    torch.manual_seed(3)
    ours = ser_fast.GRU(4, 5, 3, dropout=0.5, bidirectional=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for one, other in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(one, other)
    x = torch.randn(6, 2, 4)
    torch.manual_seed(4)
    y, _ = theirs(x)
    torch.manual_seed(4)
    assert torch.allclose(ours(x)[0], y, atol=1e-5)
    assert torch.allclose(ours.eval()(x)[0], theirs.eval()(x)[0], atol=1e-5)


def test_gru_takes_unbatched_and_packed_input():
    theirs, ours = nn.GRU(3, 4, 2), ser_fast.GRU(3, 4, 2)
    ours.load_state_dict(theirs.state_dict())
    x, hx = torch.randn(6, 3), torch.randn(2, 4)
    for one, other in zip(ours(x, hx), theirs(x, hx)):
        assert one.shape == other.shape and torch.allclose(one, other, atol=1e-6)
    sequences = [torch.randn(length, 3) for length in (2, 5, 3)]
    for packed in (pack_sequence(sequences, enforce_sorted=False), pack_sequence(sorted(sequences, key=len)[::-1])):
        (found, states), (wanted, h_n) = ours(packed), theirs(packed)
        assert torch.allclose(found.data, wanted.data, atol=1e-6) and torch.allclose(states, h_n, atol=1e-6)
        for one, other in zip(found[1:], wanted[1:]):
            assert (one is None and other is None) or torch.equal(one, other)
    again = pickle.loads(pickle.dumps(ours))
    assert torch.equal(again(x)[0], ours(x)[0])
    assert repr(ser_fast.GRU(3, 4, 2, reset_after=False)) == "GRU(3, 4, num_layers=2, reset_after=False)"


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 0, 6, 1])])
@pytest.mark.parametrize("batch_first", [False, True])
def test_gru_on_torch_path_agrees(lengths, batch_first, monkeypatch):
    """The path that CUDA tensors take, on CPU."""
    gru = ser_fast.GRU(3, 5, 2, bidirectional=True, batch_first=batch_first).double()
    x = torch.randn(*((4, 6) if batch_first else (6, 4)), 3, dtype=torch.float64)
    hx = torch.randn(4, 4, 5, dtype=torch.float64)
    wanted = gru(x, hx, lengths=lengths)
    monkeypatch.setattr(backends, "select", lambda *_, **__: "torch")
    for one, other in zip(gru(x, hx, lengths=lengths), wanted):
        assert_exact(one, other)


BAD_MODULES = [
    (lambda: ser_fast.GRU(0, 3), ValueError, "GRU: input_size must be greater than zero, got: 0"),
    (lambda: ser_fast.GRU(3, 0), ValueError, "GRU: hidden_size must be greater than zero, got: 0"),
    (lambda: ser_fast.GRU(3, 2.5), TypeError, r"GRU: hidden_size should be of type int, got: float \(2.5\)"),
    (lambda: ser_fast.GRU(3, 2, dropout=1.5), ValueError, r"GRU: dropout is 1.5; it must be a probability, in 0..1"),
    (lambda: ser_fast.GRU(3, 2, dropout="0.1"), ValueError, r"GRU: dropout is '0.1'; it must be a probability, in 0..1"),
    (lambda: ser_fast.GRU(3, 2, bidirectional=2), TypeError, r"GRU: bidirectional should be of type bool, got: int \(2\)"),
    (lambda: ser_fast.GRU(3, 2, reset_after="no"), TypeError, "GRU: reset_after should be of type bool, got: str"),
    (lambda: ser_fast.GRU(3, 2, bias=None), TypeError, r"GRU: bias should be of type bool, got: NoneType \(None\)"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4)), ValueError, "GRU: Expected input to be 2D or 3D, got 1D instead"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 5)), RuntimeError, "GRU: input has 5 features; it must be 3"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(0, 2, 3)), RuntimeError, r"GRU: input has shape \[0, 2, 3\]"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3), torch.zeros(2, 2, 2)), RuntimeError,
     r"GRU: hx has shape \[2, 2, 2\]; it must be \[layers \* D, B, H\] = \[1, 2, 2\]"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3), lengths=torch.tensor([5, 1])), RuntimeError,
     r"GRU: lengths\[0\] is 5; it must be in 0..4"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3), lengths=torch.tensor([1.0, 1.0])), RuntimeError,
     "GRU: lengths has dtype float32; it must be int64 or int32"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 3), lengths=torch.tensor([3])), RuntimeError,
     r"GRU: lengths are \[3\]; it must be at least 0 and add up to the packed frames, 4"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 3), lengths=torch.tensor(4)), RuntimeError,
     r"GRU: lengths has shape \[\]; it must be \[B\]"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 5), lengths=torch.tensor([4])), RuntimeError, "GRU: input has 5 features"),
    (lambda: ser_fast.GRU(3, 2)(pack_sequence([torch.randn(2, 3)]), lengths=torch.tensor([2])), RuntimeError,
     "lengths is given with a PackedSequence; it must be None"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3).double()), ValueError, r"GRU: RNN input dtype \(torch.float64\) does not match weight dtype"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3), torch.zeros(1, 2, 2).double()), ValueError, r"GRU: RNN hx dtype \(torch.float64\)"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3), lengths=[4, 1]), RuntimeError, r"GRU: lengths is a list; it must be a torch\.Tensor"),
    (lambda: ser_fast.GRU(3, 2)(torch.randn(4, 2, 3).to_sparse()), RuntimeError, "GRU: input has layout torch.sparse_coo"),
    (lambda: ser_fast.GRU(3, 2)(pack_sequence([torch.randn(2, 3), torch.randn(4, 3)], enforce_sorted=False), torch.zeros(1, 3, 2)),
     RuntimeError, r"GRU: hx has shape \[1, 3, 2\]; it must be \[layers \* D, B, H\] = \[1, 2, 2\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), BAD_MODULES)
def test_gru_refuses_bad_arguments(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.parametrize("module", [ser_fast.GRU, nn.GRU])
def test_gru_of_an_empty_batch_is_empty(module):
    y, h_n = module(3, 2, 2, bidirectional=True)(torch.zeros(4, 0, 3))
    assert y.shape == (4, 0, 4) and h_n.shape == (4, 0, 2)


def test_gru_warns_of_dropout_on_one_layer():
    with pytest.warns(UserWarning, match="dropout is 0.2, but it acts between layers"):
        ser_fast.GRU(3, 2, dropout=0.2)


@pytest.mark.parametrize("lengths", [None, torch.tensor([3, 9])])
def test_freed_input_is_refused(lengths):
    module, x = ser_fast.GRU(4, 3, batch_first=True), torch.randn(2, 9, 4)
    x.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="input has a storage of 0 bytes; it must be of at least 288 bytes"):
        module(x, lengths=lengths)
