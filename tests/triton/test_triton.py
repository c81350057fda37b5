"""The Triton kernels against the references: on the GPU where there is one, else on CPU tensors in the interpreter."""

import os
import subprocess
import sys

import pytest
import torch
from samples import (
    DEVICE,
    HALVES,
    TRITON,
    assert_as_accurate,
    gru_arguments,
    pool_arguments,
    spectrogram_arguments,
    spread,
    to,
)  # fmt: skip
from selection import important

import ser_fast
from ser_fast import backends
from ser_fast.backends import dispatch, registry
from ser_fast.ops import attention_pool, checks, gru, power_spectrogram

pytest.importorskip("triton")
from ser_fast.kernels import gru as gru_kernels
from ser_fast.kernels import power_spectrogram as spectrogram_kernels

pytestmark = TRITON
DTYPES = [torch.float32, *HALVES]

# Frames, rows, directions, units: 129 and 144 do not fit on chip, nor does 128 in float32.
SIZES = [(1, 1, 1, 1), (4, 3, 2, 7), (2, 3, 1, 129), (2, 2, 1, 144), (4, 17, 2, 16), (3, 3, 2, 48), (2, 2, 2, 128)]
IMPORTANT = [(4, 3, 2, 7), (2, 3, 1, 129)]  # on chip and not
GRU_CASES = [
    (sizes, {"ragged_rows": ragged_rows, "reset_after": after, "biased": ragged_rows ^ after, "batch_first": after})
    for sizes in SIZES for ragged_rows in (False, True) for after in (False, True)
] + [
    (sizes, {"ragged_rows": True, "reset_after": after, "packed": True})
    for sizes in SIZES if sizes[1] > 1 for after in (False, True)
]  # fmt: skip


def named(case) -> str:
    sizes, options = case
    return f"{'x'.join(map(str, sizes))}-{'-'.join(key for key, value in options.items() if value)}"


def assert_near(found, peer, truth, bound: float, what: str) -> None:
    """float32 as :func:`assert_as_accurate`; half precision within ``bound`` roundings of the largest value."""
    if found.dtype == torch.float32:
        assert_as_accurate(found, peer, truth, what)
        return
    assert torch.isfinite(found).all(), f"{what} has values that are not finite"
    scale = max(1.0, float(truth.abs().max())) if truth.numel() else 1.0
    error = float((found.double() - truth).abs().max()) if truth.numel() else 0.0
    assert error <= bound * torch.finfo(found.dtype).eps * scale, f"{what} is off by {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "case", important(GRU_CASES, lambda case: case[0] in IMPORTANT and case[1]["ragged_rows"]), ids=named
)
def test_triton_gru(case, dtype, poison):
    """In half precision the state is rounded before each product: half an eps for each of H terms, at random."""
    sizes, options = case
    given = to(gru_arguments(*sizes, **options), dtype)
    exact = to(given, torch.float64)
    bound = 2 + sizes[3] ** 0.5 / 4
    found, peer, truth = gru.on_triton(*given), gru.reference(*given), gru.reference(*exact)
    for name, *one in zip(("y", "h_n", "gates"), found, peer, truth):
        assert_near(*one, bound, name)
    y, h_n, gates = found
    _, w_hh, _, h0, lengths, reset_after, _ = given
    backward = (torch.randn_like(y), torch.randn_like(h_n), y, gates, w_hh, h0, lengths, reset_after)
    found, peer = gru.backward_on_triton(*backward), gru.reference_backward(*backward)
    truth = gru.reference_backward(*to(backward, torch.float64))
    for name, *one in zip(("grad_gx", "grad_q", "grad_h0"), found, peer, truth):
        assert_near(*one, bound, name)


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6])
def test_triton_gru_of_small_inputs(scale):
    """For small inputs tanh(x) is nearly x; errors are relative to the largest output."""
    gx, w_hh, *rest = to(gru_arguments(4, 3, 1, 16, ragged_rows=False, reset_after=True, biased=False), torch.float32)
    gx[..., 32:] *= scale
    exact = to((gx, w_hh, *rest), torch.float64)
    found, peer, truth = gru.on_triton(gx, w_hh, *rest), gru.reference(gx, w_hh, *rest), gru.reference(*exact)
    assert_as_accurate(found[0], peer[0], truth[0])


