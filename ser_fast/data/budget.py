"""The memory and the disk that are available, and sizes in words."""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def size(count: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> size(169_400_000), size(5.84e9)
        ('170 MB', '5.8 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


def hours(seconds: float) -> str:
    """Return a duration in hours, or in minutes below 0.1 hours.

    Example:
        >>> hours(5400), hours(90)
        ('1.5 h', '1.5 min')
    """
    return f"{seconds / 3600:.1f} h" if seconds >= 360 else f"{seconds / 60:.1f} min"


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not exist; 0 if it cannot be written."""
    folder = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(folder).free if folder.is_dir() and os.access(folder, os.W_OK) else 0


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes of memory that this process can take: the machine's and those within the limits of its groups.

    Args:
        proc, cgroups: where the system's files are.
    """
    return min([_machine(proc), *_groups(proc, cgroups)])


def _machine(proc: Path) -> float:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", ())  # macOS has no number of available pages; Windows has no sysconf
        known = "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2 if known else math.inf


def _groups(proc: Path, cgroups: Path) -> Iterator[float]:
    """Yield what is left of each limit on this process' control groups, of version 2 and 1."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for number, kinds, path in (line.split(":", 2) for line in lines):
        if number == "0":
            root, limit, used, cached = cgroups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            root, limit, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            left = _left(folder, limit, used, cached)
            if left is not None:
                yield left
            if folder == root:
                break


def _left(folder: Path, limit: str, used: str, cached: str) -> float | None:
    """Return what a group's limit leaves it, None without a limit; the system gives up pages of files when needed."""
    try:
        allowed = (folder / limit).read_text().strip()
        if allowed == "max":
            return None
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(allowed) - int((folder / used).read_text()) + int(rows.get(cached, 0)))
    except (OSError, ValueError):
        return None
