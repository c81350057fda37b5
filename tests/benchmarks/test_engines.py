"""Other engines compute what the benchmarks compare with them, and the report names the fastest."""

import engines
import pytest
import report
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

TESTED = {"ONNX Runtime", "SciPy", "librosa"}  # these are among the tests' requirements


@pytest.mark.parametrize("lengths", [None, [7, 1, 3]], ids=["dense", "ragged"])
@pytest.mark.parametrize("directions", [1, 2])
def test_gru(directions, lengths):
    layer = nn.GRU(5, 6, batch_first=True, bidirectional=directions == 2)
    x, lengths = torch.randn(3, 7, 5), None if lengths is None else torch.tensor(lengths)
    if lengths is None:
        exact = layer(x)[0]
    else:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        exact = pad_packed_sequence(layer(packed)[0], batch_first=True)[0]
    found = {name: engine for name, engine in engines.grus(layer, x, lengths).items() if name in TESTED}
    assert list(found) == ["ONNX Runtime"]
    for engine in found.values():
        torch.testing.assert_close(engine.read(engine.call()), exact.detach(), atol=1e-6, rtol=1e-5)


def test_spectrogram():
    wave, window = torch.randn(2, 400), torch.hamming_window(40)
    spectrum = torch.stft(wave, 64, 16, 40, window, center=True, return_complex=True)
    exact = spectrum.abs().square()[:, :20].transpose(1, 2)
    found = {
        name: engine for name, engine in engines.spectrograms(wave, window, 64, 16, 20).items() if name in TESTED
    }
    assert set(found) == {"SciPy", "librosa"}
    for engine in found.values():
        torch.testing.assert_close(engine.read(engine.call()), exact, atol=1e-4, rtol=1e-4)


def test_missing(monkeypatch):
    monkeypatch.setitem(engines.MODULES, "JAX", "no_such_engine")
    assert engines.missing(["JAX", "SciPy"]) == {"JAX": "no_such_engine is not installed"}
    assert "JAX" not in engines.grus(nn.GRU(2, 3, batch_first=True), torch.randn(1, 2, 2))


def test_report_names_the_fastest_peer():
    case = {"case": "B=1", "error": 0.0, "left out": {"JAX": "jax is not installed"}}
    case |= {"seconds": {"ours": 1e-3, "ours, float64": 5e-4, "nn.GRU": 3e-3, "Flax": 2e-3}}
    case |= {"ratios": {"ours, float64": 0.5, "nn.GRU": 3.0, "Flax": 2.0}}
    lines = report.timings([case]).splitlines()
    assert lines[0] == "| case | ours | fastest peer | ours, float64 | nn.GRU | Flax | error |"
    assert lines[2] == "| B=1 | 1 | Flax (2.00) | 0.5 (0.50) | 3 (3.00) | 2 (2.00) | 0e+00 |"
