"""Checkpoints: whole, of this model, and never unpickled."""

import contextlib
import json
import math
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ser_fast.data.files import write_atomically
from ser_fast.models import CGRU
from ser_fast.training.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from ser_fast.training.progress import read_progress

TINY = {"channels": [4, 4], "hidden_size": 8}
CLASSES = ["anger", "neutral", "sadness"]


@pytest.fixture
def model():
    return CGRU(3, **TINY)


@pytest.fixture
def path(model, tmp_path):
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint("cgru", TINY, CLASSES, model.state_dict()))
    return tmp_path / "a.safetensors"


def test_checkpoint_round_trip(path, model):
    loaded = load_checkpoint(path)
    assert (loaded.model, loaded.options, loaded.classes) == ("cgru", TINY, CLASSES)
    wave = torch.randn(2, 4000)
    assert torch.equal(loaded.build()(wave), model.eval()(wave))


def test_checkpoint_optimizer_round_trip(model, tmp_path):
    def step(model, optimizer):
        torch.manual_seed(1)
        model.train()(torch.randn(2, 4000)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    path = tmp_path / "o.safetensors"
    save_checkpoint(
        path, Checkpoint("cgru", TINY, CLASSES, model.state_dict(), {"epoch": 1}, optimizer_tensors(optimizer))
    )
    loaded = load_checkpoint(path)
    twin = loaded.build()
    other = torch.optim.Adam(twin.parameters())
    restore_optimizer(other, loaded.optimizer)
    step(model, optimizer)
    step(twin, other)
    assert loaded.progress == {"epoch": 1}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_checkpoint_refuses_truncated_files(path):
    whole = path.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.safetensors is not a whole safetensors file"):
            load_checkpoint(path)


def test_checkpoint_with_flipped_bytes_raises_clear_errors(path):
    whole = bytearray(path.read_bytes())
    for position in range(0, 2500, 7):
        broken = bytearray(whole)
        broken[position] ^= 0x55
        path.write_bytes(broken)
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path).build(path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the checkpoint was unpickled",))


def test_checkpoint_never_unpickles(path):
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_checkpoint(path)


def metadata(**changes) -> dict:
    values = {
        "format": FORMAT,
        "model": "cgru",
        "options": json.dumps(TINY),
        "classes": json.dumps(CLASSES),
        "progress": "{}",
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "theirs"}, "has format 'theirs'; it must be 'ser_fast checkpoint 1'"),
        ({"model": "transformer"}, "holds the model 'transformer'; it must be one of"),
        ({"options": "{"}, "has no readable options in its header"),
        ({"options": '{"__class__": 1}'}, "has options .*; they must be among"),
        ({"options": '{"hidden_size": "big"}'}, "does not fit cgru"),
        ({"classes": '["one"]'}, "has classes .*; they must be two or more names"),
        ({"classes": '["one", "one"]'}, "has classes .*; they must be two or more names, all different"),
        ({"progress": None}, "has no readable progress"),
        ({"progress": "[]"}, "has progress .*; it must be a JSON object"),
    ],
)
def test_checkpoint_refuses_hostile_headers(changes, sentence, model, path):
    save_file({f"model.{name}": value for name, value in model.state_dict().items()}, path, metadata(**changes))
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(path).build(path)


def test_checkpoint_refuses_weights_of_another_model(model, path):
    tensors = {f"model.{name}": value for name, value in CGRU(3, channels=(4, 4), hidden_size=9).state_dict().items()}
    save_file(tensors, path, metadata())
    with pytest.raises(CheckpointError, match=r"does not fit cgru: classifier\.weight is torch\.float32 \[3, 9\]"):
        load_checkpoint(path).build(path)
    with pytest.raises(CheckpointError, match=r"does not exist; a run folder holds best\.safetensors"):
        load_checkpoint(path.with_name("none.safetensors"))


@pytest.mark.parametrize("name", ["optimizer.x.y", "optimizer.0.exp.avg", "weights", "optimizer.99999999999.step"])
def test_checkpoint_refuses_unknown_tensors(name, model, path):
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    save_file(tensors | {name: torch.zeros(1)}, path, metadata())
    with pytest.raises(CheckpointError, match=rf"a\.safetensors holds a tensor '{name}'; it must be model\.NAME"):
        load_checkpoint(path)


def test_checkpoint_refuses_deep_json(model, path):
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    save_file(tensors, path, metadata(options="[" * 100_000))
    with pytest.raises(CheckpointError, match=r"a\.safetensors has no readable options"):
        load_checkpoint(path)


@pytest.mark.parametrize("change", [
    lambda state: state | {"exp_avg": torch.zeros(3, 3)},
    lambda state: state | {"step": torch.zeros(3)},
    lambda state: state | {"step": torch.tensor(1)},
    lambda state: state | {"momentum": torch.zeros(1)},
    lambda state: {"step": state["step"], "exp_avg": state["exp_avg"]},
])  # fmt: skip
def test_checkpoint_refuses_another_optimizer(change, model):
    optimizer = torch.optim.Adam(model.parameters())
    shape = next(model.parameters()).shape
    state = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
    restore_optimizer(optimizer, {0: state})
    for index in (0, 99):
        with pytest.raises(CheckpointError, match=f"the optimizer's state of parameter {index} is .*; it must be"):
            restore_optimizer(optimizer, {index: change(state)})


