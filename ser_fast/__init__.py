"""Fused GRU, attention pooling and power spectrogram kernels for speech emotion recognition."""

from ser_fast import backends, functional
from ser_fast.attention_pool import AttentionPool
from ser_fast.gru_module import GRU, GRUCell
from ser_fast.mel import MelSpectrogram
from ser_fast.models import CGRU, BiGRUMHA
from ser_fast.power_spectrogram import PowerSpectrogram
from ser_fast.swapping import swap, unswap

__version__ = "0.1.0"
__all__ = ["CGRU", "GRU", "AttentionPool", "BiGRUMHA", "GRUCell", "MelSpectrogram", "PowerSpectrogram", "backends",
           "functional", "swap", "unswap"]  # fmt: skip

backends.load()
