"""Builds the compiled kernels, ser_fast/_C.abi3.so, against the torch that is already installed.

The object uses only torch's stable ABI (2.11 and later) and Python's (3.10 and later), so one build serves
every newer pair, with CUDA and without. The CUDA kernels are built where nvcc is found, GPU or not. Where something
is missing the install goes on without it, and build_info.json, which `ser-fast info` prints, says what happened and
what to type.

Environment: SER_FAST_BUILD and SER_FAST_CUDA (unset = if possible, 1 = or fail, 0 = never), CXX, CXXFLAGS, NVCCFLAGS,
CUDA_HOME, TORCH_CUDA_ARCH_LIST, MAX_JOBS.
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
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


def files(ending: str) -> list[str]:
    """Paths of csrc/ and kernels/ from the root, as setuptools wants them."""
    found = (path for folder in ("csrc", "kernels") for path in (ROOT / folder).glob(ending))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


SOURCES, CUDA_SOURCES, HEADERS = files("*.cpp"), files("*.cu"), files("*.h")
OLDEST_TORCH = (2, 11)
REINSTALL = "pip install --force-reinstall --no-deps ."
CXXFLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi "
    "-DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000"
)
NVCCFLAGS = "-std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden"
ARCHS = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
OLDEST_ARCH = 80


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


class Cuda(NamedTuple):
    nvcc: str
    version: str
    includes: str  # as nvcc itself gives them to the compiler,
    libraries: str  # and to the linker
    archs: list[str]


def find_cuda() -> Cuda:
    if WANTS_CUDA == "0":
        raise Missing(f"SER_FAST_CUDA=0 left the CUDA kernels out; unset it, then `{REINSTALL}`.")
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not nvcc:
        raise Missing(
            "nvcc was not found on the PATH or under CUDA_HOME, so CUDA tensors run on torch's own operators; "
            f"install the CUDA toolkit (13.0 is known to work), then `{REINSTALL}`."
        )
    try:
        # nvcc may be a wrapper, and toolkits differ in their folders: nvcc itself tells which it would use.
        dry = asked(nvcc, "--dryrun", "-x", "cu", "-E", os.devnull)
        includes, libraries = (re.search(rf"^#\$ {name}=\s*(.*)", dry, re.M)[1] for name in ("INCLUDES", "LIBRARIES"))
        version = re.search(r"release .*V([\d.]+)", asked(nvcc, "--version"))[1]
        known = set(map(int, re.findall(r"sm_(\d+)", asked(nvcc, "--list-gpu-code"))))
    except (OSError, subprocess.CalledProcessError, TypeError) as error:
        raise Missing(
            f"{nvcc} did not tell its folders, version and architectures ({error}), so CUDA tensors run on torch's "
            f"own operators; install the CUDA toolkit (13.0 is known to work), then `{REINSTALL}`."
        ) from error
    return Cuda(nvcc, version, includes.strip(), libraries.strip(), find_archs(nvcc, known))


def asked(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def find_archs(nvcc: str, known: set[int]) -> list[str]:
    """TORCH_CUDA_ARCH_LIST from 8.0 on, or those of ours that nvcc knows, the last as PTX too for what is to come."""
    given = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    for arch in given:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            raise Missing(
                f"TORCH_CUDA_ARCH_LIST holds '{arch}' where it must hold numbers such as 8.0, 9.0a or 12.0+PTX, so "
                f"CUDA tensors run on torch's own operators; change it, then `{REINSTALL}`."
            )
    if not given:
        given = [arch for arch in ARCHS if number(arch) in known]
        given[-1:] = [f"{arch}+PTX" for arch in given[-1:]]
    archs = [arch for arch in given if number(arch) >= OLDEST_ARCH]
    if not archs:
        raise Missing(
            f"no architecture from 8.0 on is in TORCH_CUDA_ARCH_LIST ('{' '.join(given)}') or known to {nvcc}, so "
            f"CUDA tensors run on torch's own operators; choose a newer one, then `{REINSTALL}`."
        )
    return archs


def number(arch: str) -> int:
    """80 for 8.0, 90 for 9.0a, 120 for 12.0+PTX."""
    return int("".join(re.match(r"(\d+)\.(\d)", arch).groups()))


def gencode(arch: str) -> str:
    """nvcc's options for an architecture in torch's notation."""
    name = arch.removesuffix("+PTX").replace(".", "")
    codes = [f"sm_{name}", *([f"compute_{name}"] if arch.endswith("+PTX") else [])]
    return " ".join(f"-gencode=arch=compute_{name},code={code}" for code in codes)


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


def ninja_file(torch: Path, compiler: str, cuda: Cuda | None, objects: Path, target: Path) -> str:
    includes = f"-isystem {shlex.quote(str(torch / 'include'))} -isystem {shlex.quote(sysconfig.get_path('include'))}"
    # libtorch.so itself is linked: on a GPU machine it is what brings libtorch_cuda into this object's scope.
    libraries = f"-L{shlex.quote(str(torch / 'lib'))} -Wl,--no-as-needed -ltorch -ltorch_cpu"
    rules = {source: "compile" for source in SOURCES}
    lines = []
    if cuda:
        includes += f" -DSER_FAST_WITH_CUDA {cuda.includes}"
        # Hidden, because torch has a CUDA runtime of its own.
        libraries += f" {cuda.libraries} -Wl,--exclude-libs,libcudart_static.a -lcudart_static -ldl -lrt -lpthread"
        rules |= {source: "cuda" for source in CUDA_SOURCES}
        flags = [NVCCFLAGS, *map(gencode, cuda.archs), f"--threads={jobs()}", host_compiler(compiler)]
        command = " ".join([shlex.quote(cuda.nvcc), *flags, os.environ.get("NVCCFLAGS", "")]).replace("$", "$$")
        lines += [
            # One file at a time, its architectures side by side.
            "pool cuda",
            "  depth = 1",
            "rule cuda",
            f"  command = {command} -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  pool = cuda",
        ]
    flags = f"{CXXFLAGS} {includes} {os.environ.get('CXXFLAGS', '')}".replace("$", "$$")
    lines += [
        "rule compile",
        f"  command = {compiler} {flags} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} -shared $in -o $out {libraries.replace('$', '$$')}",
    ]
    outputs = []
    for source, rule in rules.items():
        outputs.append(ninja_path(objects / f"{source}.o"))
        lines.append(f"build {outputs[-1]}: {rule} {ninja_path(ROOT / source)}")
    lines += [f"build {ninja_path(target)}: link {' '.join(outputs)}", ""]
    return "\n".join(lines)


def host_compiler(compiler: str) -> str:
    """nvcc takes one word; where CXX is more, such as a cache before the compiler, it takes its own choice."""
    words = shlex.split(compiler)
    return f"-ccbin {shlex.quote(words[0])}" if len(words) == 1 else ""


def commit() -> str | None:
    """Of the checkout that this is, or None: sources may lie in somebody else's repository."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record(command, info: dict) -> None:
    """Writes build_info.json into the package being built; an editable install has it in the source tree."""
    package = ROOT / "ser_fast" if command.editable_mode else Path(command.build_lib) / "ser_fast"
    package.mkdir(parents=True, exist_ok=True)
    if info["reason"]:
        print(f"ser_fast: {info['reason']}", file=sys.stderr)
        for stale in package.glob("_C.*so"):
            stale.unlink()
    (package / "build_info.json").write_text(json.dumps(info | {"commit": commit()}, indent=1) + "\n")


