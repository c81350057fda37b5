"""Training on features that are computed once per utterance."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ser_fast.data.augmentation import change_speed
from ser_fast.data.dataset import Dataset


class CachedFeatures:
    """Features of a part's utterances by a model, computed on first use and kept in the dataset.

    Epochs, folds and candidates that use the same dataset share them. Each utterance is computed alone.

    Args:
        model: a model with ``groups``, ``front_end`` and ``utterance_features``, such as
            :class:`ser_fast.models.functionals.Functionals`.
        dataset: its cache keeps the features.
        index: indices of the part's utterances in the dataset.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, index: Sequence[int]):
        self.model, self.cache = model, dataset.features
        self.numbers = [dataset.numbers[i] for i in index]

    def __call__(
        self, waves: Sequence[Tensor], index: Sequence[int], speeds: Sequence[float] | None = None
    ) -> list[Tensor]:
        """Return the features ``[D]`` of some utterances; D may differ between them.

        Args:
            waves: float32 ``[n]`` each, on the CPU; only those without cached features are read.
            index: position of each utterance in the part.
            speeds: speed factor of each utterance; 1 by default.
        """
        speeds = speeds or [1.0] * len(index)
        return [self._row(waves, place, self.numbers[i], speeds[place]) for place, i in enumerate(index)]

    def _row(self, waves: Sequence[Tensor], place: int, number: int, speed: float) -> Tensor:
        def compute(names: list[str]) -> dict[str, Tensor]:
            device = next(self.model.parameters()).device
            with torch.no_grad():
                found = self.model.utterance_features(change_speed(waves[place], speed).to(device), names)
            return {name: values.cpu() for name, values in found.items()}

        key = number, speed, self.model.front_end
        return torch.cat(self.cache.get(key, self.model.groups, compute))
