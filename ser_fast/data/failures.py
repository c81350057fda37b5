"""Summaries of many files that cannot be read."""

import re
from collections import Counter
from collections.abc import Iterable

_SHOWN = 5


def summarise(errors: Iterable[object]) -> list[str]:
    """Return the first five errors and, if there are more, the number of each reason.

    Args:
        errors: errors or messages of the form ``FILE: REASON``, such as those of
            :class:`ser_fast.data.wav.AudioError`. Reasons that differ in numbers only are one.

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
    messages = [str(error) for error in errors]
    if len(messages) <= _SHOWN:
        return messages
    return [*messages[:_SHOWN], f"and {len(messages) - _SHOWN} more; by reason:", *by_reason(messages)]


def by_reason(messages: Iterable[str]) -> list[str]:
    """Return the number of each reason, the most frequent first."""
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "N", message.partition(": ")[2] or message) for message in messages)
    lines = [f"{count} {reason}" for reason, count in reasons.most_common(_SHOWN)]
    return lines + ([f"{len(reasons) - _SHOWN} other reasons"] if len(reasons) > _SHOWN else [])
