"""Find in an AnnData what a tool has written there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scgalore._keys import CellKeys
from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["label_keys", "read_evaluation", "read_result"]

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
        Key that a tool wrote its results under.

    Raises
    ------
    DataError
        If ``adata`` is no AnnData.
    MissingKeyError
        If there are no results under the key.
    """
    _check_adata(adata)
    result = adata.uns.get(key)
    if isinstance(result, dict) and "params" in result:
        return result
    others = [
        name for name, value in adata.uns.items() if isinstance(value, dict) and {"params", "weights"} <= set(value)
    ]
    # The key says which call is missing: its own name, or a key_added.
    call = f"sg.tl.{key}(adata, ...)" if key in _TOOLS else f"sg.tl.finetune(adata, ..., key_added={key!r})"
    hint = f", or pass the key of results that are there: {', '.join(map(repr, others))}" if others else ""
    msg = f"There are no results in adata.uns[{key!r}]. Call {call} first{hint}."
    raise MissingKeyError(msg)


def read_evaluation(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Read the scores of predicted perturbations from ``adata.uns[key]``.

    Parameters
    ----------
    adata
        Annotated data matrix.
    key
        Key that :func:`scgalore.tl.evaluate_perturbation` wrote under.

    Raises
    ------
    DataError
        If ``adata`` is no AnnData.
    MissingKeyError
        If there are no scores under the key.
    """
    _check_adata(adata)
    result = adata.uns.get(key)
    if isinstance(result, dict) and {"params", "scores", "summary", "observed"} <= set(result):
        return result
    msg = f"There are no scores in adata.uns[{key!r}]. Call sg.tl.evaluate_perturbation(adata) first, or pass its key_added as key=."
    raise MissingKeyError(msg)


def _check_adata(adata: object) -> None:
    if not isinstance(adata, AnnData):
        msg = f"Plots read an AnnData, not a {type(adata).__name__}. Pass the modality of a MuData: mdata['rna']."
        raise DataError(msg)
