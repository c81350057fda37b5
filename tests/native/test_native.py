"""The CUDA kernels of attention pooling and the power spectrogram through their ops, on the GPU or on the host."""

import ctypes
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from host_gpu import DTYPES, assert_near, ops, seed, spoilt
from samples import assert_as_accurate, pool_arguments, spectrogram_arguments, spread, to

from ser_fast import backends
from ser_fast.backends import build
from ser_fast.ops import attention_pool, power_spectrogram


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "frames", "width")]


class Plan(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_int64), *((name, ctypes.c_int) for name in ("runs", "group", "packs", "vector", "parts")),
        ("shared", ctypes.c_size_t),
    ]  # fmt: skip


def plan_of(native, batch: int, frames: int, width: int, dtype: torch.dtype, aligned: bool) -> Plan:
    plan = Plan()
    native.pool_plan(ctypes.byref(Shape(batch, frames, width)), dtype.itemsize, int(aligned), ctypes.byref(plan))
    return plan


SIZES = [(1, 1, 1), (3, 5, 7), (2, 130, 16), (4, 1, 129), (2, 70, 300), (1, 9, 1024), (1, 6, 1032), (1, 20, 5000)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ragged_rows", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_cuda_attention_pool(native, sizes, ragged_rows, dtype, poison):
    h, w, lengths = to(pool_arguments(*sizes, ragged_rows=ragged_rows))
    h, w = spoilt(h.to(dtype), lengths), (w / sizes[2] ** 0.5).to(dtype)
    seed(native, 1)
    found, peer = ops.attention_pool(h, w, lengths), attention_pool.reference(h, w, lengths)
    truth = attention_pool.reference(h.double(), w.double(), lengths)
    for name, *one in zip(("pooled", "weights"), found, peer, truth):
        assert_near(*one, 2, name)
    for grad_weights in (None, torch.randn_like(found[1])):
        backward = (torch.randn_like(found[0]), grad_weights, h, w, *found, lengths)
        peer, truth = (attention_pool.reference_backward(*to(backward, kind)) for kind in (dtype, torch.float64))
        garbage = None if grad_weights is None else spoilt(grad_weights, lengths)
        results = ops.attention_pool_backward(backward[0], garbage, *backward[2:])
        for name, *one in zip(("grad_h", "grad_w"), results, peer, truth):
            assert_near(*one, 4, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_attention_pool_takes_any_layout(native, dtype):
    """Rows apart, strided, expanded, beside 16 bytes, lengths of 32 bits: the values decide alone, to the last bit."""
    h, w, lengths = to(pool_arguments(3, 70, 16, ragged_rows=True), dtype)
    apart, beside = h.new_zeros(3, 70, 40), h.new_zeros(3 * 70 * 16 + 1)[1:].view(3, 70, 16)
    apart[..., 8:24], beside[:] = h, h
    wanted = ops.attention_pool(h, w, lengths)
    grads = ops.attention_pool_backward(*wanted, h, w, *wanted, lengths)
    for given in (apart[..., 8:24], beside, spread(h), h.transpose(0, 1).contiguous().transpose(0, 1)):
        found = ops.attention_pool(given, spread(w), lengths.int())
        again = ops.attention_pool_backward(
            *map(spread, wanted), given, spread(w), *map(spread, wanted), lengths.int()
        )
        for one, other in zip((*found, *again), (*wanted, *grads)):
            assert torch.equal(one, other) and one.is_contiguous()
    row = h[:1].expand(3, 70, 16)
    assert torch.equal(ops.attention_pool(row, w, None)[0], ops.attention_pool(row.contiguous(), w, None)[0])


def test_cuda_results_do_not_depend_on_thread_order(native):
    h, w, lengths = to(pool_arguments(2, 150, 40, ragged_rows=True, dtype=torch.float32))
    wave = to(spectrogram_arguments(2, 400, 100, 120, 30, ragged_rows=True, dtype=torch.float32))
    results = []
    for number in range(6):
        seed(native, number)
        pooled = ops.attention_pool(h, w, lengths)
        grads = ops.attention_pool_backward(*pooled, h, w, *pooled, lengths)
        results.append((*pooled, *grads, spectrogram(*wave)))
    assert all(torch.equal(one, other) for other in results for one, other in zip(results[0], other))


def test_cuda_pool_plans_fit(native):
    """Frames are covered once, lanes hold their share, shared memory is within every target's."""
    frames = (1, 63, 64, 65, 1000, 4096, 4097, 100_000)
    for width, count, dtype in itertools.product((*range(1, 70), 127, 1024, 1025, 4097, 8192), frames, DTYPES):
        plan = plan_of(native, 1, count, width, dtype, True)
        lanes, pack = 32 * plan.group, 16 // dtype.itemsize
        assert plan.run * (plan.runs - 1) < count <= plan.run * plan.runs and plan.runs <= 64
        assert plan.group in (1, 2, 4, 8) and plan.packs in (1, 2, 4, 8) and plan.packs * pack <= 32
        assert lanes * plan.packs * pack >= width and plan.shared <= 48 * 1024
        assert plan.parts * 256 >= max(count, width) and plan.run % (8 // plan.group) == 0
    for width in (attention_pool.WIDEST, attention_pool.WIDEST + 1):
        packs = {plan_of(native, 1, 10, width, dtype, True).packs for dtype in DTYPES}
        assert (min(packs) > 0) == (max(packs) > 0) == (width <= attention_pool.WIDEST)


class SpectrogramShape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "samples", "frames", "n_fft", "window", "hop", "first_bin", "bins")),
        ("center", ctypes.c_bool), ("pad", ctypes.c_int),
    ]  # fmt: skip


