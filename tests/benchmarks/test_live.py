"""The delay of ser-fast listen: each frame counts once, and the command is measured as it runs."""

import re
import sys

import pytest

for package in ("starlette", "uvicorn", "websockets"):
    pytest.importorskip(package)

from benchmarks import live  # noqa: E402


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ([], []),
        ([(99, 5.0)], []),
        ([(100, 5.0)], [4.0]),
        ([(250, 5.0), (250, 6.0), (299, 7.0), (300, 8.0)], [4.0, 3.0, 5.0]),
        ([(900, 5.0), (1000, 6.0)], [4.0, 3.0, 2.0]),
    ],
)
def test_delays_end_with_the_first_answer(answers, found):
    assert live.delays([100, 200, 300], [1.0, 2.0, 3.0], answers) == found


def test_voice_has_its_length():
    wave = live.voice(3.5, 8000)
    assert wave.shape == (28000,) and wave.dtype == "float32" and abs(wave).max() > 0.1


def test_live_measures_the_command(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["live", "--seconds=2", "--window=1", "--rate=16000"])
    live.main()
    shown = capfd.readouterr().out
    frames, updates = (int(found) for found in re.findall(r"^\| \w.*? \| (\d+) \|", shown, re.M))
    assert 120 <= frames <= 200 and 2 <= updates <= 101
    assert "16000 Hz, window 1 s" in shown
