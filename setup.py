"""Builds the compiled kernels, ser_fast/_C.abi3.so, against the torch that is already installed.

The object uses only torch's stable ABI (2.11 and later) and Python's (3.10 and later), so one build serves
every newer pair. Where something is missing the install goes on without it, and build_info.json, which
`ser-fast info` prints, says what happened and what to type.

Environment: SER_FAST_BUILD and SER_FAST_CUDA (unset = if possible, 1 = or fail, 0 = never), CXX, CXXFLAGS,
MAX_JOBS.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def files(ending: str) -> list[str]:
    """Paths of csrc/ and kernels/ from the root, as setuptools wants them."""
    found = (path for folder in ("csrc", "kernels") for path in (ROOT / folder).glob(ending))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


SOURCES, HEADERS = files("*.cpp"), files("*.h")
OLDEST_TORCH = (2, 11)
REINSTALL = "pip install --force-reinstall --no-deps ."
CXXFLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi "
    "-DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000"
)


class Missing(Exception):
    """A thing the build needs is absent; the message says which, and what to type."""


def find_torch() -> Path:
    """The folder of the user's torch, found without importing it.

    pip's isolated build hides the user's packages from imports, but the interpreter still knows their folder.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for folder in folders:
        if (folder / "version.py").is_file():
            break
    else:
        raise Missing(
            f"torch was not found, so only the Python part is installed and torch's own operators run; "
            f"type `pip install torch`, then `{REINSTALL}`."
        )
    version = re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text())[1]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise Missing(
            f"torch {version} is older than 2.11, so the compiled kernels are left out; "
            f"type `pip install --upgrade torch`, then `{REINSTALL}`."
        )
    if not (folder / "include/torch/csrc/stable/library.h").is_file():
        raise Missing(
            f"torch {version} came without its C++ headers, so the compiled kernels are left out; "
            f"type `pip install --force-reinstall torch`, then `{REINSTALL}`."
        )
    return folder


def find_compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler or not shutil.which(shlex.split(compiler)[0]):
        raise Missing(
            f"no C++ compiler was found{f' at CXX={compiler}' if compiler else ''}, so torch's own operators "
            f"run; install g++ 11 or later (Debian: `apt-get install g++`), then `{REINSTALL}`."
        )
    return compiler


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")
    if not found:
        raise Missing(
            f"ninja was not found, so the compiled kernels are left out; type `pip install ninja`, "
            f"then `{REINSTALL}`."
        )
    return found


def find_cuda() -> str:
    """A sentence about CUDA. Its kernels are only tested so far, on the host; once built they are named here."""
    if not shutil.which("nvcc"):
        return (
            "nvcc was not found: CUDA tensors run on torch's own operators; nothing needs to be typed, because "
            "this version builds no CUDA kernels yet."
        )
    return "this version builds no CUDA kernels yet: CUDA tensors run on torch's own operators."


def jobs() -> int:
    """Parallel compilations: MAX_JOBS, else the cores, but no more than one for every 2 GB of free memory."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, free // 2_000_000_000))


def switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"ser_fast: {name} is '{value}'; it must be unset (if possible), 1 (or fail) or 0 (never)")
    return value


def tools() -> tuple[Path, str, str]:
    if switch("SER_FAST_BUILD") == "0":
        raise Missing(f"SER_FAST_BUILD=0 left the compiled kernels out; unset it, then `{REINSTALL}`.")
    if not sys.platform.startswith("linux"):
        raise Missing(
            f"the compiled kernels are built on Linux only so far, not on {sys.platform}: torch's own "
            "operators run, and there is nothing to type."
        )
    return find_torch(), find_compiler(), find_ninja()


def ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(torch: Path, compiler: str, objects: Path, target: Path) -> str:
    includes = f"-isystem {shlex.quote(str(torch / 'include'))} -isystem {shlex.quote(sysconfig.get_path('include'))}"
    # libtorch.so itself is linked: on a GPU machine it is what brings libtorch_cuda into this object's scope.
    libraries = f"-L{shlex.quote(str(torch / 'lib'))} -Wl,--no-as-needed -ltorch -ltorch_cpu"
    flags = f"{CXXFLAGS} {includes} {os.environ.get('CXXFLAGS', '')}".replace("$", "$$")
    lines = [
        "rule compile",
        f"  command = {compiler} {flags} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} -shared $in -o $out {libraries.replace('$', '$$')}",
    ]
    outputs = []
    for source in SOURCES:
        outputs.append(ninja_path(objects / f"{source}.o"))
        lines.append(f"build {outputs[-1]}: compile {ninja_path(ROOT / source)}")
    lines += [f"build {ninja_path(target)}: link {' '.join(outputs)}", ""]
    return "\n".join(lines)


def record(command, info: dict) -> None:
    """Writes build_info.json into the package being built; an editable install has it in the source tree."""
    package = ROOT / "ser_fast" if command.editable_mode else Path(command.build_lib) / "ser_fast"
    package.mkdir(parents=True, exist_ok=True)
    if info["reason"]:
        print(f"ser_fast: {info['reason']}", file=sys.stderr)
        for stale in package.glob("_C.*so"):
            stale.unlink()
    (package / "build_info.json").write_text(json.dumps(info, indent=1) + "\n")


class BuildPython(build_py):
    def run(self):
        super().run()
        if MISSING:
            record(self, {"compiled": False, "reason": MISSING, "cuda": find_cuda()})


class BuildKernels(build_ext):
    def build_extension(self, extension):
        info = {"compiled": True, "reason": None, "cuda": find_cuda()}
        try:
            info |= self.compile(*TOOLS, Path(self.get_ext_fullpath(extension.name)).resolve())
        except subprocess.CalledProcessError:
            reason = (
                "the compiler failed (`pip install -v .` shows its output), so torch's own operators run; "
                f"g++ 11 or later is known to work (CXX=... chooses it), then `{REINSTALL}`."
            )
            if switch("SER_FAST_BUILD") == "1":
                raise SystemExit(f"ser_fast: {reason}") from None
            info |= {"compiled": False, "reason": reason}
        record(self, info)

    def compile(self, torch: Path, compiler: str, ninja: str, target: Path) -> dict:
        objects = Path(self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(torch, compiler, objects, target))
        subprocess.run([ninja, "-C", str(objects), f"-j{jobs()}"], check=True)
        version = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True)
        return {"compiler": (version.stdout.splitlines() or [compiler])[0]}


TOOLS, MISSING = None, None
try:
    TOOLS = tools()
except Missing as missing:
    MISSING = str(missing)
    if switch("SER_FAST_BUILD") == "1":
        raise SystemExit(f"ser_fast: {MISSING}") from None
if switch("SER_FAST_CUDA") == "1":
    raise SystemExit(f"ser_fast: SER_FAST_CUDA=1 asks for CUDA kernels, but {find_cuda()}")

setup(
    # optional: an editable install must not fail where the compiler did.
    ext_modules=[Extension("ser_fast._C", SOURCES, depends=HEADERS, py_limited_api=True, optional=True)]
    if TOOLS
    else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if TOOLS else {},
)
