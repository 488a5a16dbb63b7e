"""Predicted effects in the format of scanpy's plots of ranked genes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ranked_genes"]


def ranked_genes(
    effects: pd.DataFrame, means: pd.DataFrame, *, groupby: str, log_base: float = math.e
) -> dict[str, Any]:
    """Rank the genes of each perturbation by effect.

    Parameters
    ----------
    effects, means
        Effects and means of log-normalised expression, genes in rows, perturbations in columns.
    groupby
        Column of ``adata.obs`` with perturbations.
    log_base
        Base of the logarithms.

    Returns
    -------
    Entries as written by :func:`scanpy.tl.rank_genes_groups`: ``names``, ``scores`` (effects) and ``logfoldchanges``
    (log2 ratio of the exponentiated means, with ``1e-9`` added as in scanpy). ``pvals`` and ``pvals_adj`` are NaN,
    since no test is performed.
    """
    groups = list(effects.columns)
    values, after = effects.to_numpy(np.float64), means.to_numpy(np.float64)
    order = np.argsort(-values, axis=0, kind="stable")
    linear = [np.expm1(means * math.log(log_base)) for means in (after, np.maximum(after - values, 0))]
    change = np.log2((linear[0] + 1e-9) / (linear[1] + 1e-9))
    genes = effects.index.to_numpy(dtype=str)

    def record(columns: np.ndarray, dtype: str) -> np.ndarray:
        return np.rec.fromarrays(columns.T, dtype=[(group, dtype) for group in groups])

    return {
        "params": {
            "groupby": groupby,
            "reference": "control",
            "method": "predicted",
            "use_raw": False,
            "layer": None,
            "corr_method": "none",
        },
        "names": record(genes[order], "O"),
        "scores": record(np.take_along_axis(values, order, axis=0), "float32"),
        "logfoldchanges": record(np.take_along_axis(change, order, axis=0), "float32"),
        "pvals": record(np.full(values.shape, np.nan), "float64"),
        "pvals_adj": record(np.full(values.shape, np.nan), "float64"),
    }
