"""Predicted effects as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_prediction_record

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@shared_parameters
def perturbation_effects(adata: AnnData, *, key: str = PerturbationKeys().prediction) -> pd.DataFrame:
    """Read the effects that :func:`scgalore.tl.predict_perturbation` wrote, one perturbation a row.

    In ``adata.uns`` genes are in rows, because HDF5 refuses tables with thousands of columns. Here they are in columns, as in
    ``adata`` and as scikit-learn and seaborn expect features.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    float32, perturbations by genes: differences of mean log-normalised expression from the control mean. Where there are
    several contexts, rows are named like ``"K562 | KLF1"``, whatever characters the names hold. A copy.

    Raises
    ------
    DataError
        If ``adata`` is no AnnData.
    MissingKeyError
        If there is no prediction under ``key``.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.get.perturbation_effects(adata).loc["KLF1"].nlargest(5)  # doctest: +SKIP
    """
    return read_prediction_record(adata, key)["effects"].T.copy()
