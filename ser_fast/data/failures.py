"""Many files that cannot be read: few of them, the number of each reason, and the whole list in a file."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from ser_fast.data.files import printable, write_atomically
from ser_fast.data.wav import AudioError

_SHOWN = 5
_NUMBER = r"(?<![a-z])\d+(\.\d+)?(e[+-]?\d+)?"  # not that of .mp3
_PULL = "; run `git lfs pull` in its repository"
POINTER = f"a Git LFS pointer instead of audio{_PULL}"
LIST = "unreadable.txt"  # in the folder of a run that left files out


class UnreadableError(AudioError):
    """Several utterances cannot be read; the message shows five and counts the reasons.

    Attributes:
        errors: the message of each, ``FILE: REASON``.
    """

    errors: tuple[str, ...] = ()


class Tally:
    """Counts errors as they come; keeps the first five and the number of each reason.

    Errors, or their messages, have the form ``FILE: REASON``, such as those of
    :class:`ser_fast.data.wav.AudioError`. Reasons that differ in numbers only are one.

    Args:
        errors: the first errors.

    Attributes:
        count: number of errors.
        first: messages of the first five.
        reasons: number of errors of each reason.
    """

    def __init__(self, errors: Iterable[object] = ()):
        self.count, self.first, self.reasons = 0, [], Counter()
        for error in errors:
            self.add(error)

    def add(self, error: object) -> None:
        """Count an error."""
        message = str(error)
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(message)
        self.reasons[re.sub(_NUMBER, "N", message.partition(": ")[2] or message)] += 1

    def merge(self, other: "Tally") -> None:
        """Count the errors of another tally."""
        self.count += other.count
        self.first += other.first[: _SHOWN - len(self.first)]
        self.reasons.update(other.reasons)

    def by_reason(self) -> list[str]:
        """Return the number of each reason, the most frequent first."""
        lines = [f"{count} {reason}" for reason, count in self.reasons.most_common(_SHOWN)]
        rest = len(self.reasons) - _SHOWN
        return lines + ([f"{rest} other reasons"] if rest > 0 else [])

    def lines(self) -> list[str]:
        """Return the first five errors and, if there are more, the number of each reason."""
        more = self.count - len(self.first)
        if not more:
            return list(self.first)
        shown = [message.removesuffix(_PULL) for message in self.first]  # the reason says it once
        return [*shown, f"and {more} more; by reason:", *self.by_reason()]


def summarise(errors: Iterable[object]) -> list[str]:
    """Return :meth:`Tally.lines` of errors.

    Example:
        >>> for line in summarise(f"{i}.wav: truncated, {i} bytes less than its header says" for i in range(1, 8)):
        ...     print(line)
        1.wav: truncated, 1 bytes less than its header says
        2.wav: truncated, 2 bytes less than its header says
        3.wav: truncated, 3 bytes less than its header says
        4.wav: truncated, 4 bytes less than its header says
        5.wav: truncated, 5 bytes less than its header says
        and 2 more; by reason:
        7 truncated, N bytes less than its header says
    """
    return Tally(errors).lines()


def unreadable(errors: Iterable[AudioError], total: int, left: str = "") -> UnreadableError:
    """Return the error for a corpus with unreadable utterances.

    Args:
        errors: an error for each of them, at least one.
        total: number of utterances of the corpus.
        left: clause about what remains without them, or ``""``.
    """
    messages = tuple(map(str, errors))
    if len(messages) == total > 1 and all(message.endswith(POINTER) for message in messages):
        found = f"all {total} utterances, such as {messages[0].removesuffix(f': {POINTER}')}, are Git LFS pointers"
        return UnreadableError(f"{found} instead of audio{_PULL}")
    reasons = "".join(f"\n  {line}" for line in summarise(messages))
    error = UnreadableError(f"{len(messages)} of {total} utterances cannot be read{left}:{reasons}")
    error.errors = messages
    return error


def listing(errors: Iterable[object]) -> str:
    """Return the text of a file with all errors, one a line."""
    return "".join(f"{printable(error)}\n" for error in errors)


@contextlib.contextmanager
def listed(out: Path) -> Iterator[None]:
    """Write all errors of an :class:`UnreadableError` that shows only some to ``OUT.unreadable.txt``, and name it.

    The file lies beside the folder ``out`` of the run, which does not exist yet.
    """
    try:
        yield
    except UnreadableError as error:
        if len(error.errors) <= _SHOWN:
            raise
        path = out.with_name(f"{out.name}.{LIST}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, listing(error.errors).encode(errors="backslashreplace"))
            place = path
        except OSError as failure:
            place = f"{path} cannot be written ({failure.strerror})"
        raise UnreadableError(f"{error}\n  all of them: {place}") from error
