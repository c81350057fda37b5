"""Fallbacks and their messages: GPUs and drivers that are too old, devices of other makers, other systems."""

import ctypes
import re
import subprocess
import sys
import types

import pytest
import torch

from ser_fast import backends
from ser_fast.backends import build, gpus, info

BUILT = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX")


@pytest.mark.parametrize(
    ("capability", "archs", "driver"),
    [
        ((8, 0), BUILT, 13000),
        ((8, 7), BUILT, 13000),  # machine code of 8.0 and 8.6
        ((9, 0), BUILT, 13000),
        ((10, 3), BUILT, 13000),
        ((12, 0), BUILT, 13000),
        ((12, 1), BUILT, 13000),
        ((13, 0), BUILT, 13010),  # PTX of 12.0
        ((9, 0), ["8.0+PTX"], 13000),
        ((10, 3), ["10.0f"], 13000),
        ((8, 9), ["8.6"], 14000),  # a newer driver
    ],
)
def test_refusal_is_none_for_supported_gpus(capability, archs, driver):
    assert gpus.refusal("cuda", capability, driver, archs, "13.0.88") is None


@pytest.mark.parametrize(
    ("capability", "archs", "driver", "sentence"),
    [
        ((7, 5), BUILT, 13000, "its compute capability is 7.5; it must be at least 8.0"),
        ((6, 1), BUILT, 12080, "its compute capability is 6.1; it must be at least 8.0"),
        ((8, 0), BUILT, 12080, "its driver supports CUDA 12.8; it must support CUDA 13, which built the kernels"),
        ((8, 0), ["8.6"], 13000, "its compute capability is 8.0; it must be one that runs what was built: 8.6 by CUDA 13.0"),
        ((10, 0), ["8.0", "9.0a"], 13000, "must be one that runs what was built: 8.0, 9.0a by CUDA 13.0"),
        ((10, 0), ["9.0a+PTX"], 13000, "what was built: 9.0a"),  # neither 9.0a's code nor its PTX
        ((12, 0), ["10.0f+PTX"], 13000, "what was built: 10.0f"),
        ((9, 0), [], 13000, "what was built: "),
    ],
)  # fmt: skip
def test_refusal_names_old_gpus_and_drivers(capability, archs, driver, sentence):
    assert sentence in gpus.refusal("cuda", capability, driver, archs, "13.0.88")


def test_refusal_of_ptx_compares_minor_versions():
    """Within a major version a driver runs machine code of later minor ones, but does not compile their PTX."""
    assert gpus.refusal("cuda", (8, 0), 13000, BUILT, "13.1.2") is None
    assert "by CUDA 13.1" in gpus.refusal("cuda", (13, 0), 13000, BUILT, "13.1.2")
    assert gpus.refusal("cuda", (13, 0), 13010, BUILT, "13.1.2") is None


def test_refusal_of_triton_starts_below_8_0():
    assert gpus.refusal("triton", (7, 5)) == "its compute capability is 7.5; it must be at least 8.0"
    assert gpus.refusal("triton", (8, 0)) is None and gpus.refusal("triton", (13, 0)) is None


@pytest.fixture
def machine(fresh_state, monkeypatch):
    """A machine with one GPU, as far as torch tells of it."""
    fresh_state.loaded = True

    def with_gpu(name: str, capability: tuple[int, int], driver: int = 13000, **built) -> None:
        def libraries(name: str):
            assert name == ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
            return types.SimpleNamespace(
                cuDriverGetVersion=lambda version: setattr(version.contents, "value", driver)
            )

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        played = types.SimpleNamespace(CDLL=libraries, c_int=ctypes.c_int, byref=ctypes.pointer)
        monkeypatch.setattr(build, "ctypes", played)
        known = {"compiled": True, "reason": None, "compiler": "g++", "cuda": "built", "cuda_archs": list(BUILT)}
        monkeypatch.setattr(build, "build_info", lambda: known | {"nvcc": "13.0.88"} | built)

    return with_gpu


