"""Check which GPUs can run the kernels: arithmetic on version numbers, so that it is tested without a GPU."""

import re
from collections.abc import Sequence

OLDEST = (8, 0)  # the first with bfloat16 and tf32 on tensor cores and with asynchronous copies


def refusal(
    backend: str,
    capability: tuple[int, int],
    driver: int = 0,
    archs: Sequence[str] = (),
    nvcc: str = "0.0",
) -> str | None:
    """Return why a GPU cannot run the kernels of "cuda" or "triton"; None if it can.

    Machine code runs on its own compute capability and later ones of the same major version, PTX on all later ones.
    Code for "9.0a" runs on 9.0 alone, code for "10.0f" on 10.x.

    Args:
        backend: "cuda" or "triton"; Triton compiles for the GPU at hand.
        capability: the GPU's compute capability, major and minor.
        driver: the latest CUDA version that the driver supports, in the form of ``cuDriverGetVersion``: 13010 is
            13.1.
        archs: what the CUDA kernels were built for, in the form of ``TORCH_CUDA_ARCH_LIST``: "8.0", "9.0a",
            "12.0+PTX".
        nvcc: version of the compiler that built them, such as "13.0.88". A driver supports its own major version and
            earlier ones, and compiles the PTX of its own version and earlier ones.
    """
    if capability < OLDEST:
        return f"its compute capability is {_dotted(capability)}; it must be at least {_dotted(OLDEST)}"
    if backend == "triton":
        return None
    latest, toolkit = (driver // 1000, driver % 1000 // 10), tuple(int(part) for part in nvcc.split(".")[:2])
    if latest[0] < toolkit[0]:
        return (
            f"its driver supports CUDA {_dotted(latest)}; it must support CUDA {toolkit[0]}, which built the kernels"
        )
    if not any(_runs(arch, capability, compiles=latest >= toolkit) for arch in archs):
        built = f"{', '.join(archs)} by CUDA {_dotted(toolkit)}"
        return f"its compute capability is {_dotted(capability)}; it must be one that runs what was built: {built}"
    return None


def _runs(arch: str, capability: tuple[int, int], compiles: bool) -> bool:
    major, minor, kind, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch).groups()
    built = int(major), int(minor)
    if kind == "a":
        return capability == built
    if capability[0] == built[0] and capability >= built:
        return True
    return bool(ptx) and not kind and compiles and capability >= built


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
