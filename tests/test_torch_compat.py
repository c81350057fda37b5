"""The private names of torch that ser_fast uses still exist and still do what it needs."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

# Advice for a name that was removed from torch.
REMEDIES = {
    "gru": "find the functional form that nn.GRU.forward calls",
    "gru_cell": "find the functional form that nn.GRUCell.forward calls",
    "BatchNorm": "list the batch normalisations of torch.nn instead",
    "without_modes": "compute the plans before a graph is traced",
    "restore_gru_weights": "see what nn.GRU.__init__ sets beside its parameters",
    "tracing": "see how code that torch.compile does not trace can tell that it is tracing",
    "transforming": "see how torch.func tells that a transform is active",
    "batched": "see how torch tells a batched gradient apart",
    "has_values": "see how torch tells fake and wrapped tensors apart",
}


@pytest.mark.parametrize(("name", "remedy"), REMEDIES.items())
def test_torch_compat_name_exists(name, remedy):
    try:
        from ser_fast import _torch_compat
    except (AttributeError, ImportError) as error:
        pytest.fail(f"a private name vanished from torch {torch.__version__}: {error}")
    assert callable(getattr(_torch_compat, name)), remedy


def test_torch_compat_sees_transforms():
    from ser_fast import _torch_compat

    seen = []
    torch.func.grad(lambda x: (seen.append(_torch_compat.transforming()), x.sum())[1])(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        seen.append(_torch_compat.transforming())
    assert seen == [True, True] and not _torch_compat.transforming(), REMEDIES["transforming"]


def test_torch_compat_sees_tracing():
    from ser_fast import _torch_compat

    seen = []
    constant = _torch_compat.constant_in_graphs(lambda: seen.append(_torch_compat.tracing()) or 1)
    torch.compile(lambda x: x + constant(), fullgraph=True, backend="eager")(torch.ones(2))
    assert seen == [True] and not _torch_compat.tracing(), REMEDIES["tracing"]


def test_torch_compat_sees_tensors_without_values():
    from torch._subclasses import FakeTensorMode

    from ser_fast import _torch_compat

    wrapped = []
    torch.func.vmap(lambda x: (wrapped.append(_torch_compat.has_values(x)), x)[1])(torch.ones(2))
    with FakeTensorMode():
        fake = torch.ones(2)
    assert _torch_compat.has_values(torch.ones(2)), REMEDIES["has_values"]
    assert not _torch_compat.has_values(fake) and wrapped == [False], REMEDIES["has_values"]


def test_torch_compat_restores_a_gru():
    from ser_fast import _torch_compat

    gru = nn.GRU(3, 4, 2, bidirectional=True)
    names, x = gru._all_weights, torch.randn(5, 2, 3)
    wanted = gru(x)[0]
    for name in _torch_compat.GRU_CACHES:
        assert name in vars(gru), REMEDIES["restore_gru_weights"]
        del vars(gru)[name]
    _torch_compat.restore_gru_weights(gru, names)
    assert torch.equal(gru(x)[0], wanted)


def test_torch_compat_constant_in_graphs():
    from ser_fast import _torch_compat

    calls = []

    @_torch_compat.constant_in_graphs
    def answer() -> int:
        calls.append(1)
        return 3

    found = torch.compile(lambda x: x * answer(), fullgraph=True, backend="eager")(torch.ones(2))
    assert found.tolist() == [3, 3] and calls, "see what torch.compiler.assume_constant_result sets"


def test_private_torch_names_live_in_one_file():
    root = Path(__file__).parents[1]
    private = re.compile(r"\btorch\._(?!_|check\b)\w+|\btorch\.\w+(?:\.\w+)*\._(?!_)\w+|_dynamo_marked_constant")
    for file in [*(root / "ser_fast").rglob("*.py"), *(root / "kernels").glob("*.py")]:
        if file.name != "_torch_compat.py":
            assert not private.search(file.read_text()), f"{file.name}: {private.search(file.read_text())[0]}"


def test_torch_module_apply_runs_in_conversions():
    """``ser_fast.GRU`` and ``Constants`` override ``nn.Module._apply`` and rely on it in every conversion."""
    remedy = "find what nn.Module.to calls, and override that in nn/gru.py and nn/power_spectrogram.py"
    assert list(inspect.signature(nn.Module._apply).parameters) == ["self", "fn", "recurse"], remedy
    seen = []

    class Counted(nn.Linear):
        def _apply(self, fn, recurse=True):
            seen.append(fn(torch.ones(1)).dtype)
            return super()._apply(fn, recurse)

    model = nn.Sequential(Counted(2, 2))
    for convert, dtype in (
        (lambda: model.to(torch.float64), torch.float64),
        (model.half, torch.float16),
        (model.bfloat16, torch.bfloat16),
        (model.float, torch.float32),
        (model.cpu, torch.float32),
        (lambda: model.to("cpu"), torch.float32),
        (lambda: model.to_empty(device="cpu"), torch.float32),
    ):
        seen.clear()
        convert()
        assert seen == [dtype], remedy
