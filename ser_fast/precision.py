"""Modules whose constants stay in full precision."""

from torch import nn

from ser_fast import checks


class FullPrecision(nn.Module):
    """Moves and casts its own buffers, but never to half precision, in which a power spectrogram overflows."""

    def _apply(self, fn, recurse=True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = getattr(self, name)
            if now.dtype in checks.HALF:
                setattr(self, name, value.to(now.device))
        return self
