"""Checkpoints in safetensors, written atomically and read without unpickling."""

import inspect
import json
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ser_fast.data.files import write_atomically
from ser_fast.data.utterance import VALUE, check_targets
from ser_fast.data.wav import RATES
from ser_fast.models import MODELS

FORMAT = "ser_fast checkpoint 1"
SAVED = "model.safetensors"  # name of the checkpoint in a folder of ser_fast.prediction.hub
# Largest numbers among the options of a model. They bound what its constructor computes before any weight is read.
LARGEST = 2**16
LIMITS = {"num_layers": 64, "n_mels": 512, "n_lags": 4096} | dict.fromkeys(
    ("sample_rate", "f_min", "f_max"), RATES[-1]
)
_SHOWN = 5  # run folders that a message names
_OPTIMIZER = re.compile(r"optimizer\.([0-9]{1,9})\.(\w+)")


class CheckpointError(ValueError):
    """A file is no ser_fast checkpoint or does not fit the model; the message names the file and the reason."""


@dataclass
class Checkpoint:
    """A model with what is needed to build it and to resume its training.

    Args:
        model: a name in ``ser_fast.models.MODELS``.
        options: keyword arguments of the model.
        classes: names of the classes; empty for a regression.
        weights: state dict of the model; its outputs are logits, or values in the corpus's unit.
        progress: state of the training, in types that JSON has.
        optimizer: state of the optimizer as ``{parameter index: {name: tensor}}``.
        targets: names of the values, one for each output; by default "value" without classes, and none with them.
        standardised: last layer, mean and deviation with which a regression trains on, of
            ``ser_fast.training.task.Regression.kept``; empty for classes and where nothing resumes.

    Attributes:
        names: names of the outputs: the classes, or the targets.
    """

    model: str
    options: dict
    classes: list[str]
    weights: dict[str, Tensor]
    progress: dict = field(default_factory=dict)
    optimizer: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    standardised: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self):
        self.targets = [] if self.classes else list(self.targets) or [VALUE]

    @property
    def names(self) -> list[str]:
        return self.classes or self.targets

    def build(self, path: Path | str = "checkpoint") -> nn.Module:
        """Return the model with these weights, in evaluation mode.

        Args:
            path: name of the checkpoint in error messages.

        Raises:
            CheckpointError: options or weights do not fit the model.
        """
        try:
            model = blank(self.model, len(self.names), self.options)
        except Exception as error:  # options from an untrusted file may make a constructor raise anything
            raise CheckpointError(f"{path} does not fit {self.model}: {error}") from error
        given, wanted = (_described(tensors) for tensors in (self.weights, model.state_dict()))
        for name in sorted(given.keys() | wanted.keys()):
            if given.get(name) != wanted.get(name):
                found = f"{name} is {given.get(name, 'missing')}"
                raise CheckpointError(
                    f"{path} does not fit {self.model}: {found}; it must be {wanted.get(name, 'omitted')}"
                )
        # Not to_empty, whose empty_like of a meta tensor imports sympy: 0.3 s.
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype)).load_state_dict(self.weights)
        return model.eval()


def blank(model: str, outputs: int, options: dict) -> nn.Module:
    """Return a model whose tensors have shapes, but neither values nor memory.

    Args:
        model: a name in ``ser_fast.models.MODELS``.
        outputs: number of classes, or of targets.
        options: keyword arguments of the model.

    Raises:
        ValueError: an option is out of range, or so large that it would take hours or all memory.
    """
    for name, value in options.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            most = LIMITS.get(name, LARGEST)
            if isinstance(number, (int, float)) and not abs(number) <= most:
                raise ValueError(f"{name} is {value!r}; it must be at most {most}")
    with torch.device("meta"):
        return MODELS[model](outputs, **options)


