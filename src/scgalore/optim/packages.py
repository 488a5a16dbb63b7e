"""Optional packages of single optimizers, imported when these are built."""

from __future__ import annotations

import importlib
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

# bitsandbytes logs at import that it found no 4-bit inference kernel, which no optimizer or adapter needs.
_TALKATIVE = "bitsandbytes.backends.cpu.ops"


@contextmanager
def quiet_import() -> Iterator[None]:
    """Hide what bitsandbytes logs when a package imports it."""
    logger = logging.getLogger(_TALKATIVE)
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


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
    try:
        with quiet_import():
            importlib.import_module(package)
    except ImportError as error:
        msg = f"This optimizer needs the package {package} ({error}). Install it with: pip install {install}"
        raise OptionError(msg) from error


def _nothing(_: logging.LogRecord) -> bool:
    return False
