"""Check an installed ser_fast with torch alone: `python tests/smoke.py`, from any folder, in seconds.

pytest tests the sources; this checks that a wheel is complete and that its kernels work with the installed Python and
torch.
"""

import pickle
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ser_fast
from ser_fast import backends
from ser_fast.ops import attention_pool, gru, power_spectrogram

# This folder's triton/ must not be taken for the package of that name, which may be missing.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]


def check_install() -> None:
    assert backends.loaded, backends.reason
    folder = Path(ser_fast.__file__).parents[1]
    assert folder.name in ("site-packages", "dist-packages"), f"ser_fast is in {folder}; it must be in site-packages"
    for op in backends.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ser_fast::{op}", "CPU"), f"{op} has no CPU kernel"
    print(f"python {platform.python_version()}, torch {torch.__version__}, ser_fast {ser_fast.__version__}")
    print(f"CPU kernels for {backends.instruction_set}; CUDA kernels {backends.build_info()['cuda']}")
    # -m searches the current folder first, so it must not be that of the sources.
    command = [sys.executable, *(f"-W{option}" for option in sys.warnoptions), "-m", "ser_fast", "info"]
    shown = subprocess.run(command, cwd=sys.prefix, capture_output=True, text=True)
    assert shown.returncode == 0 and re.search("^loaded +yes$", shown.stdout, re.M), shown.stdout + shown.stderr


def results(outputs: Tensor | tuple[Tensor, ...], inputs: list[Tensor]) -> list[Tensor]:
    """Return the outputs, and the gradients of the sum of their squares."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    gradients = torch.autograd.grad(sum(y.square().sum() for y in outputs), inputs)
    return [tensor.detach() for tensor in (*outputs, *gradients)]


def compare(name: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Check that each result is within 200 roundings of its largest value; correct sums stay far below that."""
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        error = float((one - other).abs().max() / other.abs().max())
        allowed = 200 * torch.finfo(other.dtype).eps
        assert error <= allowed, (
            f"{name}: result {number} in {other.dtype} differs by {error:.1e}; at most {allowed:.1e} is allowed"
        )


def check_gru(dtype: torch.dtype) -> None:
    options = {"batch_first": True, "bidirectional": True, "dtype": dtype}
    theirs, ours = nn.GRU(5, 37, 2, **options), ser_fast.GRU(5, 37, 2, **options)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(4, 11, 5, dtype=dtype, requires_grad=True), torch.tensor([11, 2, 7, 1])

    def run(module: nn.Module, packed: bool) -> list[Tensor]:
        given = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) if packed else x
        y, h_n = module(given)
        y = pad_packed_sequence(y, batch_first=True)[0] if packed else y
        return results((y, h_n), [x, *module.parameters()])

    padded, ragged = run(theirs, packed=False), run(theirs, packed=True)
    compare("GRU, padded", run(ours, packed=False), padded)
    compare("GRU, packed", run(ours, packed=True), ragged)
    compare("GRU, lengths", results(ours(x, lengths=lengths), [x, *ours.parameters()]), ragged)
    compare("GRU, pickled", run(pickle.loads(pickle.dumps(ours)), packed=False), padded)
    model = nn.Sequential(theirs)
    assert list(ser_fast.swap(model).replaced) == ["0"] and type(theirs) is ser_fast.GRU, "swap left nn.GRU"
    compare("GRU, swapped", run(theirs, packed=True), ragged)
    assert ser_fast.unswap(model) == ["0"] and type(theirs) is nn.GRU, "unswap left ser_fast.GRU"
    compare("GRU, unswapped", run(theirs, packed=True), ragged)


def check_ops(dtype: torch.dtype) -> None:
    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, dtype=dtype)).requires_grad_()

    lengths = torch.tensor([13, 0, 5])
    inputs = random(13, 3, 2, 3 * 19), random(2, 3 * 19, 19, scale=0.2), random(2, 3 * 19), random(2, 3, 19)
    for reset_after in (False, True):
        found = gru.gru(*inputs, lengths, reset_after=reset_after)
        expected = gru.reference(*inputs, lengths, reset_after)[:2]
        compare(f"gru, reset_after={reset_after}", results(found, inputs), results(expected, inputs))
    inputs = random(3, 13, 70), random(70, scale=0.1)
    found, expected = (pool(*inputs, lengths) for pool in (attention_pool.attention_pool, attention_pool.reference))
    compare("attention_pool", results(found, inputs), results(expected, inputs))
    wave, window = random(3, 2000), torch.hamming_window(400, dtype=dtype)
    sizes, lengths = (512, 160), torch.tensor([2000, 700, 300])
    found = power_spectrogram.power_spectrogram(wave, window, *sizes, (3, 200), lengths, log=True, floor=1.0)
    expected = power_spectrogram.reference(wave, window, *sizes, 3, 200, lengths, log=True, floor=1.0)
    compare("power_spectrogram, log", results(found, [wave]), results(expected, [wave]))
    found = power_spectrogram.power_spectrogram(wave, window, *sizes, center=True)
    expected = torch.stft(wave, *sizes, 400, window, return_complex=True).abs().square().mT
    compare("power_spectrogram, centred", results(found, [wave]), results(expected, [wave]))


def check_training(model: nn.Module) -> None:
    """Check that a few steps on one batch, without dropout, lower its loss."""
    wave, lengths, labels = torch.randn(4, 8000), torch.tensor([8000, 3000, 8000, 5000]), torch.arange(4)
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(wave, lengths), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0], f"{type(model).__name__} did not learn; its losses: {losses}"


torch.manual_seed(0)
check_install()
for dtype in (torch.float32, torch.float64):
    check_gru(dtype)
    check_ops(dtype)
check_training(ser_fast.CGRU(4, dropout=0))
check_training(ser_fast.BiGRUMHA(4, dropout=0, attention_dropout=0))
print(f"smoke test passed: python {platform.python_version()}, torch {torch.__version__}")