def test_first_call_refuses_an_old_gpu(machine):
    pytest.importorskip("triton")
    machine("Tesla T4", (7, 5))
    for backend in ("cuda", "triton"):
        sentence = (
            f"backend is '{backend}', but cuda:0 is Tesla T4: its compute capability is 7.5; it must be at least"
        )
        backends.use(backend)
        with pytest.raises(ValueError, match=sentence):
            backends.select("gru", "cuda:0")
        assert info.what_runs()["cuda:0"].startswith(
            f"none: the {backend} kernels are chosen, but cuda:0 is Tesla T4"
        )
        assert f"none: backend is '{backend}', but cuda is Tesla T4" in info.text()
    backends.use("auto")
    assert backends.select("gru", "cuda:0") == "torch"
    assert info.what_runs()["cuda:0"] == (
        "torch's operators: cuda and triton refused, cuda:0 is Tesla T4: its compute capability is 7.5; "
        "it must be at least 8.0"
    )


def test_first_call_refuses_cuda_with_an_old_driver(machine):
    pytest.importorskip("triton")
    machine("NVIDIA A100", (8, 0), driver=12080)
    backends.use("cuda")
    with pytest.raises(ValueError, match=r"its driver supports CUDA 12\.8; it must support CUDA 13, which built"):
        backends.select("gru", "cuda:0")
    backends.use("auto")
    said = info.what_runs()["cuda:0"]
    assert said.startswith("torch's operators: cuda refused, cuda:0 is NVIDIA A100: its driver supports CUDA 12.8; ")
    assert said.endswith("; SER_FAST_BACKEND=triton chooses kernels, not yet run on a GPU")
    backends.use("triton")
    assert info.what_runs()["cuda:0"].startswith("the triton kernels, not yet run on a GPU")


def test_info_explains_torch_on_a_supported_gpu(machine, monkeypatch):
    pytest.importorskip("triton")
    machine("NVIDIA H100", (9, 0))
    said = info.what_runs()["cuda:0"]
    assert said == "torch's operators: SER_FAST_BACKEND=cuda or triton chooses kernels, not yet run on a GPU"
    assert re.search(rf"^tensors on cuda:0 +{re.escape(said)}$", info.text(), re.M)
    machine("NVIDIA H100", (9, 0), cuda="not built: nvcc was not found, so ... .", cuda_archs=[])
    assert "cuda refused, its kernels are not built: nvcc was not found" in info.what_runs()["cuda:0"]
    monkeypatch.setattr(torch.version, "hip", "7.0")
    said = info.what_runs()["cuda:0"]
    assert said.startswith("torch's operators: cuda and triton refused, this torch is for AMD GPUs")


def test_info_without_a_gpu_lists_the_cpu_alone(monkeypatch):
    built_for_cuda = torch.device("cuda")
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available=False: None if check_available else built_for_cuda,
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert list(info.what_runs()) == ["cpu"]


def test_info_names_other_devices(fresh_state, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps"))
    assert info.what_runs()["mps"] == "torch's operators: there are no kernels for it"
    assert backends.select("attention_pool", "mps") == "reference"
    fresh_state.loaded, fresh_state.reason = False, "no C++ compiler was found."
    assert info.what_runs()["cpu"] == "torch's operators: no C++ compiler was found."


@pytest.mark.usefixtures("needs_kernels")
def test_models_train_without_compiled_kernels():
    script = """
import importlib.abc, sys
class NoKernels(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "ser_fast._C":
            raise ImportError("the kernels are absent")
sys.meta_path.insert(0, NoKernels())
import torch, ser_fast
from ser_fast.backends import info
assert not ser_fast.backends.loaded
for model in (ser_fast.CGRU(3), ser_fast.BiGRUMHA(3)):
    model(torch.randn(2, 4000), torch.tensor([4000, 3000])).sum().backward()
assert all(parameter.grad is not None for parameter in model.parameters())
print(info.what_runs()["cpu"])
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert result.stdout.startswith(
        "torch's operators: the compiled kernels did not load (the kernels are absent)"
    ), result.stderr


def test_info_aligns_values_after_the_longest_name(monkeypatch):
    monkeypatch.setattr(info, "what_runs", lambda: {"a device of a long name": "torch's operators"})
    name = "tensors on a device of a long name"
    lines = info.text().splitlines()
    assert f"{name} torch's operators" in lines
    assert f"{'loaded':<{len(name)}} " == next(line for line in lines if line.startswith("loaded"))[: len(name) + 1]
