"""Parameters and buffers of every module and model: built without memory, saved and loaded by other libraries."""

import pytest
import safetensors.torch
import torch
from torch import nn

import ser_fast
from ser_fast.models import MODELS, DescriptorGRU, Functionals
from ser_fast.models.statistics import GROUPS
from ser_fast.models.systems import SYSTEMS

STATISTICS = {"mean": torch.arange(401.0), "std": torch.full((401,), 2.0)}
MODULES = {
    "GRU": lambda: ser_fast.GRU(5, 4, num_layers=2, bidirectional=True),
    "GRUCell": lambda: ser_fast.GRUCell(5, 4),
    "AttentionPool": lambda: ser_fast.AttentionPool(8),
    "PowerSpectrogram": lambda: ser_fast.PowerSpectrogram(**STATISTICS),
    "PowerSpectrogram in float64": lambda: ser_fast.PowerSpectrogram(wkwargs={"dtype": torch.float64}),
    "MelSpectrogram": lambda: ser_fast.MelSpectrogram(norm="slaney", mel_scale="slaney"),
    "Functionals": lambda: Functionals(4),
    "DescriptorGRU": lambda: DescriptorGRU(4),
    "Functionals with all groups": lambda: Functionals(4, groups=tuple(GROUPS)),
}
BUILDERS = MODULES | {
    name: lambda system=system: MODELS[system.model](4, **system.options) for name, system in SYSTEMS.items()
}
every_module = pytest.mark.parametrize("name", BUILDERS)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers, those that the state dict leaves out too."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def allocate(module: nn.Module) -> None:
    """Allocate a module of the meta device with garbage in its memory, as ``to_empty`` may."""
    module._apply(lambda tensor: torch.full_like(tensor, 77, device="cpu"))


def assert_same_state(module: nn.Module, wanted: nn.Module) -> None:
    found, wanted = state(module), state(wanted)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@every_module
def test_meta_module_is_right_after_to_empty_and_load(name):
    with torch.device("meta"):
        module = BUILDERS[name]()
    assert all(value.is_meta for value in state(module).values())
    wanted = BUILDERS[name]()
    assert {key: value.shape for key, value in state(module).items()} == {
        key: value.shape for key, value in state(wanted).items()
    }
    allocate(module)
    module.load_state_dict(wanted.state_dict())
    assert_same_state(module, wanted)


@every_module
def test_meta_module_is_right_after_reset_parameters(name):
    """FSDP materialises each module with parameters or buffers of its own by these two calls."""
    with torch.device("meta"):
        module = BUILDERS[name]()
    for part in module.modules():
        if [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            part.to_empty(device="cpu", recurse=False)
            for value in part.buffers(recurse=False):
                value.fill_(77)
            part.reset_parameters()
    wanted, constants = dict(BUILDERS[name]().named_buffers()), dict(module.named_buffers())
    assert constants.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(constants[key], value), key
    assert not any((weight == 77).all() for weight in module.parameters())


def test_reset_parameters_keeps_given_statistics():
    front = ser_fast.PowerSpectrogram(**STATISTICS)
    front.mean.zero_()
    front.reset_parameters()
    assert front.normalize and torch.equal(front.mean, STATISTICS["mean"])


@every_module
def test_state_owns_its_whole_storage(name, tmp_path):
    """Views and shared storage cannot be saved by safetensors and what builds on it."""
    module = BUILDERS[name]()
    values = state(module).values()
    for value in values:
        assert value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
    assert len({value.untyped_storage().data_ptr() for value in values if value.numel()}) == len(values)
    safetensors.torch.save_model(module, tmp_path / "model.safetensors")
    loaded = BUILDERS[name]()
    safetensors.torch.load_model(loaded, tmp_path / "model.safetensors")
    assert_same_state(loaded, module)
