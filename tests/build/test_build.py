"""Tests of `pip install` with and without torch, a compiler, nvcc and a GPU. Each case builds a copy of the sources.

Most cases use a fake compiler, nvcc and torch, so they take seconds and do not depend on the machine.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch

import ser_fast

ROOT = Path(__file__).parents[2]
VARIABLES = ("SER_FAST_BUILD", "SER_FAST_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX", "CXXFLAGS", "NVCCFLAGS")
FAKE_COMPILER = """#!/bin/sh
# Answers the questions that setup.py asks nvcc and g++, and writes empty files.
while [ $# -gt 0 ]; do
  case "$1" in
    --version) echo "release 13.0, V13.0.88" ;;
    --dryrun) printf '#$ INCLUDES="-I/nowhere"\\n#$ LIBRARIES= "-L/nowhere"\\n' >&2 ;;
    --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_86\\nsm_89\\nsm_90\\nsm_100\\nsm_120\\n' ;;
    -o) : >"$2" ;;
  esac
  shift
done
"""
RUNS = (
    "import ser_fast, torch; assert ser_fast.backends.loaded; print(ser_fast.GRU(3, 4)(torch.ones(2, 1, 3))[0].shape)"
)


@pytest.fixture
def sources(tmp_path) -> Path:
    kept = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "*.so", "*.egg-info", "build_info.json", "__pycache__"
    )
    return shutil.copytree(ROOT, tmp_path / "sources", ignore=kept)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """The interpreter of a new virtual environment, without torch."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def pip(python: Path | str, *arguments, cwd: Path, **environment) -> subprocess.CompletedProcess:
    """Run pip with only those of the build's variables that are given, and without CUDA kernels unless they are."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run([python, "-m", "pip", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env=kept | {"SER_FAST_CUDA": "0"} | environment)  # fmt: skip


@pytest.fixture
def setup(monkeypatch):
    """Return a function that loads setup.py with the given environment variables and builds nothing."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)

    def load(**environment):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("ser_fast_setup", ROOT / "setup.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def build(sources: Path, python=sys.executable, options=("--no-build-isolation",), **environment):
    """Build a wheel and return the process, the wheel's tag, its file names and its build_info.json."""
    result = pip(
        python, "wheel", "-v", "--no-deps", *options, "-w", sources / "dist", ".", cwd=sources, **environment
    )
    wheels = list((sources / "dist").glob("*.whl"))
    if not wheels:
        return result, None, None, None
    with zipfile.ZipFile(wheels[0]) as wheel:
        info = json.loads(wheel.read("ser_fast/build_info.json"))
        return result, wheels[0].stem.split("-", 2)[2], wheel.namelist(), info


def assert_left_out(built, sentence: str) -> None:
    result, tag, names, info = built
    assert result.returncode == 0, result.stdout + result.stderr
    assert tag == "py3-none-any" and not [name for name in names if name.endswith(".so")]
    assert not info["compiled"] and sentence in info["reason"], info
    # One sentence says what is missing and what to type.
    assert f"torch's own operators run: {info['reason']}" in result.stdout + result.stderr and "`" in info["reason"]


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.thorough
def test_isolated_build_uses_the_environments_torch(sources, environment):
    """pip hides the environment's packages from the build, which finds torch all the same and loads elsewhere."""
    site = next(environment.parents[1].glob("lib/python*/site-packages"))
    packages = Path(torch.__file__).parents[1]
    (site / "torch").symlink_to(packages / "torch")
    (site / "rest.pth").write_text(f"{packages}\n")
    try:
        result = pip(environment, "install", "--no-deps", ".", cwd=sources, CXXFLAGS="-O0")
        assert result.returncode == 0, result.stdout + result.stderr
        run = subprocess.run([environment, "-c", RUNS], cwd=sources.parent, capture_output=True, text=True)
        assert run.stdout.strip() == "torch.Size([2, 1, 4])", run.stderr
        where = subprocess.run([environment, "-c", "import ser_fast; print(ser_fast.__file__)"], cwd=sources.parent,
                               capture_output=True, text=True)  # fmt: skip
        assert where.stdout.startswith(str(site))
    finally:
        (site / "torch").unlink()
        (site / "rest.pth").unlink()


def test_wheel_is_abi3_and_holds_the_kernels(sources, fakes):
    result, tag, names, info = build(sources, **fakes())
    assert result.returncode == 0, result.stdout + result.stderr
    assert tag.startswith("cp310-abi3-linux"), result.stdout + result.stderr
    assert {"ser_fast/_C.abi3.so", "ser_fast/kernels/__init__.py", "ser_fast/models/cgru.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/"))]
    assert info["compiled"] and info["reason"] is None
    assert next((sources / "dist").glob("*.whl")).name.startswith(f"ser_fast-{ser_fast.__version__}-")