def test_triton_gru_uses_tf32_if_allowed(monkeypatch):
    """A tf32 product keeps 10 bits of its factors: 2^-10 for each of H terms, at random. The interpreter is exact."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert gru_kernels.plan(64, torch.float32, dispatch.tf32_allowed()).precision == "tf32"
    given = to(gru_arguments(5, 3, 2, 64, ragged_rows=True, reset_after=True), torch.float32)
    truth = gru.reference(*to(given, torch.float64))
    for one, other in zip(gru.on_triton(*given), truth):
        assert (one - other).abs().max() < 2**-10 * 64**0.5 * other.abs().max()


def test_triton_gru_clears_packed_frames_of_no_row(poison):
    """Lengths are not read on CUDA: where they add up to less than the frames, and are negative or too large, nothing
    is written out of bounds and nothing is left unwritten, down to the weights' gradients."""
    gx, w_hh, b_hh, h0, lengths, *rest = to(
        gru_arguments(4, 3, 2, 16, ragged_rows=True, reset_after=True, packed=True), torch.float32
    )
    for wrong in (lengths - 1, lengths.flip(0) - 2, lengths * 100):
        y, h_n, gates = launch_unchecked(gx, w_hh, b_hh, h0, wrong, *rest)
        assert all(torch.isfinite(tensor).all() for tensor in (y, h_n, gates))
    y, h_n, gates = launch_unchecked(gx, w_hh, b_hh, h0, torch.zeros_like(lengths), *rest)
    assert not y.any() and not gates.any() and torch.equal(h_n, h0)
    before = gru._states_before(y, h0, torch.zeros_like(lengths))
    assert before.shape == y.shape and torch.isfinite(before).all()


def launch_unchecked(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "readable", lambda tensor: False)
        return gru.on_triton(*arguments)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ragged_rows", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 5, 7), (4, 1, 129), (5, 33, 16), (2, 700, 1)], ids=str)
def test_triton_attention_pool(sizes, ragged_rows, dtype, poison):
    """In half precision results are rounded once, and gradients see the rounded weights and pooled frames as well."""
    given = to(pool_arguments(*sizes, ragged_rows=ragged_rows), dtype)
    found, peer = attention_pool.on_triton(*given), attention_pool.reference(*given)
    truth = attention_pool.reference(*to(given, torch.float64))
    for name, *one in zip(("pooled", "weights"), found, peer, truth):
        assert_near(*one, 2, name)
    h, w, lengths = given
    for grad_weights in (None, torch.randn_like(found[1])):
        backward = (torch.randn_like(found[0]), grad_weights, h, w, *found, lengths)
        results = attention_pool.backward_on_triton(*backward)
        peer = attention_pool.reference_backward(*backward)
        truth = attention_pool.reference_backward(*to(backward, torch.float64))
        for name, *one in zip(("grad_h", "grad_w"), results, peer, truth):
            assert_near(*one, 4, name)


def test_triton_attention_pool_of_large_scores():
    """A tile of frames may score -inf throughout, as long as another of its row does not."""
    h, w = torch.randn(1, 700, 8, device=DEVICE), torch.full((8,), 100.0, device=DEVICE)
    h[:, :150] = -1e38
    for one, other in zip(attention_pool.on_triton(h, w, None), attention_pool.reference(h, w, None)):
        assert torch.isfinite(one).all() and (one - other).abs().max() < 1e-5 * other.abs().max()


def test_triton_attention_pool_of_wide_and_empty_rows(poison):
    h, w = torch.randn(2, 3, 5000, device=DEVICE) / 50, torch.randn(5000, device=DEVICE) / 50
    lengths = torch.tensor([0, 2], device=DEVICE, dtype=torch.int32)
    for one, other in zip(attention_pool.on_triton(h, w, lengths), attention_pool.reference(h, w, lengths)):
        assert torch.equal(one, other)
    pooled, weights = attention_pool.on_triton(h[..., :9], w[:9], lengths)
    assert not pooled[0].any() and not weights[0].any() and not weights[1, 2]


SPECTROGRAM_CASES = [
    ((1, 1, 1, 1, 1), {}),
    ((2, 400, 100, 128, 30), {"ragged_rows": True, "normalized": True, "log": True}),
    ((3, 300, 49, 49, 7), {"ragged_rows": True}),
    ((1, 700, 20, 74, 11), {"normalized": True}),
    ((2, 3000, 640, 1600, 160), {"bins": (0, 401), "normalized": True, "ragged_rows": True}),
    ((2, 60, 100, 128, 30), {"ragged_rows": True, "bins": (3, 50)}),
    *(((3, 200, 60, 96, 25), {"ragged_rows": True, "center": True, "pad_mode": mode}) for mode in power_spectrogram.PAD_MODES),
]  # fmt: skip


@pytest.mark.parametrize("kind", [torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("case", SPECTROGRAM_CASES, ids=named)
def test_triton_power_spectrogram(case, kind, poison):
    """int16 samples and float32 ones alike: as accurate as float32, whatever torch's tf32 switches say."""
    sizes, options = case
    given = to(spectrogram_arguments(*sizes, **options, dtype=kind), torch.float32)
    exact = to(given, torch.float64)
    if kind == torch.int16:
        exact = (given[0].double() / 32768, *exact[1:])
    found = power_spectrogram.on_triton(*given)
    peer, truth = power_spectrogram.reference(*given), power_spectrogram.reference(*exact)
    if options.get("log"):
        # Near the floor a logarithm has no bounded relative error: the powers are compared instead.
        mean, std = given[7], given[8]
        found, peer = ((x * std + mean).exp() for x in (found, peer))
        truth = (truth * exact[8] + exact[7]).exp()
    assert_as_accurate(found, peer, truth)


@pytest.mark.parametrize("level", [1e-12, 1e-6, 1e6])
def test_triton_power_spectrogram_of_quiet_and_loud_waves(level):
    """A tile of frames is scaled by its loudest sample; frames 80 dB below it in the same tile are as good as any."""
    given = list(to(spectrogram_arguments(2, 3000, 200, 256, 80), torch.float32))
    given[0] = given[0] * level
    given[0][:, 1200:] *= 1e-4
    found, peer = power_spectrogram.on_triton(*given), power_spectrogram.reference(*given)
    truth = power_spectrogram.reference(*to(given, torch.float64))
    for frame in range(found.shape[1]):
        assert_as_accurate(found[:, frame], peer[:, frame], truth[:, frame], f"frame {frame}")


def test_triton_power_spectrogram_writes_out():
    given = to(spectrogram_arguments(2, 500, 100, 128, 30), torch.float32)
    wanted = power_spectrogram.on_triton(*given)
    out = torch.full_like(wanted, torch.nan)
    power_spectrogram.out_on_triton(*given, out)
    assert torch.equal(out, wanted)
    with pytest.raises(RuntimeError, match=r"out has shape \[2, 14, 64\]"):
        power_spectrogram.out_on_triton(*given, out[..., 1:])


def test_triton_power_spectrogram_leaves_huge_tables(monkeypatch):
    given = to(spectrogram_arguments(2, 500, 100, 128, 30), torch.float32)
    monkeypatch.setattr(spectrogram_kernels, "_LARGEST_TABLE", 100)
    assert torch.equal(power_spectrogram.on_triton(*given), power_spectrogram.reference(*given))


def test_triton_never_reads_padding():
    """NaN in the padding of every op's input, and of what a backward reads."""
    args = list(to(gru_arguments(5, 3, 2, 16, ragged_rows=True, reset_after=True), torch.float32))
    lengths = args[4]
    past = (torch.arange(5, device=DEVICE)[:, None] >= lengths)[..., None, None]
    clean = gru.on_triton(*args)
    grads = [torch.randn_like(tensor) for tensor in clean[:2]]
    wanted = gru.backward_on_triton(*grads, clean[0], clean[2], args[1], args[3], lengths, True)
    args[0] = args[0].masked_fill(past, torch.nan)
    y, h_n, gates = gru.on_triton(*args)
    assert all(torch.equal(one, other) for one, other in zip((y, h_n, gates), clean))
    noisy = (tensor.masked_fill(past, torch.nan) for tensor in (grads[0], y, gates))
    found = gru.backward_on_triton(next(noisy), grads[1], *noisy, args[1], args[3], lengths, True)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted))
    h, w, lengths = to(pool_arguments(3, 9, 16, ragged_rows=True), torch.float32)
    spoilt = h.masked_fill((torch.arange(9, device=DEVICE) >= lengths[:, None])[..., None], torch.nan)
    clean, found = attention_pool.on_triton(h, w, lengths), attention_pool.on_triton(spoilt, w, lengths)
    assert all(torch.equal(one, other) for one, other in zip(found, clean))
    ones = torch.ones_like(clean[0])
    pair = (attention_pool.backward_on_triton(ones, None, x, w, *clean, lengths) for x in (h, spoilt))
    assert all(torch.equal(one, other) for one, other in zip(*pair))


