"""The CUDA kernels on the host: every thread a fiber, in an order drawn by seed. No GPU is needed, nor torch in C++."""

import ctypes
import itertools
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import assert_as_accurate, pool_arguments, spectrogram_arguments

from ser_fast import attention_pool, power_spectrogram

ROOT = Path(__file__).parents[1]
FLAGS, SANITIZERS = "SER_FAST_NATIVE_FLAGS", "-fsanitize=address,undefined -g"
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "frames", "width")]


class Plan(ctypes.Structure):
    _fields_ = [
        ("run", ctypes.c_int64), *((name, ctypes.c_int) for name in ("runs", "group", "packs", "vector", "parts")),
        ("shared", ctypes.c_size_t),
    ]  # fmt: skip


def pointers(*names: str) -> list:
    return [(name, ctypes.c_void_p) for name in names]


class Forward(ctypes.Structure):
    _fields_ = [
        ("shape", Shape), ("plan", Plan), *pointers("h"), ("row_stride", ctypes.c_int64), ("frame_stride", ctypes.c_int64),
        *pointers("w", "lengths", "scores", "partial", "pooled", "weights"),
    ]  # fmt: skip


class Backward(ctypes.Structure):
    _fields_ = [
        ("shape", Shape), ("plan", Plan), *pointers("grad_pooled", "grad_weights", "mean", "h"),
        ("row_stride", ctypes.c_int64), ("frame_stride", ctypes.c_int64),
        *pointers("w", "pooled", "weights", "lengths", "grad_h", "partial"),
    ]  # fmt: skip


def build(folder: Path, *flags: str) -> str:
    """The kernels of tests/native, by the host's compiler."""
    sources, library = sorted((ROOT / "tests/native").glob("*.cpp")), folder / "kernels.so"
    command = ["g++", "-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", *flags, "-x", "c++"]
    subprocess.run([*command, *sources, "-o", library], check=True)
    return str(library)


@pytest.fixture(scope="session")
def native(tmp_path_factory) -> ctypes.CDLL:
    """As built, or by the sanitizers' test with their flags."""
    return ctypes.CDLL(build(tmp_path_factory.mktemp("native"), *os.environ.get(FLAGS, "").split()))


