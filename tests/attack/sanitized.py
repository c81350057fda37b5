"""The compiled kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for the attack ``sanitized``."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build/sanitized"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1"


def build() -> None:
    """Build the package into FOLDER, some two minutes on one core; unchanged sources are not built again."""
    compiler = f"{os.environ.get('CXX', 'g++')} {FLAGS}"
    environment = {"CXX": compiler, "CXXFLAGS": "-O1", "SER_FAST_BUILD": "1", "SER_FAST_CUDA": "0"}
    command = [sys.executable, "setup.py", "-q", "build", f"--build-lib={FOLDER}", f"--build-temp={FOLDER}.objects"]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)


def environment() -> dict[str, str]:
    """Return the variables of a process whose tensors lie in memory that the sanitizers watch."""
    names = (f"-print-file-name=lib{name}.so" for name in ("asan", "ubsan"))
    libraries = [
        subprocess.run(["g++", name], capture_output=True, text=True, check=True).stdout.strip() for name in names
    ]
    return {
        "PYTHONPATH": str(FOLDER),
        "LD_PRELOAD": " ".join(libraries),
        # Python leaks; allocators return null for absurd sizes, as without sanitizers.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
