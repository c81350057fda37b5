"""Fused GRU, attention pooling and power spectrogram kernels for speech emotion recognition."""

from ser_fast import backends, functional
from ser_fast._version import __version__ as __version__
from ser_fast.models import CGRU, BiGRUMHA
from ser_fast.nn import (
    GRU,
    AttentionPool,
    GRUCell,
    MelSpectrogram,
    PowerSpectrogram,
    QuantizedGRU,
    SwapReport,
    quantize,
    swap,
    to_torch,
    unswap,
)

__all__ = ["CGRU", "GRU", "AttentionPool", "BiGRUMHA", "GRUCell", "MelSpectrogram", "PowerSpectrogram",
           "QuantizedGRU", "SwapReport", "backends", "functional", "quantize", "swap", "to_torch",
           "unswap"]  # fmt: skip

backends.load()