class BuildPython(build_py):
    def run(self):
        super().run()
        if MISSING:
            record(self, {"compiled": False, "reason": MISSING, "cuda": f"not built: {MISSING}", "cuda_archs": []})


class BuildKernels(build_ext):
    def build_extension(self, extension):
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        info = self.with_cuda(target) or self.without_cuda(target)
        if not info["cuda_archs"]:
            print(f"ser_fast: CUDA kernels {info['cuda']}", file=sys.stderr)
        record(self, info)

    def with_cuda(self, target: Path) -> dict | None:
        """Nothing where CUDA is missing or its compiler fails; why is then in ``why_not``."""
        try:
            cuda = find_cuda()
            info = self.compile(*TOOLS, cuda, target)
            built = f"built for {', '.join(cuda.archs)} by nvcc {cuda.version}"
            return info | {"cuda": built, "cuda_archs": cuda.archs, "nvcc": cuda.version}
        except Missing as missing:
            self.why_not = str(missing)
        except subprocess.CalledProcessError:
            self.why_not = (
                "nvcc or the compiler behind it failed (`pip install -v .` shows its output), so CUDA tensors run on "
                "torch's own operators; nvcc 13.0 with g++ 12 is known to work (CXX=... chooses g++), then "
                f"`{REINSTALL}`."
            )
        if WANTS_CUDA == "1":
            raise SystemExit(f"ser_fast: SER_FAST_CUDA=1 asks for CUDA kernels, but {self.why_not}")
        return None

    def without_cuda(self, target: Path) -> dict:
        info = {"cuda": f"not built: {self.why_not}", "cuda_archs": []}
        try:
            return info | self.compile(*TOOLS, None, target)
        except subprocess.CalledProcessError:
            reason = (
                "the compiler failed (`pip install -v .` shows its output), so torch's own operators run; "
                f"g++ 11 or later is known to work (CXX=... chooses it), then `{REINSTALL}`."
            )
            if switch("SER_FAST_BUILD") == "1":
                raise SystemExit(f"ser_fast: {reason}") from None
            return info | {"compiled": False, "reason": reason}

    def compile(self, torch: Path, compiler: str, ninja: str, cuda: Cuda | None, target: Path) -> dict:
        objects = Path(self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(torch, compiler, cuda, objects, target))
        subprocess.run([ninja, "-C", str(objects), f"-j{jobs()}"], check=True)
        version = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True)
        return {"compiled": True, "reason": None, "compiler": (version.stdout.splitlines() or [compiler])[0]}


TOOLS, MISSING, WANTS_CUDA = None, None, switch("SER_FAST_CUDA")
try:
    TOOLS = tools()
except Missing as missing:
    MISSING = str(missing)
    if "1" in (switch("SER_FAST_BUILD"), WANTS_CUDA):
        raise SystemExit(f"ser_fast: {MISSING}") from None

setup(
    # optional: an editable install must not fail where the compiler did.
    ext_modules=[
        Extension("ser_fast._C", SOURCES, depends=[*HEADERS, *CUDA_SOURCES], py_limited_api=True, optional=True)
    ]
    if TOOLS
    else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if TOOLS else {},
)
