"""FLOP counts of ``torch.utils.flop_counter`` against those of torch's own modules."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ser_fast
from ser_fast.functional import self_attention
from ser_fast.ops import power_spectrogram


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def counts(module: nn.Module, *args) -> tuple[int, int]:
    """Return the FLOPs of a forward, and with its backward."""

    def train():
        sum(part.sum() for part in module(*args)).backward()

    return flops(lambda: module(*args)), flops(train)


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"bidirectional": True, "batch_first": True}])
def test_gru_counts_like_nn_gru(options, state):
    torch_gru = nn.GRU(5, 4, **options)
    states = [torch.randn(2 if len(options) else 1, 3, 4, requires_grad=True)] if state else []
    batch = (3, 7, 5) if options.get("batch_first") else (7, 3, 5)
    args = torch.randn(batch, requires_grad=True), *states
    wanted = counts(torch_gru, *args)
    ser_fast.swap(torch_gru)
    assert counts(torch_gru, *args) == wanted and wanted[0] > 0


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bias": False}, {"bidirectional": True}])
def test_gru_inference_counts_like_nn_gru(options):
    theirs, ours = nn.GRU(5, 4, **options), ser_fast.GRU(5, 4, **options)
    cell, x = ser_fast.GRUCell(5, 4), torch.randn(7, 3, 5)
    with torch.no_grad():
        assert flops(lambda: ours(x)) == flops(lambda: theirs(x)) > 0
        assert flops(lambda: cell(x[0])) == flops(lambda: nn.GRUCell(5, 4)(x[0])) > 0
        ser_fast.quantize(ours)
        assert flops(lambda: ours(x)) == flops(lambda: theirs(x))


def test_gru_counts_packed_frames_alone():
    x, lengths = torch.randn(3, 7, 5), torch.tensor([7, 2, 4])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    module = ser_fast.GRU(5, 4, batch_first=True)
    wanted = flops(lambda: nn.GRU(5, 4, batch_first=True)(packed))
    assert flops(lambda: module(packed)) == wanted


def test_gru_without_reset_after_counts_the_same():
    x = torch.randn(7, 3, 5)
    assert counts(ser_fast.GRU(5, 4, reset_after=False), x) == counts(ser_fast.GRU(5, 4), x)


def test_attention_pool_counts_its_products():
    pool, h = ser_fast.AttentionPool(8), torch.randn(2, 5, 8, requires_grad=True)
    assert flops(lambda: pool(h)) == 2 * 2 * 5 * 8 * 2
    assert flops(lambda: pool(h).sum().backward()) == 3 * 2 * 2 * 5 * 8 * 2


def test_self_attention_counts_its_products():
    qkv, product = torch.randn(2, 5, 3, 4, 8, requires_grad=True), 2 * 2 * 4 * 5 * 5 * 8
    assert flops(lambda: self_attention(qkv)) == 2 * product
    assert flops(lambda: self_attention(qkv).sum().backward()) == (2 + 5) * product
    assert flops(lambda: self_attention(qkv[:, :, :2]).sum().backward()) == (1 + 3) * product
    packed, lengths = qkv.flatten(0, 1), torch.tensor([5, 5])
    assert flops(lambda: self_attention(packed, lengths)) == 2 * product


def test_power_spectrogram_counts_its_transforms():
    wave, window = torch.randn(2, 100, requires_grad=True), torch.ones(64)
    args = window, 64, 12
    frames, transform = 2 * 4, 5 * 64 * 6 // 2
    assert flops(lambda: power_spectrogram.power_spectrogram(wave, *args)) == frames * transform
    assert flops(lambda: power_spectrogram.power_spectrogram(wave, *args).sum().backward()) == 3 * frames * transform
    out = torch.empty(2, 4, 33)
    assert flops(lambda: power_spectrogram.power_spectrogram(wave.detach(), *args, out=out)) == frames * transform


@pytest.mark.parametrize("order", ["ser_fast, torch.utils.flop_counter", "torch.utils.flop_counter, ser_fast"])
def test_formulas_are_registered_in_both_orders(order):
    """Importing torch's counter imports Triton, so that ``import ser_fast`` alone must not do it."""
    code = f"""
import sys, torch
import {order.split(", ")[0]}
assert {order.startswith("torch")} == ("torch.utils.flop_counter" in sys.modules)
import {order.split(", ")[1]}
with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
    ser_fast.AttentionPool(8)(torch.randn(2, 5, 8))
assert counter.get_total_flops() == 320
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_conv_pool_counts_like_conv2d_and_its_winners():
    x, weight = torch.randn(2, 6, 4, 3, requires_grad=True), torch.randn(5, 3, 5, 3, requires_grad=True)
    dense = flops(lambda: nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, padding="same"))
    assert flops(lambda: ser_fast.functional.conv_pool(x, weight)) == dense > 0
    # A quarter of the pixels, for two gradients.
    assert flops(lambda: ser_fast.functional.conv_pool(x, weight).sum().backward()) == dense + dense // 2
    assert flops(lambda: ser_fast.functional.conv_pool(x.detach(), weight).sum().backward()) == dense + dense // 4