def test_sdist_holds_sources_alone(sources, tmp_path):
    """All that a build and the tests need, made without torch too; of the benchmarks not the results."""
    written = {path.relative_to(sources).as_posix() for path in sources.rglob("*") if path.is_file()}
    for made in ("build/lib/gru.o", "ser_fast/_C.abi3.so", "ser_fast/build_info.json", "runs/demo/best.safetensors",
                 "kernels/__pycache__/gru.cpython-311.pyc", "dist/old.whl", "tests/native/kernels.so"):  # fmt: skip
        (sources / made).parent.mkdir(parents=True, exist_ok=True)
        (sources / made).touch()
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", tmp_path], cwd=sources, check=True,
                   capture_output=True, env=os.environ | {"SER_FAST_BUILD": "0", "SER_FAST_CUDA": "0"})  # fmt: skip
    with tarfile.open(next(tmp_path.glob("ser_fast-*.tar.gz"))) as archive:
        held = {Path(*Path(member.name).parts[1:]).as_posix() for member in archive if member.isfile()}
    top = {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    folders = ("csrc/", "docs/", "kernels/", "ser_fast/", "tests/")
    wanted = {name for name in written if name in top or name.startswith(folders)}
    wanted |= {name for name in written if name.startswith("benchmarks/") and name.endswith(".py")}
    assert {name for name in held if ".egg-info/" not in name} == wanted | {"PKG-INFO", "setup.cfg"}


@pytest.mark.usefixtures("needs_kernels")
def test_object_needs_the_stable_abi_alone():
    """The object uses torch's C shims (CUDA's as weak symbols) and Python's limited API, but not the CUDA runtime."""
    listing = subprocess.run(["nm", "-D", "--undefined-only", ROOT / "ser_fast" / "_C.abi3.so"], capture_output=True,
                             text=True, check=True).stdout.splitlines()  # fmt: skip
    symbols = {line.split()[-1]: line.split()[-2] for line in listing}
    assert not [name for name in symbols if name.startswith(("cu", "__cuda"))]
    built = json.loads((ROOT / "ser_fast" / "build_info.json").read_text())["cuda_archs"]
    assert symbols.get("aoti_torch_get_current_cuda_stream") == ("w" if built else None)
    assert [name for name in symbols if name.startswith("aoti_torch_")]
    assert not [
        name for name in symbols if name.startswith(("_ZN2at", "_ZN3c10", "_ZN5torch", "_ZNK2at", "_ZNK3c10"))
    ]
    allowed = {"PyModule_Create2", "PyModule_AddStringConstant", "PyErr_SetString", "PyExc_ValueError", "_Py_Dealloc"}
    allowed |= {"PyArg_ParseTuple", "_Py_NoneStruct"}
    assert {name for name in symbols if name.startswith(("_Py", "Py"))} <= allowed


def test_build_without_torch(sources, environment):
    assert_left_out(build(sources, environment, options=()), "torch was not found")


def test_build_without_a_compiler(sources, fakes):
    wanted = "no C++ compiler was found at CXX=no-such-compiler"
    assert_left_out(build(sources, **fakes() | {"CXX": "no-such-compiler"}), wanted)


def test_build_with_a_failing_compiler(sources, fakes):
    result, _, names, info = build(sources, **fakes() | {"CXX": shutil.which("false")})
    assert result.returncode == 0 and "the compiler failed" in info["reason"]
    assert not [name for name in names if name.endswith(".so")]


def test_build_switched_off(sources):
    built = build(sources, SER_FAST_BUILD="0")
    assert_left_out(built, "SER_FAST_BUILD=0 leaves the kernels out")
    data = {
        "recipes/own.yaml",
        "reports/browser.css",
        "reports/browser.js",
        "reports/curves.js",
        "reports/listen.html",
        "reports/microphone.js",
        "pretrained/emodb.safetensors",
        "pretrained/emodb.md",
    }
    assert {f"ser_fast/{name}" for name in data} <= set(built[2])


def test_build_required_fails_without_a_compiler(sources, fakes):
    result, tag, _, _ = build(sources, **fakes() | {"SER_FAST_BUILD": "1", "CXX": "no-such-compiler"})
    assert result.returncode != 0 and tag is None
    assert "no C++ compiler was found" in result.stdout + result.stderr


@pytest.fixture
def fakes(tmp_path):
    """Return a function that makes a fake torch, compiler and nvcc, and returns the environment that selects them."""

    def make(torch_cuda: str | None = None, nvcc: bool = True, **environment) -> dict[str, str]:
        headers = tmp_path / "packages/torch/include/torch/csrc/stable"
        headers.mkdir(parents=True)
        (headers / "library.h").touch()
        (tmp_path / "packages/torch/__init__.py").touch()
        (tmp_path / "packages/torch/version.py").write_text(
            f"__version__ = '2.13.0+fake'\ncuda: Optional[str] = {torch_cuda!r}\nhip: Optional[str] = None\n"
        )
        (tmp_path / "tools").mkdir()
        for name in ("g++", "nvcc") if nvcc else ("g++",):
            (tmp_path / "tools" / name).write_text(FAKE_COMPILER)
            (tmp_path / "tools" / name).chmod(0o755)
        for name in filter(shutil.which, ("sh", "git", "ninja")):  # without ninja on the PATH, setup.py finds pip's
            (tmp_path / "tools" / name).symlink_to(shutil.which(name))
        return {"PYTHONPATH": str(tmp_path / "packages"), "PATH": str(tmp_path / "tools"), "SER_FAST_CUDA": "",
                "CUDA_VISIBLE_DEVICES": ""} | environment  # fmt: skip

    return make


ALL = ["8.0", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX"]


@pytest.mark.parametrize(
    ("torch_cuda", "environment", "archs", "said"),
    [
        (
            None,
            {},
            [],
            "not built: torch 2.13.0+fake is built without CUDA; to build them anyway, type `export SER_FAST_CUDA=1`",
        ),
        pytest.param(
            None,
            {"TORCH_CUDA_ARCH_LIST": "9.0a"},
            [],
            "not built: torch 2.13.0+fake is built without CUDA",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            None,
            {"SER_FAST_CUDA": "1"},
            ALL,
            "(all architectures, because of SER_FAST_CUDA=1)",
            marks=pytest.mark.thorough,
        ),
        ("13.0", {}, ALL, "(all architectures, because no GPU is visible)"),
        pytest.param(
            "13.0",
            {"TORCH_CUDA_ARCH_LIST": "7.5 9.0a"},
            ["9.0a"],
            "(the architectures of TORCH_CUDA_ARCH_LIST)",
            marks=pytest.mark.thorough,
        ),
        (
            "13.0",
            {"SER_FAST_CUDA": "0"},
            [],
            "not built: SER_FAST_CUDA=0 leaves them out; type `unset SER_FAST_CUDA`",
        ),
    ],
)
def test_build_of_cuda_follows_torch_and_environment(sources, fakes, torch_cuda, environment, archs, said):
    result, _, _, info = build(sources, **fakes(torch_cuda, **environment))
    output = result.stdout + result.stderr
    assert result.returncode == 0 and info["compiled"], output
    assert info["cuda_archs"] == archs and said in info["cuda"]
    if archs:
        assert (
            info["cuda"].startswith(f"built for {', '.join(archs)} by nvcc 13.0.88 (") and info["nvcc"] == "13.0.88"
        )
        # Before the build, and with the two ways to shorten it.
        assert f"ser_fast: building the CUDA kernels for {', '.join(archs)} (" in output
        assert "a minute" in output and "TORCH_CUDA_ARCH_LIST" in output and "SER_FAST_CUDA=0 builds none" in output
    else:
        assert f"ser_fast: CUDA kernels {info['cuda']}" in output and "building the CUDA" not in output


@pytest.mark.parametrize(
    ("gpus", "environment", "archs", "why"),
    [
        (["9.0"], {}, ["9.0a"], "the architectures of the visible GPUs"),
        (["7.5", "8.6", "8.9"], {}, ["8.6", "8.9"], "the architectures of the visible GPUs"),
        (["8.0"], {"TORCH_CUDA_ARCH_LIST": "8.6+PTX"}, ["8.6+PTX"], "the architectures of TORCH_CUDA_ARCH_LIST"),
        (["8.0"], {"SER_FAST_CUDA": "1"}, ALL, "all architectures, because of SER_FAST_CUDA=1"),
        (["9.0", "13.0"], {}, ALL, "all architectures, because nvcc does not support the visible GPU's, 13.0"),
        ([], {}, ALL, "all architectures, because no GPU is visible"),
    ],
)
def test_find_cuda_takes_visible_gpus(setup, monkeypatch, fakes, gpus, environment, archs, why):
    module = setup(**fakes("13.0", **environment))
    monkeypatch.setattr(module, "visible_gpus", lambda: gpus)
    cuda = module.find_cuda(module.Torch(ROOT, "2.13.0", "13.0"))
    assert (cuda.archs, cuda.why) == (archs, why)


def test_find_cuda_refuses_old_gpus(setup, monkeypatch, fakes):
    module = setup(**fakes("13.0"))
    monkeypatch.setattr(module, "visible_gpus", lambda: ["7.5"])
    with pytest.raises(module.Missing, match=r"capability 7.5, and the kernels need 8.0 .*`export SER_FAST_CUDA=1`"):
        module.find_cuda(module.Torch(ROOT, "2.13.0", "13.0"))


class Driver:
    """Stands in for libcuda.so.1 with GPUs of these compute capabilities; None is a driver without a GPU."""

    def __init__(self, capabilities: list[tuple[int, int]] | None):
        self.capabilities = capabilities

    def cuInit(self, flags: int) -> int:
        return 0 if self.capabilities else 100

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = len(self.capabilities)
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, gpu: int) -> int:
        value._obj.value = self.capabilities[gpu][{75: 0, 76: 1}[attribute]]
        return 0


@pytest.mark.parametrize(
    ("capabilities", "found"), [([(12, 0), (9, 0), (8, 6), (9, 0)], ["8.6", "9.0", "12.0"]), (None, [])]
)
def test_visible_gpus_asks_the_driver(setup, monkeypatch, capabilities, found):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: {"libcuda.so.1": Driver(capabilities)}[name])
    assert setup().visible_gpus() == found


