"""The ops as functions, like ``torch.nn.functional``."""

from ser_fast.ops import flops, gru_layer_int8  # noqa: F401  it and its imports define ops that flops counts
from ser_fast.ops.attention_pool import attention_pool
from ser_fast.ops.conv_pool import conv_pool
from ser_fast.ops.gru import gru
from ser_fast.ops.mel import mel_filters
from ser_fast.ops.power_spectrogram import power_spectrogram
from ser_fast.ops.self_attention import self_attention

__all__ = ["attention_pool", "conv_pool", "gru", "mel_filters", "power_spectrogram", "self_attention"]

flops.register()
