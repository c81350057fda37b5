"""Which kernels run, what importing the package takes, and what serves where nothing is compiled."""

import subprocess
import sys

import pytest

import ser_fast
from ser_fast import backends


@pytest.mark.usefixtures("needs_kernels")
def test_compiled_kernels_are_loaded():
    assert backends.loaded, backends.reason


def test_references_run_without_compiled_kernels():
    """In a process of its own, since kernels cannot be unloaded: ops, modules, autograd, opcheck."""
    script = """
import torch, ser_fast
from ser_fast import backends
assert not backends.loaded and "SER_FAST_BACKEND=reference" in backends.reason
assert (backends.select("gru"), backends.select("attention_pool")) == ("torch", "reference")
gru, theirs = ser_fast.GRU(5, 4, 2, bidirectional=True).double(), torch.nn.GRU(5, 4, 2, bidirectional=True).double()
theirs.load_state_dict(gru.state_dict())
x = torch.randn(6, 3, 5, dtype=torch.float64)
for one, other in zip(gru(x), theirs(x)):
    assert (one - other).abs().max() < 1e-12
gru(x)[0].square().sum().backward(); theirs(x)[0].square().sum().backward()
for one, other in zip(gru.parameters(), theirs.parameters()):
    assert (one.grad - other.grad).abs().max() < 1e-12
gx, w = torch.randn(3, 2, 1, 6, requires_grad=True).double(), torch.randn(1, 6, 2, requires_grad=True).double()
for after in (True, False):
    for transposed in (gx, gx.transpose(0, 1).contiguous().transpose(0, 1)):
        arguments = (transposed.detach().requires_grad_(), w.detach().requires_grad_(), None, None, torch.tensor([3, 0]), after, True)
        torch.library.opcheck(torch.ops.ser_fast.gru, arguments)
model = ser_fast.CGRU(3)
model(torch.randn(2, 4000), torch.tensor([4000, 3000])).sum().backward()
print("served")
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True,
                            env={"SER_FAST_BACKEND": "reference", "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert result.stdout.strip() == "served", result.stderr


def test_import_and_training_step_do_not_warn():
    script = """
import torch, ser_fast
for model in (ser_fast.CGRU(3), ser_fast.BiGRUMHA(3)):
    loss = model(torch.randn(2, 4000), torch.tensor([4000, 3000])).sum()
    loss.backward()
    torch.optim.Adam(model.parameters()).step()
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_import_does_not_load_torch_dynamo():
    """Which takes seconds."""
    script = "import sys, torch; assert 'torch._dynamo' not in sys.modules; import ser_fast; print([*sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'ser_fast.backends'" in result.stdout and "'torch._dynamo'" not in result.stdout


def test_select_refuses_unknown_names():
    with pytest.raises(ValueError, match="op is 'fft'; it must be one of gru"):
        backends.select("fft")
    result = subprocess.run([sys.executable, "-c", "import ser_fast"], capture_output=True, text=True,
                            env={"SER_FAST_BACKEND": "fast", "PATH": "/usr/bin:/bin"})  # fmt: skip
    assert "SER_FAST_BACKEND is 'fast'; it must be one of auto, compiled, cuda, triton, reference" in result.stderr


def test_backends_state_is_listed_and_not_assigned():
    assert {"on_cuda", "loaded", "reason", "use", "select"} <= set(dir(backends))
    before = backends.on_cuda
    with pytest.raises(
        AttributeError, match=r"on_cuda of ser_fast.backends cannot be assigned; use ser_fast.backends.use"
    ):
        backends.on_cuda = "cuda"
    assert "on_cuda" not in vars(backends) and backends.on_cuda == before
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = backends.nothing


def test_nn_exports_its_modules():
    assert all(getattr(ser_fast.nn, name).__module__.startswith("ser_fast.nn.") for name in ser_fast.nn.__all__)
    shared = set(ser_fast.nn.__all__) - {"SpectrogramStream"}
    assert shared <= set(ser_fast.__all__)
    assert all(getattr(ser_fast, name) is getattr(ser_fast.nn, name) for name in shared)
