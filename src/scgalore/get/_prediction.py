"""Find a prediction in an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_prediction"]


def read_prediction(adata: AnnData, key: str) -> Mapping[str, Any]:
    """Read what :func:`scgalore.tl.predict_perturbation` wrote under ``adata.uns[key]``.

    Parameters
    ----------
    adata
        Annotated data matrix.
    key
        Key that it wrote under.

    Raises
    ------
    DataError
        If ``adata`` is no AnnData.
    MissingKeyError
        If there is no prediction under the key.
    """
    if not isinstance(adata, AnnData):
        msg = f"Expected an AnnData, not a {type(adata).__name__}. Pass the modality of a MuData: mdata['rna']."
        raise DataError(msg)
    result = adata.uns.get(key)
    if isinstance(result, dict) and {"means", "effects", "rows", "params"} <= set(result):
        return result
    msg = f"There is no prediction in adata.uns[{key!r}]. Call sg.tl.predict_perturbation(adata) first, or pass its key_added as key=."
    raise MissingKeyError(msg)
