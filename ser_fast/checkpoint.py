"""Checkpoints in safetensors, written atomically and read without unpickling anything."""

import inspect
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ser_fast.models import MODELS

FORMAT = "ser_fast checkpoint 1"


class CheckpointError(ValueError):
    """A file that is not a checkpoint of ours, or not of this model; the message names the file and why."""


@dataclass
class Checkpoint:
    """A model, what it takes to build it, and how far its training went.

    ``options`` are the model's keyword arguments, ``progress`` whatever the training wants back (JSON), and
    ``optimizer`` its state as ``{parameter index: {name: tensor}}``.
    """

    model: str
    options: dict
    classes: list[str]
    weights: dict[str, Tensor]
    progress: dict = field(default_factory=dict)
    optimizer: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def build(self, path: Path | str = "checkpoint") -> nn.Module:
        """The model with these weights, in eval mode."""
        try:
            model = MODELS[self.model](len(self.classes), **self.options)
            model.load_state_dict(self.weights)
        except (RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit {self.model}: {error}") from error
        return model.eval()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: a reader, or a crash, finds the old content or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    for index, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{index}.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    metadata = {"format": FORMAT, "model": checkpoint.model} | {
        name: json.dumps(getattr(checkpoint, name)) for name in ("options", "classes", "progress")
    }
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: missing, truncated, of another format, or of a model or with options that do not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a run folder holds best.safetensors and last.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {metadata.get('format')!r}; it must be {FORMAT!r}")
    if metadata.get("model") not in MODELS:
        raise CheckpointError(f"{path} holds the model {metadata.get('model')!r}; it must be one of {list(MODELS)}")
    options, classes, progress = (_decode(path, metadata, name) for name in ("options", "classes", "progress"))
    known = set(inspect.signature(MODELS[metadata["model"]].__init__).parameters) - {"self", "num_classes"}
    if not isinstance(options, dict) or not set(options) <= known:
        raise CheckpointError(f"{path} has options {options!r}; they must be among {sorted(known)}")
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path} has classes {classes!r}; they must be two or more names")
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = tensor
    return Checkpoint(metadata["model"], options, classes, weights, progress, optimizer)


def _decode(path: Path, metadata: dict, name: str):
    try:
        return json.loads(metadata[name])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} has no readable {name} in its header: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    return optimizer.state_dict()["state"]


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
