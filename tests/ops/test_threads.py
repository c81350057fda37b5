"""Threads that share steps of a recurrence or make parts ahead of it, under the thread sanitizer: late or stalled ones."""

import subprocess

import pytest
from host_gpu import ROOT


@pytest.mark.usefixtures("needs_compiler")
@pytest.mark.thorough
def test_threads_equal_one_thread_without_a_race(tmp_path):
    program = tmp_path / "threads"
    sources = [ROOT / name for name in ("tests/ops/threads.cpp", "kernels/gru_layer.cpp", "kernels/simd.cpp")]
    flags = "-std=c++20 -O1 -g1 -fsanitize=thread -Wall -Wextra -Werror -Wno-psabi -pthread -o"
    built = subprocess.run(["g++", *flags.split(), program, *sources], capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "equal\n", ""), ran.stdout + ran.stderr[-4000:]
