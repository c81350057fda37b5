"""The runner of the CUDA kernels on the host: it reports kernels with a fault each, tests/native/faults.cpp."""

import ctypes
import re

import pytest
from host_gpu import ROOT, SANITIZERS, build, sanitized

# In the order of faults.cpp; ``outside`` the sanitizers alone see.
HALF_A_WARP, TWO_BARRIERS, LEFT_EARLY, UNWRITTEN, RACING, OUTSIDE, NOT_WAITED_FOR = range(7)
ONE_BLOCK_ALONE, BYTES_THAT_NEVER_COME, READ_TOO_EARLY, LEFT_BEFORE_IT_COMES, UNINITIALISED = range(7, 12)


def faults(native, which: int) -> tuple[list[float], str]:
    """Return the output of a faulty kernel under each of eight seeds, and the runner's error."""
    native.fault.restype = ctypes.c_float
    error = ctypes.create_string_buffer(4096)
    wrote = [native.fault(which, ctypes.c_size_t(seed), error, ctypes.c_size_t(4096)) for seed in range(8)]
    return wrote, error.value.decode()


@pytest.mark.parametrize(
    ("which", "sentence"),
    [
        (HALF_A_WARP, r"^deadlock; block 0, ended: threads 16 .* 63; block 0, shuffle or product, line \d+: threads 0 .* 47$"),
        (TWO_BARRIERS, r"block 0, barrier, line (\d+): threads 0 1 .* 31; block 0, barrier, line (?!\1)\d+: threads 32 .* 63$"),
        (LEFT_EARLY, r"block 0, barrier, line \d+: threads 0 .* 39 41 .* 63; block 0, ended: threads 40$"),
        (ONE_BLOCK_ALONE, r"block 0, barrier of the cluster, line \d+: threads 0 .* 63; block 1, ended: threads 0 .* 63$"),
        (BYTES_THAT_NEVER_COME, r"block 0, mbarrier, line \d+, parity 0, 8 bytes and 0 arrivals missing: threads 0 .* 63; block 1"),
        (LEFT_BEFORE_IT_COMES, r"^a store arrives in block \d, which has ended$"),
        (UNINITIALISED, r"^an mbarrier is used before it is initialised, block \d, thread \d+$"),
    ],
)  # fmt: skip
def test_runner_reports_who_waits_where(native, which, sentence):
    _, said = faults(native, which)
    assert re.search(sentence, said), said


@pytest.mark.parametrize("which", [UNWRITTEN, NOT_WAITED_FOR, READ_TOO_EARLY])
def test_runner_fills_unwritten_memory_with_nan(native, which):
    """Shared memory, a copy that nobody waited for, another block's store."""
    wrote, said = faults(native, which)
    assert all(value != value for value in wrote) and not said


def test_runner_varies_the_order_of_threads(native):
    wrote, said = faults(native, RACING)
    assert len(set(wrote)) > 1 and not said


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.thorough
def test_sanitizers_see_an_access_out_of_bounds(tmp_path):
    sources = [ROOT / "tests/native" / name for name in ("runner.cpp", "faults.cpp")]
    library = build(tmp_path, *SANITIZERS.split(), sources=sources)
    script = f"import ctypes; ctypes.CDLL({library!r}).fault({OUTSIDE}, ctypes.c_size_t(0), None, ctypes.c_size_t(0))"
    result = sanitized("-c", script)
    assert result.returncode != 0 and "heap-buffer-overflow" in result.stderr, result.stderr[-2000:]


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.thorough
def test_sanitizers_find_nothing_in_the_kernels():
    """In a few cases of every kernel, each at odd sizes and with what lies past the lengths left out."""
    files = [ROOT / "tests" / name for name in ("native/test_native.py", "native/test_native_gru.py")]
    wanted = (
        "test_cuda_attention_pool or test_cuda_power_spectrogram or any_layout or clamp or bad_input "
        "or (test_cuda_gru and (33 or 60))"
    )
    result = sanitized("-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *files, "-k", wanted)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-2000:] + result.stderr[-2000:]
