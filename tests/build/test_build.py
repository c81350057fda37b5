"""What `pip install` makes of an environment, complete or not. Each case builds a copy of the sources."""

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

ROOT = Path(__file__).parents[2]
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
    """Without the CUDA kernels, which take their time, unless they are asked for."""
    return subprocess.run([python, "-m", "pip", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {"SER_FAST_CUDA": "0"} | environment)  # fmt: skip


@pytest.fixture
def setup(monkeypatch):
    """setup.py's functions, in a given environment; nothing is built."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)

    def load(**environment):
        for name in ("SER_FAST_BUILD", "SER_FAST_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CXX"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        spec = importlib.util.spec_from_file_location("ser_fast_setup", ROOT / "setup.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def build(sources: Path, python=sys.executable, options=("--no-build-isolation",), **environment):
    """Builds a wheel and returns the process, the wheel's tag, its file names and its build_info.json."""
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
    # One sentence says what happened and what to type.
    assert f"ser_fast: {info['reason']}" in result.stdout + result.stderr and "`" in info["reason"]


def test_with_isolation_builds_against_the_environments_own_torch(sources, environment):
    """pip hides the environment's packages from the build, which finds torch all the same and loads elsewhere."""
    site = next(environment.parents[1].glob("lib/python*/site-packages"))
    packages = Path(torch.__file__).parents[1]
    (site / "torch").symlink_to(packages / "torch")
    (site / "rest.pth").write_text(f"{packages}\n")
    try:
        result = pip(environment, "install", "--no-deps", ".", cwd=sources)
        assert result.returncode == 0, result.stdout + result.stderr
        run = subprocess.run([environment, "-c", RUNS], cwd=sources.parent, capture_output=True, text=True)
        assert run.stdout.strip() == "torch.Size([2, 1, 4])", run.stderr
        where = subprocess.run([environment, "-c", "import ser_fast; print(ser_fast.__file__)"], cwd=sources.parent,
                               capture_output=True, text=True)  # fmt: skip
        assert where.stdout.startswith(str(site))
    finally:
        (site / "torch").unlink()
        (site / "rest.pth").unlink()


def test_a_wheel_is_abi3_and_holds_the_kernels_and_their_sources_package(sources):
    """The CUDA kernels too, wherever nvcc is, GPU or not; 7.5 is older than they support."""
    result, tag, names, info = build(sources, SER_FAST_CUDA="", TORCH_CUDA_ARCH_LIST="7.5 9.0a")
    assert result.returncode == 0, result.stdout + result.stderr
    assert tag.startswith("cp310-abi3-linux"), tag
    assert {"ser_fast/_C.abi3.so", "ser_fast/kernels/__init__.py", "ser_fast/models/cgru.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/"))]
    assert info["compiled"] and info["reason"] is None
    if shutil.which("nvcc"):
        assert info["cuda_archs"] == ["9.0a"] and info["cuda"] == f"built for 9.0a by nvcc {info['nvcc']}", info
    else:
        assert info["cuda_archs"] == [] and "nvcc was not found" in info["cuda"], info


def test_an_sdist_holds_what_was_written_and_nothing_that_was_made(sources, tmp_path):
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


def test_the_object_asks_for_the_stable_abi_only():
    """Of torch's symbols, nothing but the C shims, CUDA's weakly; of Python's, only the limited API's; no CUDA runtime."""
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
    assert {name for name in symbols if name.startswith(("_Py", "Py"))} <= allowed


def test_without_torch(sources, environment):
    assert_left_out(build(sources, environment, options=()), "torch was not found")


def test_without_a_compiler(sources):
    assert_left_out(build(sources, CXX="no-such-compiler"), "no C++ compiler was found at CXX=no-such-compiler")


def test_with_a_compiler_that_fails(sources):
    result, _, names, info = build(sources, CXX="false")
    assert result.returncode == 0 and "the compiler failed" in info["reason"]
    assert not [name for name in names if name.endswith(".so")]


def test_when_asked_not_to_build(sources):
    assert_left_out(build(sources, SER_FAST_BUILD="0"), "SER_FAST_BUILD=0 left the compiled kernels out")


