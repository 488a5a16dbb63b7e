"""Exceptions raised by scgalore.

Each message states what was found, what was expected and what to call. All of them subclass the built-in exception a
scanpy user would catch: :class:`ValueError`, :class:`KeyError`, :class:`OSError` or :class:`ConnectionError`.
"""

__all__ = ["DataError", "DiskError", "DownloadError", "MissingKeyError", "OptionError", "UploadError", "WeightsError"]


class DataError(ValueError):
    """The data do not fit the requested analysis."""


class OptionError(ValueError):
    """An argument is not one of its choices or is outside its range."""


class DiskError(OptionError, OSError):
    """Files cannot be written: the disk is full, or the path is not writable."""


class MissingKeyError(KeyError):
    """A slot of the AnnData or MuData does not have the named key."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which turns a sentence into a quoted, escaped string.
        return str(self.args[0]) if self.args else ""


class WeightsError(ValueError):
    """A checkpoint folder or file is incomplete, damaged or does not fit the network."""


class DownloadError(ConnectionError):
    """Weights or data could not be downloaded."""


class UploadError(ConnectionError):
    """A model could not be published."""
