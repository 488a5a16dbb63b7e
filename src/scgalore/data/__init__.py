"""From an AnnData to batches of tokens, and streams of many files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgalore.data.opening import stream
    from scgalore.data.streaming import TokenStream

__all__ = ["TokenStream", "stream"]


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): modules of this subpackage are often used separately, and torch takes seconds.
    if name in __all__:
        return getattr(import_module("scgalore.data.opening"), name)
    msg = f"module 'scgalore.data' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
