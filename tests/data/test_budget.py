"""Available memory and disk."""

import math
from pathlib import Path

from ser_fast.data import budget
from ser_fast.data.budget import available_memory, free_disk, size

MB = 1 << 20


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def machine(tmp_path: Path, groups: str) -> tuple[Path, Path]:
    """Return the folders of a machine with 8 GiB of available memory; ``groups`` is /proc/self/cgroup."""
    write(tmp_path / "proc/meminfo", f"MemTotal: 16777216 kB\nMemAvailable: {8 << 20} kB")
    write(tmp_path / "proc/self/cgroup", groups)
    return tmp_path / "proc", tmp_path / "cgroup"


def test_available_memory_is_that_of_the_machine(tmp_path):
    proc, groups = machine(tmp_path, "0::/user")
    assert available_memory(proc, groups) == 8 << 30
    write(groups / "user/memory.max", "max")
    write(groups / "user/memory.stat", "")
    assert available_memory(proc, groups) == 8 << 30
    assert 0 < available_memory() < math.inf and available_memory(tmp_path / "none", groups) > 0


def test_available_memory_is_limited_by_groups(tmp_path):
    """The page cache of a group does not count as used; the limit of a group above holds too."""
    proc, groups = machine(tmp_path, "0::/job/step")
    for group, limit in (("job/step", "max"), ("job", 900 * MB), (".", 5000 * MB)):
        write(groups / group / "memory.max", limit)
        write(groups / group / "memory.current", 300 * MB)
        write(groups / group / "memory.stat", f"anon {200 * MB}\ninactive_file {100 * MB}")
    assert available_memory(proc, groups) == 700 * MB
    write(groups / "job/memory.max", 50 * MB)
    assert available_memory(proc, groups) == 0


def test_available_memory_is_limited_by_groups_of_version_1(tmp_path):
    proc, groups = machine(tmp_path, "5:cpu,cpuacct:/a\n4:memory:/docker/1")
    write(groups / "memory/memory.limit_in_bytes", 600 * MB)  # a container sees its own group as the root
    write(groups / "memory/memory.usage_in_bytes", 200 * MB)
    write(groups / "memory/memory.stat", f"total_inactive_file {50 * MB}")
    assert available_memory(proc, groups) == 450 * MB


def test_free_disk_of_a_folder_to_be_made(tmp_path, monkeypatch):
    assert free_disk(tmp_path / "not" / "yet") > 0 and free_disk(Path("not/yet")) > 0
    monkeypatch.setattr(budget.os, "access", lambda folder, mode: folder != tmp_path)
    assert free_disk(tmp_path / "not" / "yet") == 0


def test_free_disk_of_a_folder_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    assert free_disk(tmp_path / "file") == free_disk(tmp_path / "file" / "below") == 0


def test_size_in_words():
    assert [size(n) for n in (0, 1, 1e6, 999e6, 1e9, 23.04e9)] == [
        "0 MB",
        "1 MB",
        "1 MB",
        "999 MB",
        "1.0 GB",
        "23.0 GB",
    ]
