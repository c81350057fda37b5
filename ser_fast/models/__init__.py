"""The two papers' models, and what they are compared with. Each takes waveforms with lengths and returns logits."""

from ser_fast.models.baselines import Baseline
from ser_fast.models.bigru_mha import BiGRUMHA
from ser_fast.models.cgru import CGRU
from ser_fast.models.frame_model import FrameModel
from ser_fast.models.functionals import Functionals

MODELS = {"cgru": CGRU, "bigru_mha": BiGRUMHA, "baseline": Baseline, "functionals": Functionals}

__all__ = ["CGRU", "MODELS", "Baseline", "BiGRUMHA", "FrameModel", "Functionals"]
