"""The costs of an hour of audio, as docs/scale.md shows them."""

import json
import sys

import numpy as np
import pytest
import torch

soundfile = pytest.importorskip("soundfile")

from benchmarks import scale  # noqa: E402


def test_scale_measures_every_format_and_model(tmp_path, monkeypatch, capsys):
    draw = np.random.default_rng(0)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", draw.uniform(-0.5, 0.5, 16000), 16000, "PCM_16")
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # it would hold for other tests
    monkeypatch.setattr(sys, "argv", ["scale", str(tmp_path), "--json", str(tmp_path / "scale.json")])
    scale.main()
    shown = capsys.readouterr().out
    for name in (*scale.FORMATS, *scale.MODELS):
        assert f"| {name} |" in shown
    found = json.loads((tmp_path / "scale.json").read_text())
    assert found["reading"]["WAV, 16 kHz mono"]["MB an hour"] == pytest.approx(115.2 + 3600 * 44e-6)
    assert all(
        value > 0
        for part in ("reading", "computing", "bounds")
        for row in found[part].values()
        for value in row.values()
    )


def test_scale_counts_bounds_by_hand():
    """90 000 steps of eight rows a direction, eight warps with 180 instructions each, on 528 schedulers."""
    found = scale.bounds()["BiGRU-MHA"]["GRU"]
    assert found == pytest.approx(1e3 * 90_000 * 8 * 180 / (528 * 1.98e9))
    assert scale.number(1234.5) == "1230" and scale.number(0.01234) == "0.0123"
