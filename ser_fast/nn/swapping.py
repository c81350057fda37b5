"""``swap``: replace the modules of torch and torchaudio inside a model by ser_fast's, in place."""

import sys
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ser_fast import _torch_compat
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.nn.gru_cell import GRUCell
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.ops import checks
from ser_fast.ops.power_spectrogram import PAD_MODES, power_spectrogram

TORCH = {GRU: nn.GRU, GRUCell: nn.GRUCell}


@dataclass
class SwapReport:
    """Result of :func:`swap` and :func:`to_torch`; ``print(report)`` lists it.

    Attributes:
        replaced: names of the replaced submodules, "" for the model itself, with a description of each.
        left: names of similar submodules that were not replaced, with the reason.

    Example:
        >>> from torch import nn
        >>> print(swap(nn.Sequential(nn.Linear(8, 8), nn.GRU(8, 16))))
        1: nn.GRU is ser_fast.GRU(8, 16)
    """

    replaced: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or 'the model'}: {what}" for name, what in self.replaced.items()]
        lines += [f"{name or 'the model'}: left, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "nothing to replace"


def swap(model: nn.Module) -> SwapReport:
    """Replace each ``nn.GRU`` by :class:`ser_fast.GRU` and torchaudio's power ``Spectrogram`` by ser_fast's.

    The modules stay the same objects with another class, so parameters, buffers, names, hooks, the training mode,
    the state dict and an optimizer that is already built stay valid. A spectrogram keeps torchaudio's layout
    ``[..., F, T]``, window, padding and centring; on CPU it refuses samples that are not finite.

    Not replaced are subclasses, whose own code would be lost, including parametrized modules; modules whose
    ``forward`` was replaced; scripted modules; spectrograms that are complex, two-sided, not of power 2 or with a
    learned window.

    Args:
        model: any module; it is changed in place. :func:`unswap` undoes it.

    Returns:
        A :class:`SwapReport` of what was replaced, and what was not and why.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.GRU(40, 64, batch_first=True))
        >>> report = swap(model)
        >>> report.replaced
        {'0': 'nn.GRU is ser_fast.GRU(40, 64, batch_first=True)'}
        >>> unswap(model)
        ['0']
    """
    check_module("swap", model)
    report, spectrogram = SwapReport(), _torchaudio_spectrogram()
    for name, module in model.named_modules():
        if type(module) in (nn.GRU, spectrogram) and "forward" in vars(module):
            report.left[name] = "its forward was replaced on this object: swap the model before that"
        elif type(module) is nn.GRU:
            _become(module, GRU)
            report.replaced[name] = f"nn.GRU is ser_fast.{module}"
        elif spectrogram and type(module) is spectrogram:
            why = _not_ours(module)
            if why:
                report.left[name] = why
            else:
                _become(module, Spectrogram)
                report.replaced[name] = f"torchaudio's Spectrogram is ser_fast's: {module}"
        elif why := _looks_like_one(module, spectrogram):
            report.left[name] = why
    return report


def unswap(model: nn.Module) -> list[str]:
    """Undo :func:`swap`. Modules that were written as ser_fast's stay: :func:`to_torch` converts these too.

    Args:
        model: the model that was swapped; it is changed in place.

    Returns:
        Names of the modules that are torch's or torchaudio's again.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if a swapped module has changed its class since, as a parametrization does. Nothing is changed
            then.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.GRU(40, 64))
        >>> report = swap(model)
        >>> unswap(model), type(model[0]) is nn.GRU
        (['0'], True)
    """
    check_module("unswap", model)
    swapped = {name: module for name, module in model.named_modules() if "_swapped_from" in vars(module)}
    for name, module in swapped.items():
        if type(module) not in (GRU, Spectrogram):
            kind = type(module).__name__
            raise ValueError(
                f"unswap: {name or 'the model'} is a {kind}; it must have the class that swap set: "
                "remove its parametrizations"
            )
    for module in swapped.values():
        _become_again(module)
    return list(swapped)


def to_torch(model: nn.Module) -> SwapReport:
    """Replace each :class:`ser_fast.GRU` and :class:`ser_fast.GRUCell` by torch's, and undo :func:`swap`.

    For what needs torch's classes: ``quantize_dynamic``, TorchScript, older exporters. As in :func:`swap` the modules
    stay the same objects with the same parameters. ``nn.GRU`` has no ``lengths``: a model that passes them must pack
    its batches.

    Not replaced are GRUs with ``reset_after=False``, attention pooling and spectrograms, which torch does not have;
    subclasses, whose own code would be lost, including parametrized modules; modules whose ``forward`` was replaced.

    Args:
        model: any module; it is changed in place.

    Returns:
        A :class:`SwapReport` of what was replaced, and what was not and why.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleList([GRU(40, 64), GRU(64, 64, reset_after=False)])
        >>> print(to_torch(model))
        0: ser_fast.GRU is nn.GRU(40, 64)
        1: left, reset_after is False: torch's GRU has the other form alone
    """
    check_module("to_torch", model)
    report = SwapReport()
    for name, module in model.named_modules():
        ours = type(module).__name__
        if why := _not_torchs(module):
            report.left[name] = why
        elif type(module) in (*TORCH, Spectrogram):
            _become_again(module)
            place = "torchaudio's " if ours == "Spectrogram" else "nn."
            report.replaced[name] = f"ser_fast.{ours} is {place}{module}"
    return report


def _not_torchs(module: nn.Module) -> str:
    """Return why one of our modules cannot be torch's; empty if it can, and for any other module."""
    if isinstance(module, (AttentionPool, PowerSpectrogram)):
        return "torch has no such module"
    if not isinstance(module, (*TORCH, Spectrogram)):
        return ""
    if nn.utils.parametrize.is_parametrized(module):
        return "parametrized: remove its parametrizations before"
    if type(module) not in (*TORCH, Spectrogram):
        return f"{type(module).__name__} is a subclass, whose code may do something else"
    if "forward" in vars(module):
        return "its forward was replaced on this object"
    if not getattr(module, "reset_after", True):
        return "reset_after is False: torch's GRU has the other form alone"
    return ""


def check_module(function: str, model) -> None:
    """Check that a function of this package is given a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model is a {type(model).__name__}; it must be a torch.nn.Module")


def _torchaudio_spectrogram() -> type | None:
    """Return torchaudio's class if torchaudio is imported: a model with a Spectrogram has imported it."""
    transforms = sys.modules.get("torchaudio.transforms")
    return getattr(transforms, "Spectrogram", None)


def _become(module: nn.Module, kind: type) -> None:
    module._swapped_from = type(module)
    module.__class__ = kind
    for name in _torch_compat.GRU_CACHES:
        vars(module).pop(name, None)


def _become_again(module: nn.Module) -> None:
    kind = vars(module).pop("_swapped_from", None) or TORCH[type(module)]
    names = module._weight_names() if kind is nn.GRU else []
    module.__class__ = kind
    vars(module).pop("reset_after", None)
    if kind is nn.GRU:
        module.mode, module.proj_size = "GRU", 0  # class attributes of ours
        _torch_compat.restore_gru_weights(module, names)


def _looks_like_one(module: nn.Module, spectrogram: type | None) -> str:
    """Return why a module similar to those is not replaced; empty for any other module."""
    if isinstance(module, torch.jit.ScriptModule) and getattr(module, "original_name", "") == "GRU":
        return "compiled by TorchScript: swap the model before it is scripted"
    if nn.utils.parametrize.is_parametrized(module) and isinstance(module, nn.GRU):
        return "parametrized: swap the model before it is parametrized"
    for kind in (nn.GRU, spectrogram):
        if kind and isinstance(module, kind):
            return f"{type(module).__name__} is a subclass of {kind.__name__}, whose code may do something else"
    return ""


def _not_ours(module: nn.Module) -> str:
    """Return why a torchaudio Spectrogram is not replaced; empty if it can be."""
    if module.power != 2:
        return f"power is {module.power}: only 2 is fused"
    if not module.onesided:
        return "onesided is False: only half of a real signal's spectrum is computed"
    if module.pad_mode not in PAD_MODES:
        return f"pad_mode is '{module.pad_mode}'"
    if module.window.requires_grad:
        return "its window is learned: the fused op has no gradient for it"
    if module.window.dtype not in (torch.float32, torch.float64):
        return f"its window is {module.window.dtype}: a power spectrogram overflows in half precision"
    return ""


class Spectrogram(nn.Module):
    """``torchaudio.transforms.Spectrogram`` of power 2 on the fused op, with its attributes; made by :func:`swap`.

    Shape:
        waveform ``[..., N]``; result ``[..., F, T]`` with F = n_fft // 2 + 1.
    """

    def extra_repr(self) -> str:
        return (
            f"n_fft={self.n_fft}, win_length={self.win_length}, hop_length={self.hop_length}, center={self.center}, "
            f"normalized={self.normalized}"
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """Return |STFT|² ``[..., F, T]`` of ``waveform`` ``[..., N]``.

        Raises:
            RuntimeError: if the dtype is none of float32, float64 and int16, or there are fewer than n_fft samples
                without centring.
        """
        checks.tensors("Spectrogram", waveform=waveform)
        wave = F.pad(waveform, (self.pad, self.pad)) if self.pad else waveform
        window = self.window
        if {wave.dtype, window.dtype} == {torch.float32, torch.float64}:
            wave, window = wave.double(), window.double()
        if not self.center:
            # torch.stft centres a short window within n_fft, which moves the frames and takes their last ones.
            spare = self.n_fft - len(window)
            window = F.pad(window, (spare // 2, spare - spare // 2))
            found = f"waveform has {wave.shape[-1]} samples"
            checks.require(wave.shape[-1] >= self.n_fft, "Spectrogram", found, f"at least n_fft = {self.n_fft}")
        rows = wave.reshape(-1, wave.shape[-1])
        power = power_spectrogram(
            rows, window, self.n_fft, self.hop_length, center=self.center, pad_mode=self.pad_mode
        )
        if self.normalized == "frame_length":
            power = power / self.n_fft
        elif self.normalized:
            power = power / self.window.square().sum()
        return power.mT.reshape(*wave.shape[:-1], power.shape[2], power.shape[1])
