"""Differential expression of predicted and real cells, and scores of their agreement.

Tests and scores are computed by pdex and cell-eval (extra ``eval``), so that values are identical to theirs.
"""

from __future__ import annotations

import contextlib
import io
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from scgalore.errors import DataError, OptionError
from scgalore.perturb.scores.metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import polars
    import scipy.sparse as sp

__all__ = ["METRICS", "de_scores", "differential_expression", "is_installed", "require_extra"]

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("overlap_at_N", 1.0, "cells", 0.0, None, "reliability"),
        Metric("precision_at_N", 1.0, "cells", 0.0, None, "reliability"),
        Metric("de_direction_match", 1.0, "cells", None, None, "reliability"),
        Metric("de_spearman_lfc_sig", 1.0, "cells", 0.0, 0.0, "reliability"),
        Metric("de_sig_genes_recall", 1.0, "cells", 0.0, None, "reliability"),
        # If no gene or every gene is differentially expressed, recovery is undefined regardless of the prediction.
        Metric("pr_auc", 1.0, "cells", None, None, "reliability"),
        Metric("roc_auc", 1.0, "cells", 0.5, None, "reliability"),
        Metric("de_nsig_counts_real", None, "cells", None, None, None),
        Metric("de_nsig_counts_pred", None, "cells", None, None, None),
    )
}
"""Metrics of differential expression, by name."""

_PACKAGES = ("pdex", "cell_eval")


def is_installed() -> bool:
    """Whether the packages of the extra ``eval`` are installed."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def require_extra() -> None:
    """Raise an OptionError with install instructions if the extra is missing."""
    missing = [package for package in _PACKAGES if find_spec(package) is None]
    if missing:
        msg = (
            f"Scores of differential expression need {' and '.join(missing)}, which is not installed. Call "
            'pip install "scgalore[eval]", or pass de=False to skip these scores.'
        )
        raise OptionError(msg)


def differential_expression(
    cells: sp.csr_matrix, labels: Sequence[str], genes: Sequence[str], *, control: str
) -> polars.DataFrame:
    """Compare the cells of each label with the control cells.

    Mann-Whitney U tests with Benjamini-Hochberg correction within a label, and log2 fold changes of geometric means
    without a pseudocount: infinite if a gene is zero on one side. These are cell-eval's settings for pdex.

    Parameters
    ----------
    cells
        Log-normalised expression, ``(n_cells, n_genes)``.
    labels
        Label of each cell.
    genes
        Names of the columns.
    control
        Label of the control cells.

    Returns
    -------
    Table by pdex, one row per label and gene.

    Raises
    ------
    OptionError
        If the extra ``eval`` is not installed.
    DataError
        If there are no control cells, or only control cells.
    """
    require_extra()
    found = set(labels)
    if control not in found or len(found) < 2:
        msg = f"Expected control cells labelled {control!r} and cells of another label; found {sorted(found)[:5]}."
        raise DataError(msg)
    import numba
    from anndata import AnnData
    from pdex import pdex

    obs = pd.DataFrame({"label": pd.Categorical(list(labels))}, index=[str(i) for i in range(len(labels))])
    adata = AnnData(cells, obs=obs, var=pd.DataFrame(index=list(genes)))
    # Its progress bar writes to stderr. threads=0 would request all cores from numba, which fails if the user has
    # limited them.
    with contextlib.redirect_stderr(io.StringIO()), np.errstate(divide="ignore", invalid="ignore"):
        table = pdex(
            adata,
            groupby="label",
            mode="ref",
            reference=control,
            is_log1p=True,
            epsilon=0.0,
            threads=numba.get_num_threads(),
        )
    return cast("polars.DataFrame", table)


def de_scores(real: polars.DataFrame, predicted: polars.DataFrame) -> pd.DataFrame:
    """Score a predicted table of differential expression against the real one, with cell-eval's functions.

    Parameters
    ----------
    real, predicted
        Tables of :func:`differential_expression` with the same labels.

    Returns
    -------
    One row per label, one column per metric of :data:`METRICS`; NaN if a metric is undefined or cell-eval excludes the
    label.

    Raises
    ------
    OptionError
        If the extra ``eval`` is not installed.
    """
    require_extra()
    import cell_eval
    from cell_eval import metrics

    talkative = logging.getLogger("cell_eval")
    level = talkative.level
    talkative.setLevel(logging.ERROR)  # it warns about every table with an infinite fold change, which is most of them
    try:
        tables = cell_eval.initialize_de_comparison(real=real, pred=predicted)
    finally:
        talkative.setLevel(level)
    counts = metrics.DENsigCounts()(tables)
    columns: dict[str, Mapping[str, Any]] = {
        "overlap_at_N": metrics.de_overlap_metric(tables, k=None, metric="overlap"),
        "precision_at_N": metrics.de_overlap_metric(tables, k=None, metric="precision"),
        "de_direction_match": metrics.DEDirectionMatch()(tables),
        "de_spearman_lfc_sig": metrics.DESpearmanLFC()(tables),
        "de_sig_genes_recall": metrics.DESigGenesRecall()(tables),
        "pr_auc": metrics.compute_pr_auc(tables),
        "roc_auc": metrics.compute_roc_auc(tables),
        "de_nsig_counts_real": {label: count["real"] for label, count in counts.items()},
        "de_nsig_counts_pred": {label: count["pred"] for label, count in counts.items()},
    }
    values = {
        name: [np.nan if scores.get(label) is None else float(scores[label]) for label in counts]
        for name, scores in columns.items()
    }
    return pd.DataFrame(values, index=list(counts), columns=list(METRICS))
