"""Models: waveform to logits; torch alone.

Every model takes waveforms ``[B, N]`` and lengths ``[B]`` in samples and returns logits ``[B, num_classes]``; see
:class:`FrameModel` for the call. :data:`MODELS` maps the names of ``--model`` to the classes.
"""

from ser_fast.models.baselines import Baseline
from ser_fast.models.bigru_mha import BiGRUMHA
from ser_fast.models.cgru import CGRU
from ser_fast.models.descriptor_gru import DescriptorGRU
from ser_fast.models.frame_model import FrameModel
from ser_fast.models.functionals import Functionals
from ser_fast.models.plain import PlainBiGRUMHA, PlainCGRU

MODELS = {
    "cgru": CGRU,
    "bigru_mha": BiGRUMHA,
    "baseline": Baseline,
    "functionals": Functionals,
    "descriptor_gru": DescriptorGRU,
    "plain_cgru": PlainCGRU,
    "plain_bigru_mha": PlainBiGRUMHA,
}

__all__ = ["CGRU", "MODELS", "Baseline", "BiGRUMHA", "DescriptorGRU", "FrameModel", "Functionals"]
