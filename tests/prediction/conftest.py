"""A small checkpoint and a folder of audio for the tests of prediction."""

from pathlib import Path

import pytest
import soundfile
import torch

from ser_fast.models import MODELS
from ser_fast.training.checkpoint import Checkpoint, save_checkpoint

OPTIONS = {"channels": (4, 4), "hidden_size": 8}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "a.safetensors"
    weights = MODELS["cgru"](3, **OPTIONS).state_dict()
    save_checkpoint(path, Checkpoint("cgru", OPTIONS, ["x", "y", "z"], weights, {"shortest": 1.5}))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    for take in range(5):
        soundfile.write(folder / f"{take}.wav", 0.1 * torch.randn(6000 * (take + 1)).numpy(), 16000)
    return folder
