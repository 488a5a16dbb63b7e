"""Predicted effects of perturbations as a table."""

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
    """Read the effects that :func:`scgalore.tl.predict_perturbation` wrote, one row per perturbation.

    In ``adata.uns`` genes are in rows, because HDF5 does not support tables with thousands of columns. Here they are in
    columns, as in ``adata`` and as scikit-learn and seaborn expect.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    A copy, float32, perturbations by genes: differences of mean log-normalised expression from the control mean. With
    several contexts, rows are named ``"K562 | KLF1"``.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there is no prediction under ``key``.

    See Also
    --------
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.get.perturbed_cells : Sample cells around predicted means.
    scgalore.pl.perturbation_effect : Draw predicted against observed effects by gene.

    Examples
    --------
    Here ``adata`` contains predictions by :func:`scgalore.tl.predict_perturbation`.

    >>> import scgalore as sg
    >>> largest = sg.get.perturbation_effects(adata).loc["KLF1+MAP2K6"].nlargest(5)
    """
    return read_prediction_record(adata, key)["effects"].T.copy()
