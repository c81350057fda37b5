"""Training step of both models, from waveforms to updated weights, against the same models with torch's recurrences.

"torch GRU" and "torch LSTM" are networks of torch's layers alone, what a user has today; "LSTM on our kernels" is our
model with nn.LSTM in place of its GRU, which tells what the cell brings from what the other kernels bring. "Padded"
computes the padding too, as that LSTM does; "packed" packs and unpacks around the recurrence. A step is that of
Trainer: forward, loss, backward, clipping, Adam. Its parts are timed within the same steps as the whole.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from harness import EMODB_FRAMES, check
from torch import Tensor, nn

import ser_fast
from ser_fast.models.peers import ReferenceRecurrence, with_recurrence, with_torch
from ser_fast.models.plain import plain
from ser_fast.ops.lengths import frame_mask

MODELS = {"CGRU": ser_fast.CGRU, "BiGRU-MHA": ser_fast.BiGRUMHA}
BATCHES = (64, 32)  # the papers' sizes, CGRU's first
CLASSES, LEARNING_RATE, CLIP = 7, 1e-3, 5.0  # Emo-DB's classes; TrainConfig's defaults
# Calls of the models by part of a step.
PARTS = {
    "spectrogram": ["spectrogram.forward"],
    "convolution": ["_convolve", "conv1.forward", "conv2.forward"],
    "recurrence": ["rnn.forward"],
    "attention": ["attention.forward", "pool.forward"],
}
TOLERANCE, GRADIENTS = 1e-5, 1e-2  # gradients: rounding may switch a ReLU or a maximum


class Clock:
    """Measures the time of each part of a model within training steps, forward and backward.

    A part's backward starts when the gradient of its output is computed and ends with the gradient of its input. On a
    GPU every switch between parts synchronizes.
    """

    def __init__(self, model: nn.Module):
        self.on_cuda = next(model.parameters()).is_cuda
        self.steps: list[dict[str, float]] = []
        for part, calls in PARTS.items():
            for call in calls:
                owner, _, name = call.rpartition(".")
                found = getattr(model, owner, None) if owner else model
                if hasattr(found, name):
                    setattr(found, name, self._timed(getattr(found, name), part))

    def _timed(self, call: Callable, part: str) -> Callable:
        """Return the call, whose first argument and first result are tensors, with its time counted as the part's."""

        def timed(x: Tensor, *others, **named):
            if x.requires_grad:
                x = x.view_as(x)  # own graph node: x may be the output of another part, whose hook must not fire here
                x.register_hook(lambda _: self.switch("other"))
            self.switch(part)
            output = call(x, *others, **named)
            self.switch("other")
            y = output[0] if isinstance(output, tuple) else output
            if y.requires_grad:
                y.register_hook(lambda _: self.switch(part))
            return output

        return timed

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
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True, capturable=wave.is_cuda)

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
    return with_recurrence(plain(ours), ReferenceRecurrence(ours.rnn))


def peers_of(ours: nn.Module) -> dict[str, nn.Module]:
    """Return the models with torch's recurrences in plain torch, and with the faster LSTM, padded, on our kernels."""
    return with_torch(plain(ours)) | {"LSTM on our kernels": with_torch(ours)["torch LSTM, padded"]}


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

    models = {"ours": ours} | peers_of(ours)
    clocks = {kind: Clock(model) for kind, model in models.items()}
    steps = {kind: training_step(models[kind], clock, *arguments) for kind, clock in clocks.items()}
    info = compare(case, steps.pop("ours"), steps, fewest=3, error=error, tolerance=TOLERANCE)
    info["parts"] = {kind: clock.medians() for kind, clock in clocks.items()}
