"""``ser-fast tune`` with its own workers, on kernels that the host runs: all passed, and one fault of each kind."""

import sys
from pathlib import Path

import pytest

from ser_fast.backends import measured, tuned
from ser_fast.tuning import cuda
from ser_fast.tuning.schedule import Schedule

pytest.importorskip("triton")

PLAYED = Path(__file__).with_name("played.py")
SHAPE = (4, 2, 2, 16)


@pytest.fixture
def tune(native, tmp_path, monkeypatch, fresh_state):
    """Runs the command with these faults and this limit of the proofs; returns the stored entry and the report."""
    monkeypatch.setenv(tuned.VARIABLE, str(tmp_path / "tuned.json"))

    def run(*faults: str, proof: float = 400.0) -> tuple[dict, str]:
        monkeypatch.setattr(cuda, "schedule", lambda cases, total: Schedule(60.0, proof, 200.0, 0.1, 100.0))
        said: list[str] = []
        cuda.tune("cuda:0", [SHAPE], worker=[sys.executable, str(PLAYED), native._name, *faults], say=said.append)
        (entry,) = tuned.load(tmp_path / "tuned.json").values()
        return entry, "\n".join(said)

    return run


@pytest.mark.thorough
def test_tune_proves_times_and_chooses_on_the_host(tune):
    entry, said = tune()
    assert entry["key"]["name"] == "emulated on the host" and entry["banned"] == {}, said
    for op in measured.PRECISIONS:
        for backend in measured.BACKENDS:
            assert f"proof   {op} by {backend}: passed" in said
    assert entry["choices"]["gru"].keys() == set(measured.PRECISIONS["gru"])
    assert all(set(order["16"]) == {"cuda", "triton", "torch"} for order in entry["choices"]["gru"].values())
    assert entry["choices"]["power_spectrogram"]["float32"][-1] == "torch"


@pytest.mark.thorough
def test_tune_bans_faulty_kernels_on_the_host(tune):
    """A result that is wrong by a hundredth, a kernel that hangs, one that ends its process: each one backend's."""
    entry, said = tune("wrong", "hang", "crash", proof=60.0)
    assert entry["banned"].keys() == {"gru by cuda", "gru by triton", "attention_pool by triton"}, said
    reasons = [entry["banned"][name] for name in ("gru by cuda", "gru by triton", "attention_pool by triton")]
    for reason, sentence in zip(reasons, ("outputs: differs by", "it did not end within 60 s", "status -6")):
        assert reason.startswith("float32 ") and sentence in reason
    assert "gru" not in entry["choices"]
    assert entry["choices"]["attention_pool"]["float32"] == ["cuda", "torch"]
    assert set(entry["choices"]["power_spectrogram"]["float32"]) == {"cuda", "triton", "torch"}