def test_visible_gpus_without_a_driver(setup, monkeypatch):
    def refuse(name):
        raise OSError("libcuda.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert setup().visible_gpus() == []


def test_build_without_nvcc(sources, fakes):
    result, _, _, info = build(sources, **fakes("13.0", nvcc=False))
    assert result.returncode == 0 and info["compiled"], result.stdout + result.stderr
    assert info["cuda"].startswith("not built: nvcc was not found") and "`" in info["cuda"] and not info["cuda_archs"]
    assert f"ser_fast: CUDA kernels {info['cuda']}" in result.stdout + result.stderr


def test_build_of_cuda_required_fails_without_nvcc(sources, fakes):
    result, tag, _, _ = build(sources, **fakes(nvcc=False, SER_FAST_CUDA="1"))
    assert result.returncode != 0 and tag is None
    assert "SER_FAST_CUDA=1 requires the CUDA kernels, but nvcc was not found" in result.stdout + result.stderr


@pytest.mark.parametrize("wanted", ["", "1"])
def test_build_with_a_failing_nvcc(sources, fakes, wanted):
    """nvcc answers questions and compiles nothing; it is found under CUDA_HOME."""
    environment = fakes("13.0", nvcc=False, SER_FAST_CUDA=wanted)
    nvcc = sources.parent / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_COMPILER.replace(': >"$2"', "exit 1"))
    nvcc.chmod(0o755)
    result, tag, _, info = build(sources, **environment, CUDA_HOME=str(nvcc.parents[1]))
    if wanted:
        assert result.returncode != 0 and tag is None
        assert "SER_FAST_CUDA=1 requires the CUDA kernels, but nvcc or its" in result.stdout + result.stderr
    else:
        assert result.returncode == 0 and info["compiled"], result.stdout + result.stderr
        assert info["cuda"].startswith("not built: nvcc or its host compiler failed") and not info["cuda_archs"]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_build_on_other_systems(setup, monkeypatch, system):
    module = setup()
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(module.Missing, match=f"the kernels are compiled on Linux only, not on {system}.$"):
        module.tools()


