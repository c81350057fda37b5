"""Every instruction set the processor has runs the same kernels to the same accuracy; bfloat16 too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from samples import assert_as_accurate
from selection import important
from torch import nn

import ser_fast
from ser_fast import backends

SETS = ("portable", "avx2", "avx512", "avx512_bf16")
BELOW = SETS[: SETS.index(backends.instruction_set)] if backends.instruction_set in SETS else ()


def run(code: list[str], cpu: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, cwd=Path(__file__).parents[1],
                          env=os.environ | {"SER_FAST_CPU": cpu})  # fmt: skip


@pytest.mark.parametrize("cpu", important(BELOW, 1))
def test_older_instruction_sets_pass_the_contracts(cpu):
    wanted = "kernel_equals or gradients_equal or float32_is or equals_nn_gru or bfloat16 or int8"
    files = ["ops/test_contracts.py", "ops/test_gru_layer.py", "ops/test_gru_layer_int8.py", "backends/test_cpu.py",
             "nn/test_gru.py"]  # fmt: skip
    result = run(["-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *files, "-k", wanted], cpu)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-2000:]


@pytest.mark.usefixtures("needs_kernels")
def test_instruction_set_is_read_from_the_environment():
    shown = run(["-c", "import ser_fast; print(ser_fast.backends.instruction_set)"], "portable")
    assert shown.stdout.strip() == "portable"
    refused = run(["-c", "import ser_fast"], "sse9")
    assert "SER_FAST_CPU is 'sse9'; on this processor it must be one of portable" in refused.stderr


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("hidden", "frames"), [(1, 3), (33, 40), (129, 20), (64, 200)])
def test_bfloat16_is_as_accurate_as_torch(hidden, frames, bidirectional):
    """Against float64 on the same rounded inputs and weights, outputs and gradients."""
    theirs = nn.GRU(17, hidden, bidirectional=bidirectional, dtype=torch.bfloat16)
    ours = ser_fast.GRU(17, hidden, bidirectional=bidirectional, dtype=torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    truth = nn.GRU(17, hidden, bidirectional=bidirectional, dtype=torch.float64)
    truth.load_state_dict(theirs.state_dict())
    x = torch.randn(frames, 11, 17).bfloat16()
    results = []
    for module, given in ((ours, x), (theirs, x), (truth, x.double())):
        given = given.clone().requires_grad_()
        y, h_n = module(given)
        (y.square().sum() + h_n.sum()).backward()
        results.append([y, h_n, given.grad, *(weight.grad for weight in module.parameters())])
    names = ["y", "h_n", "x", *(name for name, _ in ours.named_parameters())]
    for name, *found in zip(names, *results):
        assert_as_accurate(*found, what=name)


@pytest.mark.parametrize("reset_after", [True, False])
def test_bfloat16_reset_before_is_near_float64(reset_after):
    """h is rounded to 8 bits before each product: an error of some 2^-8 a step, which the gates damp."""
    module = ser_fast.GRU(17, 65, reset_after=reset_after, dtype=torch.bfloat16)
    exact = ser_fast.GRU(17, 65, reset_after=reset_after, dtype=torch.float64)
    exact.load_state_dict(module.state_dict())
    x = torch.randn(50, 5, 17).bfloat16()
    lengths = torch.tensor([50, 1, 0, 33, 7])
    for one, other in zip(module(x, lengths=lengths), exact(x.double(), lengths=lengths)):
        assert (one.double() - other).abs().max() < 4 * 2**-8


@pytest.mark.usefixtures("needs_kernels")
def test_bfloat16_autocast_runs_gru_in_bfloat16():
    module = ser_fast.GRU(9, 16, batch_first=True)
    x, lengths = torch.randn(3, 20, 9), torch.tensor([20, 0, 11])
    exact, _ = module(x, lengths=lengths)
    with torch.autocast("cpu", torch.bfloat16):
        y, h_n = module(x, lengths=lengths)
        y.float().square().sum().backward()
    assert y.dtype == h_n.dtype == torch.bfloat16 and (y - exact).abs().max() < 4 * 2**-8
    assert all(weight.grad.dtype == torch.float32 and weight.grad.any() for weight in module.parameters())
