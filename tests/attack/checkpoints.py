"""Damaged and hostile checkpoints: a CheckpointError, fast and with little memory, or a model that works.

Half of the cases load ``best.safetensors``; the others resume a training from ``last.safetensors``.
"""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from mutation import VALUES, mutated
from run import TINY, assert_clear, command, copied, trained, voices

from ser_fast.models import MODELS
from ser_fast.training.checkpoint import CheckpointError, load_checkpoint

# What costs a lot to build: a layer of 8192 units alone takes some hundred megabytes.
LARGE = {"hidden_size": 8192, "num_layers": 10**6, "n_fft": 2**28, "channels": [8192, 8192], "num_heads": 4096,
         "sample_rate": 2**31, "n_mels": 2**20, "win_length": 2**30, "hop_length": 1}  # fmt: skip


@dataclass
class Case:
    folder: Path
    resumes: bool
    changed: str

    def __str__(self) -> str:
        return f"{'resuming' if self.resumes else 'loading'}: {self.changed}"


def case(random: Random, folder: Path) -> Case:
    resumes = random.random() < 0.5
    run = copied(trained(folder), folder / "damaged")
    path = run / ("last.safetensors" if resumes else "best.safetensors")
    data = path.read_bytes()
    if random.random() < 0.4:
        data, changed = mutated(random, data)
    else:
        data, changed = with_header(random, data)
    path.write_bytes(data)
    return Case(folder, resumes, changed)


def with_header(random: Random, data: bytes) -> tuple[bytes, str]:
    """Change values in the header; sometimes drop all tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), data[end:]
    described = header["__metadata__"]
    said = []
    for _ in range(random.randint(1, 2)):
        said.append(random.choice((options, options, progress, tensor, metadata))(random, header, described))
    if random.random() < 0.2:
        header, body = {"__metadata__": described}, b""
        said.append("no tensors")
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body, ", ".join(said)


def options(random: Random, header: dict, described: dict) -> str:
    """Change the model or one of its options."""
    if random.random() < 0.4:
        described["model"] = random.choice([*MODELS, "x", ""])
    names = set(inspect.signature(MODELS.get(described["model"], MODELS["cgru"]).__init__).parameters)
    large = random.random() < 0.3
    name = random.choice(sorted(names & set(LARGE) if large else names - {"self", "num_classes"}))
    value = LARGE[name] if large else random.choice(VALUES)
    try:
        given = json.loads(described["options"])
        described["options"] = json.dumps(given | {name: value})
    except (TypeError, ValueError, RecursionError):  # an earlier change has spoilt it
        pass
    return f"{described['model']}.{name} is {value!r}"


def progress(random: Random, header: dict, described: dict) -> str:
    """Change the state of the training."""
    try:
        found = json.loads(described.get("progress", ""))
    except (ValueError, RecursionError):  # an earlier change has spoilt it
        return "nothing"
    if not isinstance(found, dict) or not found:
        return "nothing"
    name = random.choice(sorted(found))
    value = random.choice(VALUES)
    if random.random() < 0.2:
        del found[name]
        value = "missing"
    elif isinstance(found[name], list) and found[name] and random.random() < 0.5:
        found[name][random.randrange(len(found[name]))] = value
    else:
        found[name] = value
    described["progress"] = json.dumps(found)
    return f"progress.{name} is {value!r}"


def metadata(random: Random, header: dict, described: dict) -> str:
    """Change or remove an entry of the metadata."""
    name = random.choice(sorted(described))
    value = random.choice(
        ("", "{", "[]", "null", "1", '"x"', '["a", "a"]', '["a"]', "[" * 10**5, "9" * 5000, '{"a": 1}')
    )
    described[name] = value
    return f"{name} is {value[:20]!r}"


def tensor(random: Random, header: dict, described: dict) -> str:
    """Change what the header says of a tensor."""
    name = random.choice(sorted(set(header) - {"__metadata__"}))
    kind = random.choice(("dtype", "shape", "data_offsets", "name", "missing"))
    if kind == "name":
        header[random.choice(("x", "model.x", "optimizer.999999999.exp_avg", "optimizer.0.x", "\0"))] = header.pop(
            name
        )
    elif kind == "missing":
        del header[name]
    elif kind == "dtype":
        header[name]["dtype"] = random.choice(("F16", "F64", "I64", "BOOL", "F8_E4M3", "C64", "x"))
    else:
        numbers = header[name][kind]
        if numbers:
            numbers[random.randrange(len(numbers))] = random.choice((0, 1, 2**31, 2**63, -1, 10**6))
        if kind == "shape" and random.random() < 0.3:
            header[name]["shape"] = random.choice(([], [*numbers, 1], [1, *numbers], numbers[::-1]))
    return f"{kind} of {name}"


def check(case: Case) -> None:
    (resumes if case.resumes else loads)(case)


def loads(case: Case) -> None:
    path = case.folder / "damaged/best.safetensors"
    try:
        loaded = load_checkpoint(path)
        model = loaded.build(path)
    except CheckpointError as error:
        assert path.name in str(error) and len(str(error)) < 3000, f"unclear error: {str(error)[:1000]}"
        return
    wave = torch.sin(torch.arange(4000) / 5)[None]
    try:
        with torch.no_grad():
            found = model(wave, torch.tensor([4000]))
    except RuntimeError as error:
        raise AssertionError(f"the model was built and does not run: {error}") from error
    assert found.shape == (1, len(loaded.classes) or 1), f"its outputs are {list(found.shape)}"


def resumes(case: Case) -> None:
    out = case.folder / "damaged"
    code, _, errors = command("train", f"--data=folders:{voices(case.folder)}", f"--out={out}", "--epochs=3", *TINY)
    assert_clear(code, errors, allowed=(0, 1))
