"""The two papers' models. Each takes waveforms with lengths and returns logits."""

from ser_fast.models.bigru_mha import BiGRUMHA
from ser_fast.models.cgru import CGRU

MODELS = {"cgru": CGRU, "bigru_mha": BiGRUMHA}

__all__ = ["CGRU", "MODELS", "BiGRUMHA"]
