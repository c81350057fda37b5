"""Modules: the ops behind ``nn.Module`` with parameters or buffers, and ``swap``, which puts them into a model."""

from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.nn.gru_cell import GRUCell
from ser_fast.nn.mel_spectrogram import MelSpectrogram
from ser_fast.nn.power_spectrogram import PowerSpectrogram, SpectrogramStream
from ser_fast.nn.quantizing import QuantizedGRU, quantize
from ser_fast.nn.swapping import SwapReport, swap, to_torch, unswap

__all__ = ["GRU", "AttentionPool", "GRUCell", "MelSpectrogram", "PowerSpectrogram", "QuantizedGRU",
           "SpectrogramStream", "SwapReport", "quantize", "swap", "to_torch", "unswap"]  # fmt: skip