# Constructors that would take minutes or gigabytes, in files of less than a kilobyte.
HUGE = {
    "cgru": [{"hidden_size": 8192}, {"hidden_size": 65536}, {"hidden_size": 10**30}, {"n_fft": 2**28}, {"n_fft": 2**16},
             {"n_fft": 2**28, "win_length": 2**28}, {"channels": [65536, 65536]}, {"hop_length": 2**40},
             {"sample_rate": 10**9, "f_max": 5e8}, {"f_max": math.nan}],
    "bigru_mha": [{"num_layers": 10**6}, {"num_layers": 64, "hidden_size": 65536}, {"num_heads": 2**20}],
    "functionals": [{"n_mels": 10**6}, {"n_lags": 10**8}, {"n_mels": 512, "n_cepstra": 512}],
    "descriptor_gru": [{"n_mels": 10**6}, {"n_lags": 10**8}, {"channels": 65536, "hidden_size": 8192}],
    "baseline": [{"hidden_size": 60_000, "encoder": encoder} for encoder in ("cnn_lstm", "lstm", "rnn", "linear")],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [(name, one) for name, some in HUGE.items() for one in some])
def test_checkpoint_refuses_huge_models_at_once(name, options, path):
    save_file({"model.x": torch.zeros(1)}, path, metadata(model=name, options=json.dumps(options)))
    loaded = load_checkpoint(path)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=f"a.safetensors does not fit {name}: "):
        loaded.build(path)
    # A refusal takes milliseconds; the smallest of these models takes 1 GB.
    assert time.perf_counter() - start < 10 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_checkpoint_refuses_options_too_large_for_its_weights(model, path):
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for changes in ({"sample_rate": 10**9}, {"hop_length": 2**40}):
        save_file(tensors, path, metadata(options=json.dumps(TINY | changes)))
        with pytest.raises(CheckpointError, match=r"(sample_rate|hop_length) is \d+; it must be at most \d+"):
            load_checkpoint(path).build(path)


def test_checkpoint_refuses_weights_of_another_dtype(model, path):
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_file(tensors | {"model.classifier.bias": torch.zeros(3, dtype=torch.int8)}, path, metadata())
    with pytest.raises(
        CheckpointError, match=r"classifier\.bias is torch\.int8 \[3\]; it must be torch\.float32 \[3\]"
    ):
        load_checkpoint(path).build(path)


ROW = {"epoch": 1, "loss": 1.5, "accuracy": 0.5, "utterances": 9, "seconds": 0.1, "valid_loss": 1.0, "score": 0.4}
PROGRESS = {
    "corpus": "a",
    "epoch": 2,
    "best_epoch": 1,
    "best_score": 0.4,
    "rows": [ROW, ROW | {"epoch": 2}],
    "parts": "",
}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 5}, {"rows": []}, {"rows": [ROW]}, {"rows": [ROW, 5]}, {"rows": [ROW, ROW]}, {"rows": None},
        {"rows": [5, ROW]}, {"rows": [ROW, {"epoch": 2}]}, {"rows": [ROW, ROW | {"epoch": 2, "loss": math.nan}]},
        {"rows": [ROW, ROW | {"epoch": 2, "loss": "1"}]}, {"epoch": "2"}, {"epoch": 2.0}, {"epoch": True},
        {"epoch": -1}, {"epoch": math.nan}, {"best_epoch": 3}, {"best_epoch": 0}, {"best_epoch": None},
        {"best_score": math.nan}, {"best_score": -math.inf}, {"best_score": "0"}, {"corpus": 1}, {"parts": None},
        {"more": 1}, {"epoch": ...}, {"rows": ...}, {"corpus": ...},
    ],
)  # fmt: skip
def test_checkpoint_refuses_damaged_progress(change):
    good = {key: value for key, value in PROGRESS.items() if key != "parts"}
    assert read_progress(Path("last"), good).parts == "" and read_progress(Path("last"), PROGRESS).epoch == 2
    damaged = {key: value for key, value in (PROGRESS | change).items() if value is not ...}
    with pytest.raises(CheckpointError, match=r"^last: progress has .*; it must"):
        read_progress(Path("last"), damaged)


def test_checkpoint_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_find_checkpoint_prefers_that_of_the_run(tmp_path):
    assert find_checkpoint(tmp_path) == tmp_path / "best.safetensors"  # which load_checkpoint then misses
    for name in ("model.safetensors", "best.safetensors"):
        (tmp_path / name).touch()
        assert find_checkpoint(tmp_path) == tmp_path / name


def test_find_checkpoint_names_few_of_many_runs(tmp_path):
    for number in range(7):
        (tmp_path / f"fold{number}").mkdir()
        (tmp_path / f"fold{number}" / "best.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"it holds \S+fold0, .*fold4 and 2 more$"):
        find_checkpoint(tmp_path)


def test_blank_models_import_no_compiler():
    """Tensors without values must not bring torch's compiler along: it takes a second of every prediction."""
    script = (
        "import sys; from ser_fast.models import MODELS; from ser_fast.training.checkpoint import blank\n"
        "for name in MODELS: blank(name, 7, {})\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr
