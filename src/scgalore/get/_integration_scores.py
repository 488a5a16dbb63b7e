"""Integration scores as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._docs import shared_parameters
from scgalore._keys import IntegrationKeys
from scgalore.data.records import read_integration_record

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@shared_parameters
def integration_scores(adata: AnnData, *, key: str = IntegrationKeys().uns) -> pd.DataFrame:
    """Read the scores that :func:`scgalore.tl.evaluate_integration` wrote.

    Parameters
    ----------
    {adata}
    {key}

    Returns
    -------
    A copy, float64, with one row per embedding and baseline and one column per score: ``nmi``, ``ari``, ``asw_label``,
    ``isolated_labels``, ``clisi``, ``bras``, ``ilisi``, ``kbet``, ``graph_connectivity``, ``pcr_comparison``,
    ``asw_batch``, and the means ``bio``, ``batch`` and ``total``. NaN where a score is undefined.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no scores under ``key``.

    See Also
    --------
    scgalore.tl.evaluate_integration : Score embeddings by batch mixing and separation of labels.
    scgalore.pl.integration_scores : Draw a table of integration scores.

    Examples
    --------
    Here ``adata`` contains scores by :func:`scgalore.tl.evaluate_integration`.

    >>> import scgalore as sg
    >>> means = sg.get.integration_scores(adata)[["bio", "batch", "total"]]
    """
    return read_integration_record(adata, key)["scores"].copy()