def sanitized(*arguments: str) -> subprocess.CompletedProcess:
    """Python with the sanitizers loaded first, so that torch's tensors lie in memory that they watch."""
    libraries = [
        subprocess.run(
            ["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("asan", "ubsan")
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("g++ came without its sanitizers' libraries")
    environment = {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",  # Python leaks, fibers have their own stacks
        "UBSAN_OPTIONS": "halt_on_error=1",
        FLAGS: SANITIZERS,
    }
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment)


def plan_of(native, batch: int, frames: int, width: int, dtype: torch.dtype, aligned: bool) -> Plan:
    plan = Plan()
    native.pool_plan(ctypes.byref(Shape(batch, frames, width)), dtype.itemsize, int(aligned), ctypes.byref(plan))
    return plan


def call(function, dtype: torch.dtype, arguments: ctypes.Structure, seed: int) -> None:
    error = ctypes.create_string_buffer(4096)
    failed = function(KINDS[dtype], ctypes.byref(arguments), ctypes.c_size_t(seed), error, ctypes.c_size_t(4096))
    if failed:
        raise RuntimeError(error.value.decode())


def at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def nan(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(sizes, torch.nan, dtype=dtype)


def pool(native, h, w, lengths, seed=0):
    batch, frames, width = h.shape
    aligned = h.stride(2) == 1 and all(step * h.itemsize % 16 == 0 for step in (*h.stride()[:2], width))
    plan = plan_of(native, batch, frames, width, h.dtype, aligned)
    scores, partial = nan(batch, frames), nan(batch, plan.runs, 2 + width)
    pooled, weights = nan(batch, width, dtype=h.dtype), nan(batch, frames, dtype=h.dtype)
    call(native.pool_forward, h.dtype, Forward(
        Shape(batch, frames, width), plan, at(h), *h.stride()[:2], at(w), at(lengths), at(scores), at(partial), at(pooled),
        at(weights),
    ), seed)  # fmt: skip
    return pooled, weights


def pool_backward(native, grad_pooled, grad_weights, h, w, pooled, weights, lengths, seed=0):
    batch, frames, width = h.shape
    aligned = h.stride(2) == 1 and all(step * h.itemsize % 16 == 0 for step in (*h.stride()[:2], width))
    plan = plan_of(native, batch, frames, width, h.dtype, aligned)
    mean = None if grad_weights is None else (grad_weights.float() * weights.float()).sum(1)
    grad_h, partial = nan(batch, frames, width, dtype=h.dtype), nan(batch, plan.runs, width)
    call(native.pool_backward, h.dtype, Backward(
        Shape(batch, frames, width), plan, at(grad_pooled), at(grad_weights), at(mean), at(h), *h.stride()[:2], at(w),
        at(pooled), at(weights), at(lengths), at(grad_h), at(partial),
    ), seed)  # fmt: skip
    return grad_h, partial.sum((0, 1)).to(w.dtype)


def assert_near(found, peer, truth, roundings: float, what: str) -> None:
    """float32 at most twice the reference's error, half precision within so many roundings of the largest value."""
    if found.dtype == torch.float32:
        assert_as_accurate(found, peer, truth, what)
        return
    assert torch.isfinite(found).all(), what
    error, scale = float((found.double() - truth).abs().max()), max(1.0, float(truth.abs().max()))
    assert error <= roundings * torch.finfo(found.dtype).eps * scale, f"{what} is off by {error:.1e} of {scale:.1e}"


SIZES = [(1, 1, 1), (3, 5, 7), (2, 130, 16), (4, 1, 129), (2, 70, 300), (1, 9, 1024), (1, 6, 1032), (1, 20, 5000)]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("ragged_rows", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_attention_pool(native, sizes, ragged_rows, dtype):
    h, w, lengths = pool_arguments(*sizes, ragged_rows=ragged_rows)
    h, w = h.to(dtype), (w / sizes[2] ** 0.5).to(dtype)
    if ragged_rows:  # what lies past a length is not read
        h.masked_fill_((torch.arange(sizes[1]) >= lengths[:, None])[..., None], torch.nan)
    found, peer = pool(native, h, w, lengths, seed=1), attention_pool.reference(h, w, lengths)
    truth = attention_pool.reference(h.double(), w.double(), lengths)
    for name, *one in zip(("pooled", "weights"), found, peer, truth):
        assert_near(*one, 2, name)
    for grad_weights in (None, torch.randn_like(found[1])):
        backward = (torch.randn_like(found[0]), grad_weights, h, w, *found, lengths)
        wide = tuple(x.double() if x is not None and x.is_floating_point() else x for x in backward)
        results, peer = pool_backward(native, *backward, seed=2), attention_pool.reference_backward(*backward)
        for name, *one in zip(("grad_h", "grad_w"), results, peer, attention_pool.reference_backward(*wide)):
            assert_near(*one, 4, name)


def test_the_order_in_which_threads_run_changes_nothing(native):
    h, w, lengths = pool_arguments(2, 150, 40, ragged_rows=True, dtype=torch.float32)
    first = pool(native, h, w, lengths)
    grads = pool_backward(native, first[0], first[1], h, w, *first, lengths)
    for seed in range(1, 6):
        results = pool(native, h, w, lengths, seed)
        again = pool_backward(native, first[0], first[1], h, w, *first, lengths, seed=seed)
        assert all(torch.equal(one, other) for one, other in zip((*results, *again), (*first, *grads)))


def test_every_plan_fits(native):
    """Frames are covered once, lanes hold their share, shared memory is within every target's."""
    frames = (1, 63, 64, 65, 1000, 4096, 4097, 100_000)
    for width, count, dtype in itertools.product((*range(1, 70), 127, 1024, 1025, 4097, 8192), frames, KINDS):
        plan = plan_of(native, 1, count, width, dtype, True)
        lanes, pack = 32 * plan.group, 16 // dtype.itemsize
        assert plan.run * (plan.runs - 1) < count <= plan.run * plan.runs and plan.runs <= 64
        assert plan.group in (1, 2, 4, 8) and plan.packs in (1, 2, 4, 8) and plan.packs * pack <= 32
        assert lanes * plan.packs * pack >= width and plan.shared <= 48 * 1024
        assert plan.parts * 256 >= max(count, width) and plan.run % (8 // plan.group) == 0
    assert plan_of(native, 1, 10, 8193, torch.float32, True).packs == 0


class SpectrogramShape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "samples", "frames", "n_fft", "window", "hop", "first_bin", "bins")),
        ("center", ctypes.c_bool), ("pad", ctypes.c_int),
    ]  # fmt: skip


class SpectrogramPlan(ctypes.Structure):
    _fields_ = [
        ("points", ctypes.c_int), ("passes", ctypes.c_int), ("radix", ctypes.c_int * 24),
        *((name, ctypes.c_int) for name in ("frames", "tiles", "threads")), ("shared", ctypes.c_size_t),
    ]  # fmt: skip


class Spectrogram(ctypes.Structure):
    _fields_ = [
        ("shape", SpectrogramShape), ("plan", SpectrogramPlan), *pointers("wave"), ("row_stride", ctypes.c_int64),
        *pointers("window", "roots", "lengths", "mean", "std"), ("log", ctypes.c_bool), ("floor", ctypes.c_float),
        *pointers("out"),
    ]  # fmt: skip


def spectrogram(
    native, wave, window, n_fft, hop, begin, end, lengths, mean, std, log, floor, center, pad_mode, seed=0
):
    out = torch.full_like(power_spectrogram.new_output(
        wave, window, n_fft, hop, begin, end, lengths, mean, std, log, floor, center, pad_mode
    ), torch.nan)  # fmt: skip
    pad = ("constant", "reflect", "replicate", "circular").index(pad_mode)
    shape = SpectrogramShape(*wave.shape, out.shape[1], n_fft, len(window), hop, begin, end - begin, center, pad)
    plan = SpectrogramPlan()
    native.spectrogram_plan(ctypes.byref(shape), ctypes.byref(plan))
    turns = torch.arange(n_fft, dtype=torch.float64) * (-2 * torch.pi / n_fft)
    roots = torch.stack([turns.cos(), turns.sin()], 1).float()
    arguments = Spectrogram(
        shape,
        plan,
        at(wave),
        wave.stride(0),
        at(window),
        at(roots),
        at(lengths),
        at(mean),
        at(std),
        log,
        floor,
        at(out),
    )
    error = ctypes.create_string_buffer(4096)
    kind = int(wave.dtype == torch.int16)
    failed = native.spectrogram_forward(
        kind, ctypes.byref(arguments), ctypes.c_size_t(seed), error, ctypes.c_size_t(4096)
    )
    assert not failed, error.value.decode()
    return out


# Batch, samples, window, n_fft, hop.
SPECTROGRAMS = [
    ((1, 1, 1, 1, 1), {}),
    ((2, 10, 2, 2, 3), {}),
    ((2, 400, 100, 128, 30), {"ragged_rows": True, "normalized": True, "log": True}),
    ((3, 300, 45, 45, 7), {"ragged_rows": True}),
    ((1, 700, 21, 250, 11), {"normalized": True}),
    ((2, 3000, 640, 1600, 160), {"bins": (0, 401), "normalized": True, "ragged_rows": True}),
    ((2, 60, 100, 128, 30), {"ragged_rows": True, "bins": (3, 50)}),
    *(((3, 200, 60, 96, 25), {"ragged_rows": True, "center": True, "pad_mode": mode}) for mode in power_spectrogram.PAD_MODES),
]  # fmt: skip


@pytest.mark.parametrize("kind", [torch.float32, torch.int16], ids=str)
@pytest.mark.parametrize("case", SPECTROGRAMS, ids=str)
def test_power_spectrogram(native, case, kind):
    sizes, options = case
    given = spectrogram_arguments(*sizes, **options, dtype=kind)
    given = [x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    exact = [x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in given]
    if kind == torch.int16:
        exact[0] = given[0].double() / 32768
    found, peer, truth = (
        spectrogram(native, *given, seed=3),
        power_spectrogram.reference(*given),
        power_spectrogram.reference(*exact),
    )
    if options.get("log"):
        # Near the floor a logarithm has no bounded relative error: the powers are compared instead.
        found, peer = ((x * given[8] + given[7]).exp() for x in (found, peer))
        truth = (truth * exact[8] + exact[7]).exp()
    assert_as_accurate(found, peer, truth)
    if kind == torch.float32 and given[6] is not None:  # what lies past a length is not read
        spoilt = given[0].masked_fill(torch.arange(sizes[1]) >= given[6][:, None], torch.nan)
        assert torch.equal(spectrogram(native, spoilt, *given[1:]), spectrogram(native, *given))


def test_every_transform_is_planned_or_left_to_others(native):
    for n_fft in range(1, 4097):
        plan = SpectrogramPlan()
        shape = SpectrogramShape(3, 50_000, 300, n_fft, n_fft, 160, 0, 1, False, 0)
        native.spectrogram_plan(ctypes.byref(shape), ctypes.byref(plan))
        points = n_fft if n_fft % 2 else n_fft // 2
        rest = points
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        assert (plan.passes > 0) == (rest == 1 and 16 * points <= 48 * 1024), n_fft
        if plan.passes:
            assert math.prod(plan.radix[: plan.passes]) == plan.points == points and plan.shared <= 48 * 1024
            assert plan.frames * (plan.tiles - 1) < 300 <= plan.frames * plan.tiles


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        (0, r"deadlock in block 0; ended: threads 16 .* 63; exchange between lanes, line \d+: threads 0 .* 47$"),
        (1, r"barrier, line (\d+): threads 0 1 .* 31; barrier, line (?!\1)\d+: threads 32 .* 63$"),
        (2, r"barrier, line \d+: threads 0 .* 39 41 .* 63; ended: threads 40$"),
    ],
)
def test_the_runner_reports_who_waits_where(native, which, sentence):
    error = ctypes.create_string_buffer(4096)
    native.fault(which, ctypes.c_size_t(0), error, ctypes.c_size_t(4096))
    assert re.search(sentence, error.value.decode()), error.value.decode()


def test_the_runner_shows_what_was_not_written_and_what_depends_on_the_order(native):
    native.fault.restype = ctypes.c_float
    error = ctypes.create_string_buffer(4096)
    unwritten, racing = ([native.fault(which, ctypes.c_size_t(seed), error, ctypes.c_size_t(4096)) for seed in range(8)]
                         for which in (3, 4))  # fmt: skip
    assert all(value != value for value in unwritten) and len(set(racing)) > 1 and not error.value


def test_the_sanitizers_find_nothing_in_the_kernels():
    wanted = "test_attention_pool or test_power_spectrogram or the_order"
    result = sanitized("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", wanted)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-2000:] + result.stderr[-2000:]


def test_the_sanitizers_see_an_access_outside_a_buffer(tmp_path):
    library = build(tmp_path, *SANITIZERS.split())
    script = f"import ctypes; ctypes.CDLL({library!r}).fault(5, ctypes.c_size_t(0), None, ctypes.c_size_t(0))"
    result = sanitized("-c", script)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr, result.stderr[-2000:]


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not on the PATH")
@pytest.mark.parametrize("arch", ["80", "86", "89", "90a", "100", "120"])
@pytest.mark.parametrize("source", sorted((ROOT / "kernels").glob("*.cu")), ids=lambda path: path.stem)
def test_nvcc_compiles_without_a_warning_or_a_spill(source, arch, tmp_path):
    command = ["nvcc", "-std=c++20", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Werror", "all-warnings"]
    result = subprocess.run([*command, "-Xptxas", "-v", "-c", source, "-o", tmp_path / "kernels.o"],
                            capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"Used (\d+) registers", result.stderr)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    print(f"{source.name} sm_{arch}: {len(kernels)} kernels, at most {max(map(int, kernels))} registers")
    assert len(spills) >= len(kernels) > 0 and {number for one in spills for number in one} == {"0"}, result.stderr