@pytest.mark.parametrize(
    ("wanted", "known", "archs"),
    [
        ("8.0;9.0a;12.0+PTX", set(), ["8.0", "9.0a", "12.0+PTX"]),
        ("7.0 7.5 8.6+PTX", set(), ["8.6+PTX"]),
        ("10.0f", set(), ["10.0f"]),
        ("", {75, 80, 86, 89, 90, 100, 103, 120}, ["8.0", "8.6", "8.9", "9.0a", "10.0", "12.0+PTX"]),
        ("", {75, 80, 86, 89, 90}, ["8.0", "8.6", "8.9", "9.0a+PTX"]),
    ],
)
def test_find_archs_reads_the_list_or_asks_nvcc(setup, wanted, known, archs):
    module = setup(TORCH_CUDA_ARCH_LIST=wanted, CUDA_VISIBLE_DEVICES="")
    assert module.choose_archs("nvcc", known)[0] == archs


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [("Hopper", "holds 'Hopper'; it must hold numbers"), ("7.5", "is '7.5'; it must hold an arch")],
)
def test_find_archs_refuses_unknown_names(setup, wanted, sentence):
    module = setup(TORCH_CUDA_ARCH_LIST=wanted)
    with pytest.raises(module.Missing, match=f"TORCH_CUDA_ARCH_LIST {sentence}"):
        module.choose_archs("nvcc", {90})


def test_gencode_of_machine_code_and_ptx(setup):
    module = setup()
    assert module.gencode("9.0a") == "-gencode=arch=compute_90a,code=sm_90a"
    assert module.gencode("12.0+PTX") == (
        "-gencode=arch=compute_120,code=sm_120 -gencode=arch=compute_120,code=compute_120"
    )
    assert (module.host_compiler("/usr/bin/g++"), module.host_compiler("ccache g++")) == ("-ccbin /usr/bin/g++", "")


def test_build_refuses_a_wrong_switch(sources):
    result, tag, _, _ = build(sources, SER_FAST_BUILD="yes")
    assert result.returncode != 0 and tag is None
    assert (
        "SER_FAST_BUILD is 'yes'; it must be unset (default), 1 (build or fail) or 0 (no)"
        in result.stdout + result.stderr
    )
