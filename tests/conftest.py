import os
import shutil

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels run on CPU tensors then
# What deterministic algorithms, by which tests fill new tensors with NaN, ask of cuBLAS before it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def seed():
    """Random inputs that a failing test meets again when it is run again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def nothing_measured(tmp_path_factory):
    """What is expected does not hang on the table that ships; tests of tables bring theirs."""
    from ser_fast.backends import measured

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "FILE", tmp_path_factory.getbasetemp() / "measured.json")
        yield


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
def native(needs_compiler, tmp_path_factory):
    """The library of host_gpu.py."""
    import host_gpu

    return host_gpu.load(tmp_path_factory.mktemp("native"))


@pytest.fixture
def poison():
    """Fills every newly allocated tensor with NaN, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def three_products(monkeypatch):
    """float32 without tf32, which torch's switch for RNNs allows unless it is told otherwise."""
    # Convolutions' switch with it: torch's exporter asks for one answer of both.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