def test_when_asked_to_build_or_fail(sources):
    result, tag, _, _ = build(sources, SER_FAST_BUILD="1", CXX="no-such-compiler")
    assert result.returncode != 0 and tag is None
    assert "no C++ compiler was found" in result.stdout + result.stderr


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder for PATH with what a build needs, but nvcc."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("g++", "as", "ld", "git", "sh"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def test_without_nvcc_says_so_and_goes_on(sources, tools):
    result, _, _, info = build(sources, PATH=str(tools), SER_FAST_CUDA="", CUDA_HOME="", CXXFLAGS="-O0")
    assert result.returncode == 0 and info["compiled"], result.stdout + result.stderr
    assert info["cuda"].startswith("not built: nvcc was not found") and "`" in info["cuda"] and not info["cuda_archs"]
    assert f"ser_fast: CUDA kernels {info['cuda']}" in result.stdout + result.stderr


def test_cuda_asked_for_without_nvcc_fails_with_a_sentence(sources, tools):
    result, tag, _, _ = build(sources, PATH=str(tools), SER_FAST_CUDA="1", CUDA_HOME="")
    assert result.returncode != 0 and tag is None
    assert "SER_FAST_CUDA=1 asks for CUDA kernels, but nvcc was not found" in result.stdout + result.stderr


@pytest.mark.parametrize("wanted", ["", "1"])
def test_an_nvcc_that_fails_leaves_cuda_out_unless_it_was_asked_for(sources, tools, wanted):
    """nvcc answers questions and compiles nothing; it is found under CUDA_HOME."""
    nvcc = sources.parent / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        """#!/bin/sh
case "$1" in
  --dryrun) printf '#$ INCLUDES="-I/nowhere"\\n#$ LIBRARIES= "-L/nowhere"\\n' >&2 ;;
  --version) echo "release 13.0, V13.0.88" ;;
  --list-gpu-code) echo sm_90 ;;
  *) exit 1 ;;
esac
"""
    )
    nvcc.chmod(0o755)
    home = str(nvcc.parents[1])
    result, tag, _, info = build(sources, PATH=str(tools), CUDA_HOME=home, SER_FAST_CUDA=wanted, CXXFLAGS="-O0")
    if wanted:
        assert result.returncode != 0 and tag is None
        assert "SER_FAST_CUDA=1 asks for CUDA kernels, but nvcc or the" in result.stdout + result.stderr
    else:
        assert result.returncode == 0 and info["compiled"], result.stdout + result.stderr
        assert info["cuda"].startswith("not built: nvcc or the compiler behind it failed") and not info["cuda_archs"]


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_get_the_python_part_and_a_sentence(setup, monkeypatch, system):
    module = setup()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.delattr(os, "sysconf")  # Windows has none, and macOS does not tell its free memory by it
    with pytest.raises(module.Missing, match=f"are built on Linux only so far, not on {system}: torch's own"):
        module.tools()


def test_cuda_can_be_left_out(setup):
    module = setup(SER_FAST_CUDA="0")
    with pytest.raises(module.Missing, match="SER_FAST_CUDA=0 left the CUDA kernels out; unset it"):
        module.find_cuda()


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
def test_architectures_are_torchs_list_or_those_that_nvcc_knows(setup, wanted, known, archs):
    assert setup(TORCH_CUDA_ARCH_LIST=wanted).find_archs("nvcc", known) == archs


@pytest.mark.parametrize(
    ("wanted", "sentence"), [("Hopper", "holds 'Hopper' where it must"), ("7.5", r"from 8.0 on")]
)
def test_architectures_that_are_none_are_named(setup, wanted, sentence):
    module = setup(TORCH_CUDA_ARCH_LIST=wanted)
    with pytest.raises(module.Missing, match=f"TORCH_CUDA_ARCH_LIST.*{sentence}|{sentence}.*'{wanted}'"):
        module.find_archs("nvcc", {90})


def test_an_architecture_becomes_machine_code_and_ptx_where_asked(setup):
    module = setup()
    assert module.gencode("9.0a") == "-gencode=arch=compute_90a,code=sm_90a"
    assert module.gencode("12.0+PTX") == (
        "-gencode=arch=compute_120,code=sm_120 -gencode=arch=compute_120,code=compute_120"
    )
    assert (module.host_compiler("/usr/bin/g++"), module.host_compiler("ccache g++")) == ("-ccbin /usr/bin/g++", "")


def test_a_wrong_switch_is_refused(sources):
    result, tag, _, _ = build(sources, SER_FAST_BUILD="yes")
    assert result.returncode != 0 and tag is None
    assert (
        "SER_FAST_BUILD is 'yes'; it must be unset (if possible), 1 (or fail) or 0 (never)"
        in result.stdout + result.stderr
    )
