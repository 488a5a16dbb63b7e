"""Scores of predicted perturbations as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_scores_record

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@shared_parameters
def perturbation_scores(
    adata: AnnData, *, key: str = PerturbationKeys().evaluation, summary: bool = False
) -> pd.DataFrame:
    """Read the scores that :func:`scgalore.tl.evaluate_perturbation` wrote.

    Parameters
    ----------
    {adata}
    {key}
    summary
        Whether to return means over perturbations instead of scores per perturbation.

    Returns
    -------
    A copy of one of two tidy tables. Scores: columns ``method`` (``"model"``, the baselines, ``"prior"``,
    ``"ceiling"``), ``perturbation``, ``context``, ``group``, ``metric`` and ``value``. Summary: one row per method,
    metric and group, with ``mean``, ``low`` and ``high`` (95 % interval), ``n``, ``n_nan``, ``gap_closed`` with
    ``gap_low`` and ``gap_high``, and ``best``, the value of a perfect prediction.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no scores under ``key``.

    See Also
    --------
    scgalore.tl.evaluate_perturbation : Score predicted perturbations next to baselines.
    scgalore.pl.perturbation_scores : Draw scores with baselines and ceiling.

    Examples
    --------
    Here ``adata`` contains scores by :func:`scgalore.tl.evaluate_perturbation`.

    >>> import scgalore as sg
    >>> sg.get.perturbation_scores(adata).columns.to_list()
    ['method', 'perturbation', 'context', 'group', 'metric', 'value']
    """
    return read_scores_record(adata, key)["summary" if summary else "scores"].copy()
