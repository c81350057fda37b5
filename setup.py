"""Build the compiled kernels, ser_fast/_C.abi3.so, against the torch that is already installed.

The object uses only the stable ABIs of torch (2.11 and later) and Python (3.10 and later), so one build works with
all newer versions, and with torch for CPU and for CUDA. A missing tool does not stop the install: the kernels that
need it are left out, and build_info.json, which `ser-fast info` prints, says why and what to type.

The installed torch decides about the CUDA kernels. Torch without CUDA: none. Torch with CUDA: the architectures of
the visible GPUs, or all in ARCHS if no GPU is visible, as on a login node.

Environment variables:
    SER_FAST_BUILD: compile kernels; unset = if possible, 1 = fail if not possible, 0 = no.
    SER_FAST_CUDA: compile CUDA kernels; unset = as above, 1 = all in ARCHS, fail if not possible, 0 = no.
    TORCH_CUDA_ARCH_LIST: the architectures, instead of the visible GPUs' or ARCHS.
    CXX, CXXFLAGS, NVCCFLAGS, CUDA_HOME, MAX_JOBS: as usual.
"""

import ctypes
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


def files(pattern: str) -> list[str]:
    """Return the files of csrc/ and kernels/, largest first so that the longest compilation starts first."""
    found = [path for folder in ("csrc", "kernels") for path in (ROOT / folder).glob(pattern)]
    found.sort(key=lambda path: (-path.stat().st_size, path))
    return [path.relative_to(ROOT).as_posix() for path in found]


SOURCES, CUDA_SOURCES, HEADERS = files("*.cpp"), files("*.cu"), files("*.h")
OLDEST_TORCH = (2, 11)
REINSTALL = "pip install --force-reinstall --no-deps ."
CXXFLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi "
    "-DTORCH_TARGET_VERSION=0x020b000000000000 -DPy_LIMITED_API=0x030a0000"
)
NVCCFLAGS = "-std=c++20 -O3 -Xcompiler -fPIC,-fvisibility=hidden"
INSTALL_CUDA = "install the CUDA toolkit (13.0 is known to work)"
BUILD_ANYWAY = "to build them anyway, type `export SER_FAST_CUDA=1`"
FAILED = (
    "{tool} failed (`pip install -v .` shows the output); {known} known to work (set CXX to choose g++), then "
    f"`{REINSTALL}`."
)
ARCHS = ("8.0", "8.6", "8.9", "9.0a", "10.0", "12.0")
OLDEST_ARCH = 80


class Missing(Exception):
    """A tool is missing or not wanted; the message says which one and what to type."""

    def __init__(self, cause: str, fix: str | None = None):
        super().__init__(f"{cause}; {fix}, then `{REINSTALL}`." if fix else f"{cause}.")


class Torch(NamedTuple):
    folder: Path
    version: str
    cuda: str | None  # version of the CUDA that this torch was built with


