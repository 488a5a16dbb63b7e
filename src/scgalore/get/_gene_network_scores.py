"""Scores of gene networks as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore.data.records import read_record

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@shared_parameters
def gene_network_scores(
    adata: AnnData, *, by_source: bool = False, key: str = NetworkKeys().evaluation
) -> pd.DataFrame:
    """Read the scores that :func:`scgalore.tl.evaluate_gene_network` wrote.

    Parameters
    ----------
    {adata}
    by_source
        Whether to return scores per factor instead of scores over all pairs.
    {key}

    Returns
    -------
    A copy with one row per network and baseline, with the columns listed in :func:`scgalore.tl.evaluate_gene_network`;
    or one row per network and factor, with ``network``, ``source``, ``n_targets``, ``auprc_ratio``,
    ``early_precision_ratio`` and ``odds_ratio``, NaN for factors with too few targets.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no scores under ``key``.

    See Also
    --------
    scgalore.tl.evaluate_gene_network : Score networks against known targets.
    scgalore.get.gene_network : Read edges of a network as a table.

    Examples
    --------
    Here ``adata`` contains scores by :func:`scgalore.tl.evaluate_gene_network`.

    >>> import scgalore as sg
    >>> scores = sg.get.gene_network_scores(adata)[["auprc_ratio", "auprc_ratio_null"]]
    """
    missing = f"There are no scores in adata.uns[{key!r}]. Call sg.tl.evaluate_gene_network(adata, truth) first, or pass its key_added as key=."
    record = read_record(adata, key, tables=("scores", "by_source"), missing=missing)
    return record["by_source" if by_source else "scores"].copy()