def _described(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {
        name: f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        for name, tensor in tensors.items()
    }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically."""
    tensors = {f"model.{name}": tensor.detach().cpu().contiguous() for name, tensor in checkpoint.weights.items()}
    for index, state in checkpoint.optimizer.items():
        tensors |= {f"optimizer.{index}.{name}": tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    tensors |= {f"standardised.{name}": tensor.cpu().contiguous() for name, tensor in checkpoint.standardised.items()}
    metadata = {"format": FORMAT, "model": checkpoint.model} | {
        name: json.dumps(getattr(checkpoint, name)) for name in ("options", "classes", "progress")
    }
    if checkpoint.targets not in ([], [VALUE]):
        metadata["targets"] = json.dumps(checkpoint.targets)
    write_atomically(path, save(tensors, metadata))


def find_checkpoint(path: Path | str) -> Path:
    """Return the checkpoint itself, the best one of a run folder, or that of a folder as the Hugging Face Hub has it.

    Raises:
        CheckpointError: the folder contains runs but is none itself.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    best, saved = path / "best.safetensors", path / SAVED
    if best.is_file() or saved.is_file():
        return best if best.is_file() else saved
    if runs := sorted(str(found.parent) for found in path.glob("**/best.safetensors")):
        more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
        raise CheckpointError(f"{path} is no run folder itself; it holds {', '.join(runs[:_SHOWN])}{more}")
    return best


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read and check a checkpoint.

    Raises:
        CheckpointError: the file is missing, truncated or of another format, or its model or one of its options
            does not exist.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a run folder holds best.safetensors and last.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {reprlib.repr(metadata.get('format'))}; it must be {FORMAT!r}")
    if metadata.get("model") not in MODELS:
        found = f"{path} holds the model {reprlib.repr(metadata.get('model'))}"
        raise CheckpointError(f"{found}; it must be one of {list(MODELS)}")
    options, classes, progress = (_decode(path, metadata, name) for name in ("options", "classes", "progress"))
    known = set(inspect.signature(MODELS[metadata["model"]].__init__).parameters) - {"self", "num_classes"}
    if not isinstance(options, dict) or not set(options) <= known:
        raise CheckpointError(f"{path} has options {reprlib.repr(options)}; they must be among {sorted(known)}")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not named or (classes and len(set(classes)) < max(2, len(classes))):
        allowed = "two or more names, all different, or none"
        raise CheckpointError(f"{path} has classes {reprlib.repr(classes)}; they must be {allowed}")
    targets = _decode_targets(path, metadata, classes)
    if not isinstance(progress, dict):
        raise CheckpointError(f"{path} has progress {reprlib.repr(progress)}; it must be a JSON object")
    weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if match := _OPTIMIZER.fullmatch(name):
            optimizer.setdefault(int(match[1]), {})[match[2]] = tensor
        elif not name.startswith(("model.", "standardised.")):
            raise CheckpointError(
                f"{path} holds a tensor {reprlib.repr(name)}; it must be model.NAME or optimizer.NUMBER.NAME"
            )
    standardised = _standardised(path, tensors, len(classes or targets))
    return Checkpoint(metadata["model"], options, classes, weights, progress, optimizer, targets, standardised)


def _decode_targets(path: Path, metadata: dict, classes: list[str]) -> list[str]:
    """Return the names of the values; "value" in a checkpoint that names none, as those of older versions."""
    targets = _decode(path, metadata, "targets") if "targets" in metadata else [] if classes else [VALUE]
    found = f"{path} has targets {reprlib.repr(targets)}"
    if not isinstance(targets, list) or bool(targets) == bool(classes):
        raise CheckpointError(f"{found}; they must be a list of names, and none beside classes")
    try:
        check_targets(targets)
    except ValueError as error:
        raise CheckpointError(f"{found}: {error}") from error
    return targets


def _standardised(path: Path, tensors: dict[str, Tensor], outputs: int) -> dict[str, Tensor]:
    """Return what a regression trains on with, whose last layer and statistics have ``outputs`` rows."""
    prefix = "standardised."
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    layer = {name: tensors.get(f"model.classifier.{name}") for name in ("weight", "bias")}
    statistics = dict.fromkeys(("mean", "std"), torch.zeros(outputs, dtype=torch.float64))
    wanted = {name: tensor for name, tensor in (layer | statistics).items() if tensor is not None}
    if found and _described(found) != _described(wanted):
        raise CheckpointError(f"{path} has standardised {_described(found)}; it must be {_described(wanted)}")
    return found


def _decode(path: Path, metadata: dict, name: str):
    try:
        return json.loads(metadata[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has no readable {name} in its header: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return the state of an optimizer as a checkpoint keeps it."""
    return optimizer.state_dict()["state"]


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Load the state of an optimizer over the same parameters.

    Raises:
        CheckpointError: the state is not that of such an optimizer over these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    model = _state_of_one(type(optimizer))
    for index, tensors in state.items():
        wanted = {} if index >= len(parameters) else {
            name: f"{tensor.dtype} {list(parameters[index].shape) if tensor.dim() else []}"
            for name, tensor in model.items()
        }  # fmt: skip
        if _described(tensors) != wanted:
            raise CheckpointError(
                f"the optimizer's state of parameter {index} is {_described(tensors)}; it must be {wanted}"
            )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_of_one(kind: type[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state that an optimizer keeps for a parameter ``[1]``."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = kind([parameter])
    optimizer.step()
    return {name: value for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
