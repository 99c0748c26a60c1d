"""Errors that a user can cause: each says what is wrong, where, and what to do.

The commands end with exit code 2 and the message alone; any other exception is an
internal fault and keeps its traceback.
"""

import difflib
from collections.abc import Sequence


class SegdetError(Exception):
    """A user's mistake; the message names the file, record or key and the next step."""


class ConfigError(SegdetError):
    """A config file, key or value that cannot be used."""


class DataError(SegdetError):
    """An image or annotation that cannot be used."""


class CheckpointError(SegdetError):
    """A weight file that cannot be read or does not fit the model."""


class NonFiniteError(SegdetError, FloatingPointError):
    """A loss or gradient that is not finite."""


class MemoryLimitError(SegdetError):
    """A batch that does not fit into memory."""


class ProcessError(SegdetError):
    """A process of a run with several has died or hangs."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name.

    Returns:
        "; did you mean ...?", or "; known: ..." where nothing is near and the list is short.
    """
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(one or repr(one) for one in known)}" if len(known) <= 30 else ""
