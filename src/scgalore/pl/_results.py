"""Find results of tools in an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scgalore._keys import CellKeys
from scgalore.data.records import read_record

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["label_keys", "read_result"]

_TOOLS = ("finetune", "annotate")


def label_keys(key: str) -> CellKeys:
    """Slots that belong to the results under ``adata.uns[key]``."""
    return CellKeys.from_key_added(None if key in _TOOLS else key, uns=key)


def read_result(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Read ``adata.uns[key]``.

    Parameters
    ----------
    adata
        Annotated data matrix.
    key
        Key under which a tool stored its results.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData, or the entry is not a result of a tool.
    MissingKeyError
        If there are no results under the key.
    """
    uns = adata.uns if isinstance(adata, AnnData) else {}
    others = [name for name, value in uns.items() if isinstance(value, dict) and {"params", "weights"} <= set(value)]
    # The key tells which call is missing: it is the name of a tool, or a key_added.
    call = f"sg.tl.{key}(adata, ...)" if key in _TOOLS else f"sg.tl.finetune(adata, ..., key_added={key!r})"
    hint = f", or pass the key of existing results: {', '.join(map(repr, others))}" if others else ""
    missing = f"There are no results in adata.uns[{key!r}]. Call {call} first{hint}."
    return read_record(adata, key, missing=missing)
