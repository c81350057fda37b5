"""A cache of features of utterances."""

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from ser_fast.data.budget import available_memory

KEPT_BYTES = 1 << 30  # in any case: 5000 utterances at seven speeds of the recipe own_gru, 10 000 of own
KEPT_SHARE = 0.25  # of the memory that is available to the process
TENSOR_BYTES = 512  # that a tensor takes beside its values


class FeatureCache:
    """Named groups of features by a key, such as an utterance's number and the options of the computation.

    The cache is emptied before it would hold more than :data:`KEPT_BYTES` or, where that is more, a quarter of the
    available memory: entries of options that are no longer used must not keep others out.
    """

    def __init__(self):
        self.entries: dict[Hashable, dict[str, Tensor]] = {}
        self.bytes = 0

    def get(
        self, key: Hashable, names: Sequence[str], compute: Callable[[list[str]], dict[str, Tensor]]
    ) -> list[Tensor]:
        """Return the named groups of features of a key.

        Args:
            key: identifies the input and the options of the computation.
            names: the groups.
            compute: called with the names that are not cached; returns their features.
        """
        known = self.entries.get(key, {})
        missing = [name for name in names if name not in known]
        if missing:
            known = self._add(key, known | compute(missing))
        return [known[name] for name in names]

    def _add(self, key: Hashable, groups: dict[str, Tensor]) -> dict[str, Tensor]:
        self.bytes -= _size(self.entries.pop(key, {}))
        wanted = self.bytes + _size(groups)
        if wanted > KEPT_BYTES and wanted > KEPT_SHARE * (available_memory() + self.bytes):
            self.entries, self.bytes = {}, 0
        self.entries[key] = groups
        self.bytes += _size(groups)
        return groups


def _size(groups: dict[str, Tensor]) -> int:
    return sum(values.nbytes + TENSOR_BYTES for values in groups.values())
