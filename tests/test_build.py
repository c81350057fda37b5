"""What `pip install` makes of an environment, complete or not. Each case builds a copy of the sources."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
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
    return subprocess.run([python, "-m", "pip", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | environment)  # fmt: skip


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
    result, tag, names, info = build(sources)
    assert result.returncode == 0, result.stdout + result.stderr
    assert tag.startswith("cp310-abi3-linux"), tag
    assert {"ser_fast/_C.abi3.so", "ser_fast/kernels/__init__.py", "ser_fast/models/cgru.py"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "kernels/"))]
    assert info["compiled"] and info["reason"] is None


def test_the_object_asks_for_the_stable_abi_only():
    """Of torch's symbols, nothing but the C shims; of Python's, only the limited API's."""
    listing = subprocess.run(["nm", "-D", "--undefined-only", ROOT / "ser_fast" / "_C.abi3.so"], capture_output=True,
                             text=True, check=True).stdout.splitlines()  # fmt: skip
    symbols = [line.split()[-1] for line in listing]
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


def test_cuda_asked_for_without_sources_or_nvcc_fails_with_a_sentence(sources):
    result, tag, _, _ = build(sources, SER_FAST_CUDA="1")
    assert result.returncode != 0 and tag is None
    assert "SER_FAST_CUDA=1 asks for CUDA kernels, but" in result.stdout + result.stderr


def test_without_nvcc_says_so_and_goes_on(sources):
    tools = sources.parent / "tools"
    tools.mkdir()
    for name in ("g++", "as", "ld", "git", "sh"):
        (tools / name).symlink_to(shutil.which(name))
    result, _, _, info = build(sources, PATH=str(tools))
    assert result.returncode == 0 and info["compiled"], result.stdout + result.stderr
    assert "nvcc was not found" in info["cuda"]


def test_a_wrong_switch_is_refused(sources):
    result, tag, _, _ = build(sources, SER_FAST_BUILD="yes")
    assert result.returncode != 0 and tag is None
    assert (
        "SER_FAST_BUILD is 'yes'; it must be unset (if possible), 1 (or fail) or 0 (never)"
        in result.stdout + result.stderr
    )
