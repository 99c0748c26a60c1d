"""Errors that a user can cause: each says what is wrong, where, and what to do.

The commands end with exit code 2 and the message alone; any other exception is an
internal fault and keeps its traceback.
"""


class SegdetError(Exception):
    """A user's mistake; the message names the file, record or key and the next step."""


class ConfigError(SegdetError):
    """A config file, key or value that cannot be used."""


class DataError(SegdetError):
    """An image or annotation that cannot be used."""


class CheckpointError(SegdetError):
    """A weight file that cannot be read or does not fit the model."""
