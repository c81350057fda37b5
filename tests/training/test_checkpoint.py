"""Checkpoints: whole, of this model, and never unpickled."""

import contextlib
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from ser_fast.data.files import write_atomically
from ser_fast.models import CGRU
from ser_fast.training.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)

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
    with pytest.raises(CheckpointError, match=r"does not fit cgru: [\s\S]*size mismatch"):
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


def test_checkpoint_refuses_another_optimizer(model):
    optimizer = torch.optim.Adam(model.parameters())
    for index, shape in ((0, (3, 3)), (99, ())):
        with pytest.raises(CheckpointError, match=f"the optimizer's exp_avg of parameter {index} fits none"):
            restore_optimizer(optimizer, {index: {"exp_avg": torch.zeros(shape)}})


def test_checkpoint_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