class Divisor(ctypes.Structure):
    _fields_ = [("by", ctypes.c_uint32), ("reciprocal", ctypes.c_uint32)]


class SpectrogramPlan(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_int), ("points", ctypes.c_int), ("passes", ctypes.c_int), ("radix", ctypes.c_int * 24),
        *((name, ctypes.c_int) for name in ("frames", "tiles", "threads")), ("count", Divisor * 24), ("done", Divisor * 24),
        ("bins", Divisor), ("shared", ctypes.c_size_t),
    ]  # fmt: skip


def spectrogram(*arguments):
    out = power_spectrogram.new_output(*arguments).fill_(torch.nan)
    roots = power_spectrogram.roots(arguments[2], arguments[0].device)
    ops.power_spectrogram(*arguments, roots, out)
    return out


# Batch, samples, window, n_fft, hop.
SPECTROGRAMS = [
    ((1, 1, 1, 1, 1), {}),
    ((2, 10, 2, 2, 3), {}),
    ((2, 400, 100, 128, 30), {"ragged_rows": True, "normalized": True, "log": True}),
    ((3, 300, 45, 45, 7), {"ragged_rows": True}),
    ((1, 700, 21, 250, 11), {"normalized": True}),
    ((2, 3000, 640, 1600, 160), {"bins": (0, 401), "normalized": True, "ragged_rows": True}),
    *(((2, 2001, 638, 1600, hop), {"bins": (0, 401), "log": True, "normalized": True, "ragged_rows": True, "center": True}) for hop in (160, 77)),
    ((3, 3000, 400, 512, 160), {"bins": (0, 129), "normalized": True, "ragged_rows": True, "log": True}),
    *(((3, 900, 400, 512, 81), {"bins": (0, 129), "ragged_rows": True, "center": True, "pad_mode": mode}) for mode in power_spectrogram.PAD_MODES),
    *(((2, 900, window, 512, 100), {"bins": (0, 129), "normalized": True}) for window in (386, 416)),
    ((2, 3000, 640, 1600, 160), {"bins": (1, 402), "ragged_rows": True}),
    ((1, 600, 401, 512, 90), {"bins": (0, 129)}),
    ((2, 60, 100, 128, 30), {"ragged_rows": True, "bins": (3, 50)}),
    ((3, 90, 16, 16, 8), {"ragged_rows": True, "bins": (2, 3)}),
    *(((3, 200, 60, 96, 25), {"ragged_rows": True, "center": True, "pad_mode": mode}) for mode in power_spectrogram.PAD_MODES),
]  # fmt: skip


@pytest.mark.parametrize("kind", [torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("case", SPECTROGRAMS, ids=str)
def test_cuda_power_spectrogram(native, case, kind):
    sizes, options = case
    given = to(spectrogram_arguments(*sizes, **options, dtype=kind))
    given = [x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    exact = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    if kind == torch.int16:
        exact[0] = given[0].double() / 32768
    seed(native, 3)
    found, peer, truth = (
        spectrogram(spoilt(given[0], given[6]), *given[1:]),
        power_spectrogram.reference(*given),
        power_spectrogram.reference(*exact),
    )
    if options.get("log"):
        # Near the floor a logarithm has no bounded relative error: the powers are compared instead.
        found, peer = ((x * given[8] + given[7]).exp() for x in (found, peer))
        truth = (truth * exact[8] + exact[7]).exp()
    assert_as_accurate(found, peer, truth)
    strided = (spread(value) if isinstance(value, torch.Tensor) else value for value in given)
    assert torch.equal(spectrogram(*strided), spectrogram(*given))


@pytest.mark.parametrize("sizes", [(644, 640, 1600, 401), (424, 400, 512, 129)], ids=str)
def test_cuda_spectrogram_warps_take_several_frames(native, sizes):
    """Only with many blocks do warps take one frame after the other."""
    samples, window, n_fft, bins = sizes
    given = to(
        spectrogram_arguments(
            1024, samples, window, n_fft, 1 if n_fft == 1600 else 3, bins=(0, bins), ragged_rows=True
        ),
        torch.float32,
    )
    exact = (x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given)
    seed(native, 5)
    found = spectrogram(spoilt(given[0], given[6]), *given[1:])
    assert_as_accurate(found, power_spectrogram.reference(*given), power_spectrogram.reference(*exact))


def test_cuda_spectrogram_plans_fit(native):
    for n_fft in range(1, 6500):
        plan = SpectrogramPlan()
        shape = SpectrogramShape(3, 50_000, 300, n_fft, n_fft, 160, 0, 1, False, 0)
        native.spectrogram_plan(ctypes.byref(shape), ctypes.byref(plan))
        points = n_fft if n_fft % 2 else n_fft // 2
        rest = points
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        assert (plan.passes > 0) == (rest == 1 and 16 * points <= 48 * 1024), n_fft
        assert (plan.passes > 0) == power_spectrogram.transforms_on_cuda(n_fft), n_fft
        if plan.passes:
            assert math.prod(plan.radix[: plan.passes]) == plan.points == points and plan.shared <= 48 * 1024
            assert plan.frames * (plan.tiles - 1) < 300 <= plan.frames * plan.tiles
            for number in range(plan.passes):
                assert plan.count[number].by == points // plan.radix[number]
                assert plan.done[number].by == math.prod(plan.radix[:number])
            divided = torch.arange(plan.frames * (points + 1))
            for divisor in (*plan.count[: plan.passes], *plan.done[: plan.passes], plan.bins):
                if divisor.by > 1:
                    assert torch.equal(divided * divisor.reciprocal >> 32, divided // divisor.by)


@pytest.mark.parametrize(
    ("n_fft", "window", "bins", "size"),
    [
        (1600, 640, (0, 401), 1), (1600, 578, (0, 401), 1), (1600, 642, (0, 401), 0), (1600, 576, (0, 401), 0),
        (512, 400, (0, 129), 2), (512, 399, (0, 129), 0), (512, 400, (1, 129), 0), (512, 400, (0, 128), 0),
    ],
)  # fmt: skip
def test_cuda_spectrogram_sizes_have_own_kernels(native, n_fft, window, bins, size):
    for batch, frames in itertools.product((1, 8, 64, 999), (1, 3, 31, 1000, 100_000)):
        plan = SpectrogramPlan()
        shape = SpectrogramShape(
            batch, 160 * frames, frames, n_fft, window, 160, bins[0], bins[1] - bins[0], False, 0
        )
        native.spectrogram_plan(ctypes.byref(shape), ctypes.byref(plan))
        assert plan.size == size and plan.shared <= 48 * 1024
        assert plan.frames * (plan.tiles - 1) < frames <= plan.frames * plan.tiles
        if size:
            turn = 4 * size  # frames that the four warps of a block take at once
            assert plan.frames % turn == 0 and plan.frames <= 8 * turn
            assert plan.frames == turn or batch * plan.tiles >= 1024 or frames <= plan.frames


POOL = pool_arguments(3, 4, 8, ragged_rows=False, dtype=torch.float32)
WAVE = spectrogram_arguments(2, 40, 8, 10, 5, normalized=True, dtype=torch.float32)
OUT = (torch.zeros(10, 2), torch.zeros(2, 7, 6))


def change(arguments: tuple, position: int, value) -> tuple:
    return (*arguments[:position], value, *arguments[position + 1 :])


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("attention_pool", change(POOL, 0, POOL[0].double()), "attention_pool: h has dtype float64; it must be float32, float16 or bfloat16"),
        ("attention_pool", change(POOL, 0, POOL[0][0]), r"h has shape \[4, 8\]; it must be \[B, T, D\] with no size 0"),
        ("attention_pool", change(POOL, 0, torch.zeros(3, 0, 8)), r"h has shape \[3, 0, 8\]; it must be \[B, T, D\] with no size 0"),
        ("attention_pool", (torch.zeros(1, 1, 8193), torch.zeros(8193), None), r"h has shape \[1, 1, 8193\]; it must be \[B, T, D\] with D at most 8192"),
        ("attention_pool", change(POOL, 1, POOL[1].half()), "w has dtype float16; it must be float32"),
        ("attention_pool", change(POOL, 1, POOL[1][1:]), r"w has shape \[7\]; it must be \[D\] = \[8\]"),
        ("attention_pool", change(POOL, 2, torch.zeros(3)), "lengths has dtype float32; it must be int64 or int32"),
        ("attention_pool", change(POOL, 2, torch.ones(2, dtype=torch.int32)), r"lengths has shape \[2\]; it must be \[B\] = \[3\]"),
        ("power_spectrogram", change((*WAVE, *OUT), 0, WAVE[0].double()), "power_spectrogram: wave has dtype float64; it must be float32 or int16"),
        ("power_spectrogram", change((*WAVE, *OUT), 1, WAVE[1].double()), "window has dtype float64; it must be float32"),
        ("power_spectrogram", change((*WAVE, *OUT), 8, torch.ones(5)), r"std has shape \[5\]; it must be \[F\] = \[6\]"),
        ("power_spectrogram", change((*WAVE, *OUT), 13, torch.ones(9, 2)), r"roots has shape \[9, 2\]; it must be \[n_fft, 2\] = \[10, 2\]"),
        ("power_spectrogram", change((*WAVE, *OUT), 13, torch.zeros(21)[1:].view(10, 2)), "roots begins between two multiples of 8 bytes; it must be aligned to them"),
        ("power_spectrogram", change((*WAVE, *OUT), 14, OUT[1][1:]), r"out has shape \[1, 7, 6\]; it must be \[B, T, F\] = \[2, 7, 6\]"),
        ("power_spectrogram", change((*WAVE, *OUT), 14, spread(OUT[1])), "out is strided; it must be contiguous"),
        ("power_spectrogram", (*change(WAVE[:7], 2, 14), None, None, *WAVE[9:], torch.zeros(14, 2), OUT[1]), "n_fft is 14; it must be a product of 2, 3 and 5"),
    ],
)  # fmt: skip
def test_cuda_ops_refuse_bad_input(native, name, arguments, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        getattr(ops, name)(*arguments)


def test_cuda_ops_name_a_tensor_on_another_device(native):
    elsewhere = change(POOL, 1, POOL[1].to("meta"))
    with pytest.raises(RuntimeError, match="attention_pool: w is on another device; it must be on cpu"):
        ops.attention_pool.default.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *elsewhere)


@pytest.mark.skipif(not backends.build_info().get("cuda_archs"), reason="the CUDA kernels were not built")
def test_built_cuda_ops_refuse_cpu_tensors():
    """The shipped object beside a torch that need not know CUDA: its ops are there and check what they are given."""
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    with pytest.raises(RuntimeError, match="attention_pool: h is on cpu; it must be on a CUDA device"):
        ops.attention_pool.default.redispatch(cuda, *POOL)
    with pytest.raises(RuntimeError, match="power_spectrogram: wave is on cpu; it must be on a CUDA device"):
        ops.power_spectrogram.default.redispatch(cuda, *WAVE, *OUT)


def test_cuda_ops_clamp_lengths(native):
    h, w, _ = POOL
    wild, tame = torch.tensor([-5, 2, 99]), torch.tensor([0, 2, 4])
    for one, other in zip(ops.attention_pool(h, w, wild), ops.attention_pool(h, w, tame)):
        assert torch.equal(one, other)
    given = change(WAVE, 6, torch.tensor([-1, 30]))
    out = torch.full_like(OUT[1], torch.nan)
    ops.power_spectrogram(*given, power_spectrogram.roots(10, torch.device("cpu")), out)
    assert torch.equal(out, spectrogram(*change(WAVE, 6, torch.tensor([0, 30]))))


def test_cuda_schemas_declare_what_is_written(native):
    h, w, lengths = POOL
    pooled, weights = ops.attention_pool(h, w, lengths)
    backward = (pooled, weights, h, w, pooled, weights, lengths)
    for op, arguments in ((ops.attention_pool, POOL), (ops.attention_pool_backward, backward),
                          (ops.power_spectrogram, (*WAVE, *OUT))):  # fmt: skip
        torch.library.opcheck(op, arguments, test_utils="test_schema")


def test_ops_and_modules_run_on_cuda_kernels(native):
    """Run CPU tensors through the functions registered for CUDA tensors, with "cuda" chosen, in a separate process."""
    script = """
import sys, torch, ser_fast
from ser_fast.backends import registry, state
from ser_fast.ops import attention_pool, gru, power_spectrogram
torch.manual_seed(0)
torch.ops.load_library(sys.argv[1])
state.current.on_cuda, state.current.widest = "cuda", {None: (512, 256, 256)}
torch.backends.cudnn.rnn.fp32_precision = "ieee"
calls = []
def counted(name, kernel):
    def call(*args):
        calls.append(name)
        return kernel(*args)
    return call
for name, reference, kernel in (
    ("gru", gru.reference, gru.on_cuda),
    ("gru_backward", gru.reference_backward, gru.backward_on_cuda),
    ("attention_pool", attention_pool.reference, attention_pool.on_cuda),
    ("attention_pool_backward", attention_pool.reference_backward, attention_pool.backward_on_cuda),
    ("power_spectrogram", power_spectrogram.reference, power_spectrogram.on_cuda),
    ("power_spectrogram_out", power_spectrogram._reference_out, power_spectrogram.out_on_cuda),
):
    op = next(op for op in ("gru", "attention_pool", "power_spectrogram") if name.startswith(op))
    call = registry.on_cuda_tensors(op, counted("reference", reference), None, counted(name, kernel))
    registry.library.impl(name, call, "CPU")

def near(one, other, scale=1e-5):
    assert (one - other).abs().max() <= scale * other.abs().max(), (one, other)

layer = ser_fast.GRU(5, 20, num_layers=2, bidirectional=True, batch_first=True, reset_after=False)
x, frames = torch.randn(3, 7, 5, requires_grad=True), torch.tensor([7, 0, 4])
for given in (None, frames):
    weights = [x, *layer.parameters()]
    calls.clear()
    y, h_n = layer(x, lengths=given)
    found = torch.autograd.grad(y.square().sum() + h_n.sum(), weights)
    assert calls == ["gru"] * 2 + ["gru_backward"] * 2, calls
    state.current.widest = {None: (0, 0, 0)}  # nothing fits: the reference within on_cuda
    y_wanted, h_wanted = layer(x, lengths=given)
    near(y, y_wanted), near(h_n, h_wanted)
    for one, other in zip(found, torch.autograd.grad(y_wanted.square().sum() + h_wanted.sum(), weights)):
        near(one, other)
    state.current.widest = {None: (512, 256, 256)}
calls.clear()

pool, lengths = ser_fast.AttentionPool(24), torch.tensor([70, 0, 33])
h = torch.randn(3, 70, 24, requires_grad=True)
for given in (None, lengths):
    pooled, weights = pool(h, given, return_weights=True)
    wanted = attention_pool.reference(h, pool.weight, given)
    near(pooled, wanted[0]), near(weights, wanted[1])
    found = torch.autograd.grad(pooled.square().sum() + weights.square().sum(), (h, pool.weight))
    for one, other in zip(found, torch.autograd.grad(sum(x.square().sum() for x in wanted), (h, pool.weight))):
        near(one, other)
assert calls == ["attention_pool", "attention_pool_backward"] * 2, calls

calls.clear()
spectrogram, wave = ser_fast.PowerSpectrogram(), torch.randn(2, 3000, requires_grad=True)
found, wanted = spectrogram(wave), power_spectrogram.reference(wave, spectrogram.window, 1600, 160, 0, 401)
near(found, wanted)
cotangent = torch.randn_like(found)
near(*(torch.autograd.grad((x * cotangent).sum(), wave)[0] for x in (found, wanted)))
out = torch.empty_like(found)
with torch.no_grad():
    samples = (wave * 1000).short()
    result = power_spectrogram.power_spectrogram(samples, spectrogram.window, 1600, 160, (0, 401), log=True, out=out)
    # Near the floor a logarithm has no bounded relative error: the powers are compared instead.
    near(out.exp(), power_spectrogram.reference(samples, spectrogram.window, 1600, 160, 0, 401, log=True).exp())
assert result is out and calls == ["power_spectrogram", "power_spectrogram_out"], calls
assert list(power_spectrogram._tables) == [(power_spectrogram.roots, 1600, wave.device)]

# Calls that no kernel supports, so the reference runs: a dtype, a frame too wide, a prime factor of 7.
calls.clear()
with torch.no_grad():
    attention_pool.attention_pool(h.double(), pool.weight.double())
    assert calls == ["reference"], calls
    assert attention_pool.attention_pool(torch.ones(1, 2, 9000), torch.ones(9000))[0].eq(1).all()
    plain = torch.ones(5)
    given = power_spectrogram.power_spectrogram(torch.ones(1, 30), plain, 14, 3)
    near(given, power_spectrogram.reference(torch.ones(1, 30), plain, 14, 3, 0, 8))
    power_spectrogram.power_spectrogram(torch.ones(1, 30), plain, 14, 3, out=out[:1, :9, :8].contiguous())
arguments = (h, pool.weight, lengths)
torch.library.opcheck(torch.ops.ser_fast.attention_pool, arguments)
gx, w_hh = torch.randn(3, 2, 1, 12, requires_grad=True), torch.randn(1, 12, 4, requires_grad=True)
torch.library.opcheck(torch.ops.ser_fast.gru, (gx, w_hh, None, None, torch.tensor([3, 1]), True, True))
wave = torch.randn(2, 60, requires_grad=True)
arguments = (wave, torch.rand(16), 32, 8, 0, 17, torch.tensor([60, 30]), None, None, False, 1e-10, True, "reflect")
torch.library.opcheck(torch.ops.ser_fast.power_spectrogram, arguments)
for model in (ser_fast.CGRU(3), ser_fast.BiGRUMHA(3)):
    model(torch.randn(2, 4000), torch.tensor([4000, 3000])).sum().backward()
print("served")
"""
    environment = os.environ | {"SER_FAST_BACKEND": "reference"}
    result = subprocess.run(
        [sys.executable, "-c", script, native._name], capture_output=True, text=True, env=environment
    )
    assert result.stdout.strip() == "served", result.stderr


@pytest.mark.usefixtures("needs_kernels")
def test_select_takes_cuda_for_supported_dtypes(fresh_state, monkeypatch):
    monkeypatch.setattr(build, "build_info", lambda: {"cuda_archs": ["9.0a"]})
    assert [backends.select(op, "cuda") for op in backends.OPS] == ["torch"] + ["reference"] * (len(backends.OPS) - 1)
    backends.use("cuda")
    expected = ["cuda"] * 3 + ["reference"] * (len(backends.OPS) - 3)
    assert [backends.select(op, "cuda") for op in backends.OPS] == expected
    assert backends.select("attention_pool", "cuda", dtype=torch.bfloat16) == "cuda"
    assert backends.select("power_spectrogram", "cuda", dtype=torch.int16) == "cuda"
    assert backends.select("attention_pool", "cuda", dtype=torch.float64) == "reference"
    assert backends.select("attention_pool") == "compiled"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(ValueError, match="backend is 'cuda', but this torch is for AMD GPUs"):
        backends.use("cuda")


@pytest.mark.usefixtures("needs_kernels")
def test_use_refuses_missing_cuda_kernels(fresh_state, monkeypatch):
    monkeypatch.setattr(build, "build_info", lambda: {"cuda_archs": [], "cuda": "not built: nvcc was not found."})
    with pytest.raises(ValueError, match="backend is 'cuda', but its kernels are not built: nvcc was not found"):
        backends.use("cuda")
    fresh_state.loaded, fresh_state.reason = False, "they did not load"
    with pytest.raises(ValueError, match="backend is 'cuda', but they did not load"):
        backends.use("cuda")
    assert backends.on_cuda == "auto"


@pytest.mark.skipif(not backends.build_info().get("cuda_archs"), reason="the CUDA kernels were not built")
def test_environment_selects_cuda():
    script = "from ser_fast import backends; print([backends.select(op, 'cuda') for op in backends.OPS])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                            env=os.environ | {"SER_FAST_BACKEND": "cuda"})  # fmt: skip
    expected = ["cuda"] * 3 + ["reference"] * (len(backends.OPS) - 3)
    assert result.stdout.strip() == str(expected), result.stderr
