"""Fused GRU, attention pooling and power spectrogram kernels for speech emotion recognition."""

from ser_fast import backends, functional
from ser_fast._version import __version__ as __version__
from ser_fast.models import CGRU, BiGRUMHA
from ser_fast.nn.attention_pool import AttentionPool
from ser_fast.nn.gru import GRU
from ser_fast.nn.gru_cell import GRUCell
from ser_fast.nn.mel_spectrogram import MelSpectrogram
from ser_fast.nn.power_spectrogram import PowerSpectrogram
from ser_fast.nn.swapping import swap, unswap

__all__ = ["CGRU", "GRU", "AttentionPool", "BiGRUMHA", "GRUCell", "MelSpectrogram", "PowerSpectrogram", "backends",
           "functional", "swap", "unswap"]  # fmt: skip

backends.load()
