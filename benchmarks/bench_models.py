"""Training step of both models, from waveforms to updated weights, against the same models with torch's layers.

The peers have the torch.stft chain, nn.GRU or nn.LSTM and eager pooling in place of this package's ops; everything
else is shared. "Padded" computes the padding too, "packed" packs and unpacks around the recurrence. A step is that of
Trainer: forward, loss, backward, clipping, Adam. Its parts are timed within the same steps as the whole.
"""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from harness import EMODB_FRAMES, check
from torch import Tensor, nn

import ser_fast
from ser_fast.models.cgru import DYNAMIC_RANGE
from ser_fast.models.convolution import halve, quarter
from ser_fast.models.peers import ReferenceRecurrence, with_recurrence, with_torch
from ser_fast.ops import gray_deltas
from ser_fast.ops.lengths import frame_mask

MODELS = {"CGRU": ser_fast.CGRU, "BiGRU-MHA": ser_fast.BiGRUMHA}
BATCHES = (64, 32)  # the papers' sizes, CGRU's first
CLASSES, LEARNING_RATE, CLIP = 7, 1e-3, 5.0  # Emo-DB's classes; TrainConfig's defaults
TOLERANCE, GRADIENTS = 1e-5, 1e-2  # gradients: rounding may switch a ReLU or a maximum


