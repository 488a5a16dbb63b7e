"""Optional packages of single optimizers, imported when these are built."""

from __future__ import annotations

import importlib
import logging

from scgalore.errors import OptionError

# bitsandbytes logs at import that it found no 4-bit inference kernel, which no optimizer needs.
_TALKATIVE = "bitsandbytes.backends.cpu.ops"


def require(package: str, *, install: str) -> None:
    """Import a package, without what it logs at import.

    Parameters
    ----------
    package
        Name under which it is imported.
    install
        What ``pip install`` takes to provide it.

    Raises
    ------
    OptionError
        If it is not installed or cannot be imported.
    """
    logger = logging.getLogger(_TALKATIVE)
    logger.addFilter(_nothing)
    try:
        importlib.import_module(package)
    except ImportError as error:
        msg = f"This optimizer needs the package {package} ({error}). Install it with: pip install {install}"
        raise OptionError(msg) from error
    finally:
        logger.removeFilter(_nothing)


def _nothing(_: logging.LogRecord) -> bool:
    return False