def test_triton_takes_strided_input():
    args = to(gru_arguments(4, 3, 2, 16, ragged_rows=True, reset_after=False), torch.float32)
    strided = [spread(value) if isinstance(value, torch.Tensor) else value for value in args]
    assert strided[0].stride(-1) == 2
    for one, other in zip(gru.on_triton(*strided), gru.on_triton(*args)):
        assert torch.equal(one, other)
    h, w, _ = to(pool_arguments(3, 9, 16, ragged_rows=False), torch.float32)
    wanted = attention_pool.on_triton(h, w, None)
    for changed in (spread(h), h.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([h[:, :1], h], 1)[:, 1:]):
        for one, other in zip(attention_pool.on_triton(changed, spread(w), None), wanted):
            assert torch.equal(one, other)
    wave, window, *rest = to(spectrogram_arguments(2, 500, 100, 128, 30), torch.float32)
    found = power_spectrogram.on_triton(spread(wave), spread(window), *rest)
    assert torch.equal(found, power_spectrogram.on_triton(wave, window, *rest))


def test_triton_refuses_bad_arguments():
    args = list(to(gru_arguments(3, 3, 2, 16, ragged_rows=False, reset_after=True), torch.float32))
    args[1] = args[1][:, :5]
    with pytest.raises(RuntimeError, match=r"gru: w_hh has shape \[2, 5, 16\]; it must be \[D, 3H, H\]"):
        gru.on_triton(*args)
    h, w, _ = to(pool_arguments(3, 9, 16, ragged_rows=False), torch.float32)
    with pytest.raises(RuntimeError, match=r"attention_pool: w has shape \[3\]"):
        attention_pool.on_triton(h, w[:3], None)
    args = list(to(spectrogram_arguments(2, 500, 100, 128, 30), torch.float32))
    args[3] = 0
    with pytest.raises(RuntimeError, match="hop_length is 0"):
        power_spectrogram.on_triton(*args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_plan_keeps_resident_what_fits(dtype):
    edge = 64 if dtype == torch.float32 else 128
    for hidden in range(1, 300):
        plan = gru_kernels.plan(hidden, dtype, tf32=False)
        assert plan.resident == (hidden <= edge) and (not plan.resident or plan.block >= hidden)


def test_budgets_count_spills_in_loops_alone(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # importing the gate sets it, and only until this test ends
    from budgets import spills_in_loops

    before, inside, branch, after = (
        f"        /*{at:04x}*/                   {text} ;   /* 0x00 */"
        for at, text in (
            (0, "STL [R1], R2"),
            (16, "@P1 LDL.LU R3, [R1+0x4]"),
            (32, "@!P0 BRA 0x10"),
            (48, "LDL R2, [R1]"),
        )
    )
    assert spills_in_loops("\n".join((before, inside, branch, after))) == 1
    assert spills_in_loops("\n".join((before, branch.replace("0x10", "0x30"), inside, after))) == 0


def test_select_takes_triton_once_chosen(fresh_state, monkeypatch):
    assert [backends.select(op, "cuda") for op in backends.OPS] == ["torch"] + ["reference"] * (len(backends.OPS) - 1)
    backends.use("triton")
    assert [backends.select(op, "cuda") for op in backends.OPS] == ["triton"] * 3 + ["reference"] * (
        len(backends.OPS) - 3
    )
    assert backends.select("gru", "cuda", dtype=torch.float64) == "torch"
    assert backends.select("attention_pool", "cuda", dtype=torch.float64) == "reference"
    fits = {hidden: backends.select("gru", "cuda", hidden_size=hidden) for hidden in (1, 64, 65)}
    assert fits == {1: "triton", 64: "triton", 65: "torch"}
    assert backends.select("gru", "cuda", dtype=torch.float16, hidden_size=128) == "triton"
    assert backends.select("gru") == ("compiled" if backends.loaded else "torch")
    backends.use("auto")
    assert backends.select("gru", "cuda") == "torch"
    with pytest.raises(ValueError, match="backend is 'cudnn'; it must be 'auto', 'cuda' or 'triton'"):
        backends.use("cudnn")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match="this torch is for AMD GPUs"):
        backends.use("triton")


def test_environment_selects_triton():
    script = (
        "from ser_fast import backends; print([backends.select(op, 'cuda') for op in backends.OPS], backends.loaded)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            env=os.environ | {"SER_FAST_BACKEND": "triton"})  # fmt: skip
    expected = ["triton"] * 3 + ["reference"] * (len(backends.OPS) - 3)
    assert result.stdout.strip() == f"{expected} {backends.loaded}", result.stderr


def test_select_triton_does_not_break_a_graph(fresh_state, monkeypatch):
    """A module that selects the backend of a GPU is traced with CPU tensors."""
    backends.use("triton")
    chosen = []

    class Asking(ser_fast.GRU):
        def _backend(self, x):
            chosen.append(backends.select("gru", "cuda", dtype=x.dtype, hidden_size=self.hidden_size))
            return super()._backend(x)

    torch.compile(Asking(4, 16), fullgraph=True, backend="aot_eager")(torch.randn(3, 2, 4))
    assert chosen == ["triton"]


def test_use_switches_the_launchers(fresh_state, monkeypatch):
    """Call the functions registered for CUDA tensors directly, with launchers that return their name."""
    for op in ("gru", "attention_pool"):
        call = registry.on_cuda_tensors(op, lambda *args: "reference", triton=lambda *args: "triton")
        assert call(torch.ones(1)) == "reference"
        backends.use("triton")
        assert (call(torch.ones(1)), call(torch.ones(1).double())) == ("triton", "reference")
        backends.use("auto")
    backends.use("triton")
    spectrogram = registry.on_cuda_tensors("power_spectrogram", lambda *args: "reference")
    assert spectrogram(torch.ones(1)) == "reference"  # torch's FFT is this op's only backward


@pytest.mark.thorough
@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU the ops themselves run the launchers")
def test_ops_run_on_the_launchers():
    """Run the launchers on CPU tensors in a separate process: autograd, opcheck, modules, compile."""
    script = """
import torch, ser_fast
from ser_fast.backends import registry
from ser_fast.ops import attention_pool, gru, power_spectrogram
for name, kernel in (
    ("attention_pool", attention_pool.on_triton), ("attention_pool_backward", attention_pool.backward_on_triton),
    ("gru", gru.on_triton), ("gru_backward", gru.backward_on_triton), ("power_spectrogram", power_spectrogram.on_triton),
):
    registry.library.impl(name, kernel, "CPU")
gx = torch.randn(3, 2, 2, 48, requires_grad=True)
w_hh = (torch.randn(2, 48, 16) / 4).requires_grad_()
for arguments in ((gx, w_hh, None, None, torch.tensor([3, 0]), True, True), (gx, w_hh, None, None, None, False, True)):
    torch.library.opcheck(torch.ops.ser_fast.gru, arguments)
h = torch.randn(2, 4, 16, requires_grad=True)
torch.library.opcheck(torch.ops.ser_fast.attention_pool, (h, torch.randn(16, requires_grad=True), torch.tensor([4, 1])))
wave = torch.randn(2, 60, requires_grad=True)
spectrogram = (wave, torch.rand(16), 32, 8, 0, 17, torch.tensor([60, 30]), None, None, False, 1e-10, True, "reflect")
torch.library.opcheck(torch.ops.ser_fast.power_spectrogram, spectrogram)
ours = ser_fast.GRU(5, 16, 2, bidirectional=True)
theirs = torch.nn.GRU(5, 16, 2, bidirectional=True)
theirs.load_state_dict(ours.state_dict())
x = torch.randn(6, 3, 5)
compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
wanted, _ = theirs(x)
torch.autograd.backward(wanted.square().sum())
for module in (ours, compiled):
    ours.zero_grad()
    y, _ = module(x)
    assert (y - wanted).abs().max() < 1e-6, (y - wanted).abs().max()
    y.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters()):
        assert (one.grad - other.grad).abs().max() < 1e-5 * other.grad.abs().max()
ser_fast.CGRU(3)(torch.randn(2, 4000), torch.tensor([4000, 3000])).sum().backward()
print("served")
"""
    environment = os.environ | {"SER_FAST_BACKEND": "reference", "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "served", result.stderr


def test_triton_refuses_bad_gradients():
    h, w, lengths = to(pool_arguments(3, 4, 3, ragged_rows=True), torch.float32)
    pooled, weights = attention_pool.reference(h, w, lengths)
    with pytest.raises(RuntimeError, match=r"attention_pool_backward: grad_pooled has shape \[3, 2\]"):
        attention_pool.backward_on_triton(pooled[:, :2], None, h, w, pooled, weights, lengths)
    gx, w_hh, b_hh, h0, lengths, after, _ = to(gru_arguments(3, 3, 2, 2, ragged_rows=True, reset_after=True))
    y, h_n, gates = gru.reference(gx, w_hh, b_hh, h0, lengths, after, True)
    with pytest.raises(RuntimeError, match=r"gru_backward: gates has shape"):
        gru.backward_on_triton(y, h_n, y, gates[..., :1], w_hh, h0, lengths, after)


@pytest.mark.parametrize("scores", [(-1e38, 1, 2), (1, 1e38, 2), (-1e38, -1e38), (0,) * 70 + (1e38,)], ids=len)
def test_triton_attention_pool_of_infinite_scores(scores):
    h = torch.tensor([[[score / 1e38, 1.0] for score in scores]], device=DEVICE) * 1e38
    w = torch.tensor([10.0, 0.0], device=DEVICE)
    for found, wanted in zip(attention_pool.on_triton(h, w, None), attention_pool.reference(h, w)):
        torch.testing.assert_close(found, wanted, equal_nan=True)