def find_torch() -> Torch:
    """Return the installed torch, found without importing it.

    pip's isolated build hides the installed packages from imports, but the interpreter still knows their folder.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    folder = next((folder for folder in folders if (folder / "version.py").is_file()), None)
    if folder is None:
        raise Missing("torch was not found", "type `pip install torch`")
    text = (folder / "version.py").read_text()
    version = re.search(r"__version__ = '([^']+)'", text)[1]
    cuda = re.search(r"^cuda\b.*= '([^']+)'", text, re.M)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise Missing(f"torch {version} is older than 2.11", "type `pip install --upgrade torch`")
    if not (folder / "include/torch/csrc/stable/library.h").is_file():
        raise Missing(f"torch {version} came without its C++ headers", "type `pip install --force-reinstall torch`")
    return Torch(folder, version, cuda and cuda[1])


def find_compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler or not shutil.which(shlex.split(compiler)[0]):
        cause = f"no C++ compiler was found{f' at CXX={compiler}' if compiler else ''}"
        raise Missing(cause, "install g++ 11 or later (Debian: `apt-get install g++`)")
    return compiler


def find_ninja() -> str:
    try:
        import ninja
    except ImportError:
        found = shutil.which("ninja")
    else:
        found = shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja")
    if not found:
        raise Missing("ninja was not found", "type `pip install ninja`")
    return found


class Cuda(NamedTuple):
    nvcc: str
    version: str
    includes: str  # nvcc's own options for the compiler
    libraries: str  # and for the linker
    archs: list[str]
    why: str  # these architectures


def find_cuda(torch: Torch) -> Cuda:
    """Return nvcc and the architectures to build for; raise Missing if no CUDA kernels can or shall be built."""
    if WANTS_CUDA == "0":
        raise Missing("SER_FAST_CUDA=0 leaves them out", "type `unset SER_FAST_CUDA`")
    if WANTS_CUDA != "1" and not torch.cuda:
        raise Missing(f"torch {torch.version} is built without CUDA", BUILD_ANYWAY)
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not nvcc:
        raise Missing("nvcc was not found on the PATH or under CUDA_HOME", INSTALL_CUDA)
    try:
        # nvcc may be a wrapper and toolkits differ in their folders, so nvcc itself lists the folders that it uses.
        dry = run(nvcc, "--dryrun", "-x", "cu", "-E", os.devnull)
        includes, libraries = (re.search(rf"^#\$ {name}=\s*(.*)", dry, re.M)[1] for name in ("INCLUDES", "LIBRARIES"))
        version = re.search(r"release .*V([\d.]+)", run(nvcc, "--version"))[1]
        known = set(map(int, re.findall(r"sm_(\d+)", run(nvcc, "--list-gpu-code"))))
    except (OSError, subprocess.CalledProcessError, TypeError) as error:
        cause = f"{nvcc} did not print its folders, version and architectures ({error})"
        raise Missing(cause, INSTALL_CUDA) from error
    return Cuda(nvcc, version, includes.strip(), libraries.strip(), *choose_archs(nvcc, known))


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return result.stdout + result.stderr


def choose_archs(nvcc: str, known: set[int]) -> tuple[list[str], str]:
    """Return the architectures to build for, and why these; ``known`` are those that nvcc supports."""
    if given := os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split():
        return check_archs(given), "the architectures of TORCH_CUDA_ARCH_LIST"
    everything = [arch for arch in ARCHS if number(arch) in known]
    if not everything:
        raise Missing(f"{nvcc} supports none of the architectures {', '.join(ARCHS)}", INSTALL_CUDA)
    everything[-1] += "+PTX"  # for GPUs newer than nvcc
    if WANTS_CUDA == "1":
        return everything, "all architectures, because of SER_FAST_CUDA=1"
    found = visible_gpus()
    if not found:
        return everything, "all architectures, because no GPU is visible"
    usable = [gpu for gpu in found if number(gpu) >= OLDEST_ARCH]
    if not usable:
        cause = f"the visible GPU has compute capability {found[-1]}, and the kernels need 8.0 or later"
        raise Missing(cause, BUILD_ANYWAY)
    if unknown := [gpu for gpu in usable if number(gpu) not in known]:
        return everything, f"all architectures, because nvcc does not support the visible GPU's, {unknown[0]}"
    return ["9.0a" if gpu == "9.0" else gpu for gpu in usable], "the architectures of the visible GPUs"


def check_archs(given: list[str]) -> list[str]:
    """Return the architectures from 8.0 on; raise Missing if there are none or one is not an architecture."""
    for arch in given:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
            cause = f"TORCH_CUDA_ARCH_LIST holds '{arch}'; it must hold numbers such as 8.0, 9.0a or 12.0+PTX"
            raise Missing(cause, "change it")
    archs = [arch for arch in given if number(arch) >= OLDEST_ARCH]
    if not archs:
        cause = f"TORCH_CUDA_ARCH_LIST is '{' '.join(given)}'; it must hold an architecture from 8.0 on"
        raise Missing(cause, "change it")
    return archs


def visible_gpus() -> list[str]:
    """Return the compute capabilities of the GPUs that the CUDA driver shows, such as ["8.6", "9.0"]."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, found = ctypes.c_int(), set()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    for gpu in range(count.value):
        version = ctypes.c_int(), ctypes.c_int()
        for value, attribute in zip(version, (75, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, gpu)
        found.add(tuple(value.value for value in version))
    return [f"{major}.{minor}" for major, minor in sorted(found)]


def number(arch: str) -> int:
    """Return 80 for 8.0, 90 for 9.0a, 120 for 12.0+PTX."""
    return int("".join(re.match(r"(\d+)\.(\d)", arch).groups()))


def gencode(arch: str) -> str:
    """Return nvcc's options for an architecture as TORCH_CUDA_ARCH_LIST writes it."""
    name = arch.removesuffix("+PTX").replace(".", "")
    codes = [f"sm_{name}", *([f"compute_{name}"] if arch.endswith("+PTX") else [])]
    return " ".join(f"-gencode=arch=compute_{name},code={code}" for code in codes)


def jobs() -> int:
    """Return the number of parallel compilations: MAX_JOBS, or one for each core and 2 GB of available memory."""
    if os.environ.get("MAX_JOBS"):
        return int(os.environ["MAX_JOBS"])
    available = int(re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())[1]) * 1024
    return max(1, min(len(os.sched_getaffinity(0)), available // 2_000_000_000))


def switch(name: str) -> str:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"ser_fast: {name} is '{value}'; it must be unset (default), 1 (build or fail) or 0 (no)")
    return value


def tools() -> tuple[Torch, str, str]:
    if switch("SER_FAST_BUILD") == "0":
        raise Missing("SER_FAST_BUILD=0 leaves the kernels out", "type `unset SER_FAST_BUILD`")
    if not sys.platform.startswith("linux"):
        raise Missing(f"the kernels are compiled on Linux only, not on {sys.platform}")
    return find_torch(), find_compiler(), find_ninja()


def ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(torch: Path, compiler: str, cuda: Cuda | None, objects: Path, target: Path) -> str:
    includes = f"-isystem {shlex.quote(str(torch / 'include'))} -isystem {shlex.quote(sysconfig.get_path('include'))}"
    # Without libtorch.so itself, libtorch_cuda would be out of scope for this object, and CUDA symbols unresolved.
    libraries = f"-L{shlex.quote(str(torch / 'lib'))} -Wl,--no-as-needed -ltorch -ltorch_cpu"
    rules = {source: "compile" for source in SOURCES}
    lines = []
    if cuda:
        includes += f" -DSER_FAST_WITH_CUDA {cuda.includes}"
        # The static CUDA runtime is hidden because torch brings its own.
        libraries += f" {cuda.libraries} -Wl,--exclude-libs,libcudart_static.a -lcudart_static -ldl -lrt -lpthread"
        rules |= {source: "cuda" for source in CUDA_SOURCES}
        flags = [NVCCFLAGS, *map(gencode, cuda.archs), f"--threads={jobs()}", host_compiler(compiler)]
        command = " ".join([shlex.quote(cuda.nvcc), *flags, os.environ.get("NVCCFLAGS", "")]).replace("$", "$$")
        lines += [
            # One file at a time: nvcc compiles its architectures in parallel.
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
    """Return nvcc's option for the compiler; it takes one word, so none if CXX is more, such as `ccache g++`."""
    words = shlex.split(compiler)
    return f"-ccbin {shlex.quote(words[0])}" if len(words) == 1 else ""


def say(text: str) -> None:
    """Print a line that pip shows with -v or if the build fails."""
    print(f"ser_fast: {text}", file=sys.stderr, flush=True)


def commit() -> str | None:
    """Return the commit of this checkout, or None; sources without .git may lie in another repository."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def record(command, info: dict) -> None:
    """Write build_info.json into the package being built, which is the source tree in an editable install."""
    package = ROOT / "ser_fast" if command.editable_mode else Path(command.build_lib) / "ser_fast"
    package.mkdir(parents=True, exist_ok=True)
    if info["reason"]:
        say(f"no kernels were compiled, so torch's own operators run: {info['reason']}")
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
            say(f"CUDA kernels {info['cuda']}")
        record(self, info)

    def with_cuda(self, target: Path) -> dict | None:
        """Return what was built, or None if CUDA is missing or its compiler failed; ``why_not`` then says why."""
        try:
            cuda = find_cuda(TOOLS[0])
            archs = ", ".join(cuda.archs)
            say(
                f"building the CUDA kernels for {archs} ({cuda.why}); each takes about a minute and a half of one "
                "core. To choose, set TORCH_CUDA_ARCH_LIST, for example to 9.0a; SER_FAST_CUDA=0 builds none."
            )
            info = self.compile(*TOOLS, cuda, target)
            built = f"built for {archs} by nvcc {cuda.version} ({cuda.why})"
            return info | {"cuda": built, "cuda_archs": cuda.archs, "nvcc": cuda.version}
        except Missing as missing:
            self.why_not = str(missing)
        except subprocess.CalledProcessError:
            self.why_not = FAILED.format(tool="nvcc or its host compiler", known="nvcc 13.0 with g++ 12 is")
        if WANTS_CUDA == "1":
            raise SystemExit(f"ser_fast: SER_FAST_CUDA=1 requires the CUDA kernels, but {self.why_not}")
        return None

    def without_cuda(self, target: Path) -> dict:
        info = {"cuda": f"not built: {self.why_not}", "cuda_archs": []}
        try:
            return info | self.compile(*TOOLS, None, target)
        except subprocess.CalledProcessError:
            reason = FAILED.format(tool="the compiler", known="g++ 11 or later is")
            if switch("SER_FAST_BUILD") == "1":
                raise SystemExit(f"ser_fast: {reason}") from None
            return info | {"compiled": False, "reason": reason}

    def compile(self, torch: Torch, compiler: str, ninja: str, cuda: Cuda | None, target: Path) -> dict:
        objects = Path(self.build_temp).resolve()
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (objects / "build.ninja").write_text(ninja_file(torch.folder, compiler, cuda, objects, target))
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
    # Optional, so that an editable install succeeds even if the compiler failed.
    ext_modules=[
        Extension("ser_fast._C", SOURCES, depends=[*HEADERS, *CUDA_SOURCES], py_limited_api=True, optional=True)
    ]
    if TOOLS
    else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if TOOLS else {},
)
