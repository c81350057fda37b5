"""Markers, worker processes and fixtures of all tests.

A test below ``tests/graphs``, ``triton``, ``native``, ``build`` or ``integration`` gets the marker of that name. A test
beyond the important cases is marked ``thorough``: in a list of parameters by
:func:`selection.important`, or the whole test.

    pytest                                  everything but the thorough cases, some minutes on two cores
    pytest -m ""                            everything
    pytest -m triton                        every case of the Triton kernels
    pytest -m "triton and not thorough"     their important cases
    pytest -m thorough --minutes 30         the others, as many as begin within half an hour

Without file names pytest runs in two worker processes where pytest-xdist is installed; ``-n 0`` keeps it in one.
"""

import dataclasses
import importlib.util
import os
import shutil
import sys
import time

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: the workers share the cores, and two threads of one worker do not wait in a loop.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # starting its processes takes longer than compiling

if getattr(importlib.util.find_spec("triton"), "origin", None) is None:
    sys.modules["triton"] = None  # tests/triton is on the path, but not the package of that name

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run on CPU tensors then
# cuBLAS reads it when it starts; deterministic algorithms, by which tests fill new tensors with NaN, need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_END = pytest.StashKey[float]()  # when no further test begins, on the monotonic clock
KINDS = ("graphs", "triton", "native", "build", "integration")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the options
def pytest_cmdline_main(config):
    """Run all tests in two processes by default, if pytest-xdist is installed."""
    everything = config.args_source == config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    single = any(config.getoption(name, False) for name in ("benchmark", "usepdb", "collectonly"))
    if everything and not single and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses, config.option.dist = 2, "worksteal"


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="begin no test after so many minutes; skip the rest by name")


def pytest_configure(config):
    minutes = config.getoption("minutes")
    config.stash[_END] = float("inf") if minutes is None else time.monotonic() + 60 * minutes


def pytest_runtest_setup(item):
    if time.monotonic() > item.config.stash[_END]:
        pytest.skip(f"not run: --minutes {item.config.getoption('minutes'):g} are over")


def pytest_itemcollected(item):
    if item.path.parent.name in KINDS:
        item.add_marker(item.path.parent.name)


@pytest.fixture(autouse=True)
def seed():
    """Seed the random numbers, so that a failing test draws the same ones when it is repeated."""
    torch.manual_seed(0)


@pytest.fixture
def two_threads():
    """Let the kernels share their work between two threads, also in a worker process, which has one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def nothing_measured(tmp_path_factory):
    """Hide the table of measured GPUs that ships, what was tuned here, and the user's cache.

    Tests of tables bring their own.
    """
    from ser_fast.backends import measured

    with pytest.MonkeyPatch.context() as patch:
        # Matplotlib keeps the user's cache: its list of fonts takes seconds to make.
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or os.path.join(cache, "matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setenv("SER_FAST_TUNED", "0")
        patch.setattr(measured, "FILE", tmp_path_factory.getbasetemp() / "measured.json")
        yield


@pytest.fixture
def fresh_state(monkeypatch):
    """A copy of the state of backend selection, set to "auto", which the test may change."""
    from ser_fast.backends import state

    fresh = dataclasses.replace(
        state.current, on_cuda="auto", widest={}, entries={}, paths={}, packaged=False, hinted=False
    )
    monkeypatch.setattr(state, "current", fresh)
    return fresh


@pytest.fixture(scope="session")
def needs_kernels():
    """Skip a test if the compiled kernels were not built; it fails if they were built and do not load."""
    from ser_fast import backends

    if not backends.build_info()["compiled"]:
        pytest.skip("the compiled kernels were not built")


@pytest.fixture(scope="session")
def needs_compiler():
    """Skip a test that compiles C++ itself if there is no g++."""
    if not shutil.which("g++"):
        pytest.skip("g++ was not found")


@pytest.fixture(scope="session")
def native(needs_compiler, request, tmp_path_factory):
    """The library of host_gpu.py; all worker processes share one."""
    import host_gpu

    folder = tmp_path_factory.getbasetemp()
    return host_gpu.load((folder.parent if hasattr(request.config, "workerinput") else folder) / "native")


@pytest.fixture
def poison():
    """Fill every newly allocated tensor with NaN, so that an element that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def three_products(monkeypatch):
    """float32 products without tf32, which torch's switch for RNNs allows by default."""
    # torch's exporter requires the switch of convolutions to agree with it.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
