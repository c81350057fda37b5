import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seed(request):
    """Fresh random inputs that a failing test can be run again with."""
    torch.manual_seed(0)


@pytest.fixture
def poison():
    """Fills every newly allocated tensor with NaN, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def emodb() -> Path:
    root = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SER_FAST_DATA", root)) / "emodb"
    if not folder.is_dir():
        pytest.skip("emodb: the Berlin Database of Emotional Speech is not here; SER_FAST_DATA names its parent")
    return folder
