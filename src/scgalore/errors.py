"""The errors scgalore raises on purpose.

Each says what was found, what was expected and what to call. All of them subclass the built-in error a scanpy user
would catch: :class:`ValueError`, :class:`KeyError`, :class:`OSError` or :class:`ConnectionError`.
"""

__all__ = ["DataError", "DiskError", "DownloadError", "MissingKeyError", "OptionError", "WeightsError"]


class DataError(ValueError):
    """The data cannot be used for what was asked."""


class OptionError(ValueError):
    """An argument has a value outside its choices or range."""


class DiskError(OptionError, OSError):
    """Files cannot be written where they were asked for: the disk is full, or the place is not writable."""


class MissingKeyError(KeyError):
    """A slot of the AnnData or MuData lacks the named key."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which turns a sentence into a quoted, escaped string.
        return str(self.args[0]) if self.args else ""


class WeightsError(ValueError):
    """A checkpoint folder or file is incomplete, damaged or does not fit the network."""


class DownloadError(ConnectionError):
    """Weights or data could not be fetched."""