class TorchSpectrogram(nn.Module):
    """Log power spectrogram by torch.stft, cropped before the squared modulus."""

    def __init__(self, ours: ser_fast.PowerSpectrogram):
        super().__init__()
        self.ours = ours

    def forward(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        ours = self.ours
        # stft centres the window in n_fft; padding gives frames of win_length. |X|² does not depend on the shift.
        beside = ours.n_fft - ours.win_length
        wave = F.pad(wave, (beside // 2, beside - beside // 2))
        spectrum = torch.stft(wave, ours.n_fft, ours.hop_length, ours.win_length, ours.window, center=False,
                              return_complex=True)  # fmt: skip
        power = spectrum[:, slice(*ours.bins)].abs().square().transpose(1, 2)
        x = power.clamp(min=ours.floor).log()
        if ours.normalize:
            x = (x - ours.mean) / ours.std
        lengths = ours.frame_lengths(lengths)
        return x.masked_fill(~frame_mask(lengths, x.shape[1])[..., None], 0), lengths


class EagerPool(nn.Module):
    """Attention pooling in eager torch."""

    def __init__(self, ours: ser_fast.AttentionPool):
        super().__init__()
        self.weight = ours.weight

    def forward(self, h: Tensor, lengths: Tensor, return_weights: bool) -> tuple[Tensor, Tensor]:
        scores = (h @ self.weight).masked_fill(~frame_mask(lengths, h.shape[1]), -torch.inf)
        weights = torch.softmax(scores, 1)
        return (weights[:, None] @ h).squeeze(1), weights


def convolve_and_recur(model: ser_fast.CGRU, x: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Replacement of CGRU's method by torch's convolutions and pooling, row by row, the fastest order."""

    def convolve(x: Tensor, lengths: Tensor) -> Tensor:
        image = gray_deltas.reference(x, DYNAMIC_RANGE, lengths).permute(0, 3, 1, 2).to(dtype)
        pairs = torch.cat([image[:, :2], image[:, 1:]]).contiguous(memory_format=torch.channels_last)
        x = halve(F.conv2d(pairs, model.conv1.conv.weight, model.conv1.conv.bias, padding=(2, 1)), lengths.repeat(2))
        x = torch.maximum(*x.unflatten(0, (2, -1)))
        x = halve(F.conv2d(x, model.conv2.weight, model.conv2.bias, padding=(2, 1)), (lengths + 1) // 2)
        return x.transpose(1, 2).flatten(2)

    return model._recur(*quarter(convolve, x, lengths))


def eager(model: nn.Module) -> nn.Module:
    """Return a copy of the model with torch's ops in place of ours, except the recurrence."""
    twin = copy.deepcopy(model)
    if isinstance(twin, ser_fast.CGRU):
        twin._convolve_and_recur = MethodType(convolve_and_recur, twin)
    twin.spectrogram = TorchSpectrogram(twin.spectrogram)
    if twin.pool is not None:
        twin.pool = EagerPool(twin.pool)
    return twin


class Clock:
    """Measures the time of each part of a model within training steps, forward and backward.

    A part's backward starts when the gradient of its output is computed and ends with the gradient of its input. On a
    GPU every switch between parts synchronizes.
    """

    def __init__(self, model: nn.Module):
        self.on_cuda = next(model.parameters()).is_cuda
        self.steps: list[dict[str, float]] = []
        parts = {"spectrogram": ["spectrogram"], "convolution": ["conv1", "conv2"], "recurrence": ["rnn"],
                 "attention": ["attention", "pool"]}  # fmt: skip
        for part, names in parts.items():
            for name in names:
                if getattr(model, name, None) is not None:
                    self._watch(getattr(model, name), part)

    def _watch(self, module: nn.Module, part: str) -> None:
        def enter(_, arguments: tuple) -> tuple:
            x, *others = arguments
            if x.requires_grad:
                x = x.view_as(x)  # own graph node: x may be the output of another part, whose hook must not fire here
                x.register_hook(lambda _: self.switch("other"))
            self.switch(part)
            return x, *others

        def leave(_, arguments: tuple, output) -> None:
            self.switch("other")
            y = output[0] if isinstance(output, tuple) else output
            if y.requires_grad:
                y.register_hook(lambda _: self.switch(part))

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def now(self) -> float:
        """Return the time in seconds, after all work of the GPU."""
        if self.on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(self) -> None:
        """Start a step."""
        self.steps.append(defaultdict(float))
        self.part, self.since = "other", self.now()

    def switch(self, part: str) -> None:
        """Attribute the time since the last switch to the current part and make ``part`` the current one."""
        if not self.steps:
            return  # called outside a step
        now = self.now()
        self.steps[-1][self.part] += now - self.since
        self.part, self.since = part, now

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each part, without the first step (warm-up)."""
        steps = self.steps[1:]
        return {part: statistics.median(step[part] for step in steps) for part in steps[0]}


def training_step(
    model: nn.Module, clock: Clock | None, wave: Tensor, lengths: Tensor, labels: Tensor
) -> Callable[[], None]:
    """Return a call that does one training step, with its parts timed by ``clock``."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, capturable=wave.is_cuda)

    def step() -> None:
        if clock:
            clock.begin()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(wave, lengths), labels).backward()
        if clock:
            clock.switch("optimiser")
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if clock:
            clock.switch("none")

    return step


def logits_and_gradients(model: nn.Module, wave: Tensor, lengths: Tensor, labels: Tensor) -> list[Tensor]:
    """Return logits and, of 4 rows, gradients, without dropout; the backward of the reference is slow."""
    model.eval()
    with torch.inference_mode():
        logits = model(wave, lengths)
    few = slice(4)
    loss = F.cross_entropy(model(wave[few], lengths[few]), labels[few])
    grads = torch.autograd.grad(loss, list(model.parameters()))
    model.train()
    return [logits, *grads]


def voices(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return waves of noise with the lengths of Emo-DB, their lengths and random labels."""
    lengths = torch.tensor((EMODB_FRAMES * (batch // 32 + 1))[:batch]) * 160 + 480
    wave = torch.randn(batch, int(lengths.max()))
    wave[~frame_mask(lengths, wave.shape[1])] = 0
    return wave, lengths, torch.randint(CLASSES, (batch,))


def fresh(name: str, wave: Tensor, lengths: Tensor, **options) -> nn.Module:
    """Return a new model, normalised by the statistics of the waves."""
    ours = MODELS[name](CLASSES, **options)
    if name == "BiGRU-MHA":
        spectrogram, frames = ours.spectrogram(wave, lengths)
        valid = spectrogram[frame_mask(frames, spectrogram.shape[1])]
        ours.spectrogram.set_statistics(valid.mean(0), valid.std(0))
    return ours


def by_reference(ours: nn.Module) -> nn.Module:
    """Return a copy that computes everything in plain torch."""
    return with_recurrence(eager(ours), ReferenceRecurrence(ours.rnn))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def bench_training_step(compare, name, batch):
    """Training step, from waveforms to updated weights.

    Ours has its default, the papers' GRU (``reset_after=False``), which torch does not have.
    """
    arguments = voices(batch)
    ours = fresh(name, *arguments[:2])
    case = f"{name}, B={batch}, {min(EMODB_FRAMES) / 100:.1f}..{max(EMODB_FRAMES) / 100:.1f} s"
    found, exact = (logits_and_gradients(model, *arguments) for model in (ours, by_reference(ours)))
    error = check(case, found[0], exact[0], TOLERANCE)
    check(f"{case}, gradients", found[1:], exact[1:], GRADIENTS)

    models = {"ours": ours} | with_torch(eager(ours))
    clocks = {kind: Clock(model) for kind, model in models.items()}
    steps = {kind: training_step(models[kind], clock, *arguments) for kind, clock in clocks.items()}
    info = compare(case, steps.pop("ours"), steps, fewest=3, error=error, tolerance=TOLERANCE)
    info["parts"] = {kind: clock.medians() for kind, clock in clocks.items()}
