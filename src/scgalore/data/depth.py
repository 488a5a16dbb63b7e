"""Total counts of each cell over all genes, including genes that were removed from the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore.data.columns import read_column
from scgalore.data.matrix import CellMatrix
from scgalore.data.scale import scale_of
from scgalore.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading
    from scgalore.data.scale import Scale

__all__ = ["depth_of"]

TOTAL_COUNTS = "total_counts"
"""Column in which :func:`scanpy.pp.calculate_qc_metrics` stores total counts."""

OTHER_TOTALS = ("n_counts", "nCount_RNA", "nUMI", "n_umi", "n_umis", "ncounts", "total_umis", "umi_count", "UMI_count")
"""Columns with total counts written by other programs."""

NUMBERS_OF_GENES = ("n_genes_by_counts", "n_genes", "nFeature_RNA", "nGene", "ngenes")
"""Columns with the number of genes of each cell."""

SELECTIONS = ("highly_variable", "selected", "vst.variable", "hvg")
"""Columns of ``var`` that mark selected genes."""

PANEL = 2000
"""A matrix with fewer genes is a panel or a selection; whole transcriptomes have more."""

ROUNDING = 1e-3


def depth_of(adata: AnnData, matrix: CellMatrix, scale: Scale, reading: Reading) -> NDArray[np.float64] | None:
    """Find the total counts of each cell.

    Uses the given column, else ``adata.obs["total_counts"]``, else the sum over ``adata.raw`` if that contains counts
    of more genes. Values that are smaller than the sum of the matrix are not used.

    Parameters
    ----------
    adata
        AnnData with annotations.
    matrix
        Cells by genes.
    scale
        Scale of the matrix: depth is only needed for counts.
    reading
        Reading options, which may include a column.

    Returns
    -------
    float64 ``(n_obs,)``; ``None`` if only the sums of the matrix are known, with a warning if it seems to contain
    selected genes.

    Raises
    ------
    DataError
        If the given column cannot be total counts.
    MissingKeyError
        If the column does not exist.
    """
    key = reading.depth_key
    if key is not None:
        read_column(adata.obs, key, asked="depth_key")
    if scale.kind != "counts":
        return None
    if key is not None:
        depth, problem = _column(adata, key, _sums(matrix))
        if problem:
            msg = f"adata.obs[{key!r}] cannot be total counts: {problem}. Pass another depth_key=, or omit it."
            raise DataError(msg)
        return depth
    if scale.normalised or (scale.one_count is not None and not 0.5 < scale.one_count < 1.5):
        return None  # not raw counts, so totals cannot be compared
    problem = ""
    if TOTAL_COUNTS in adata.obs:
        sums = _sums(matrix)
        depth, problem = _column(adata, TOTAL_COUNTS, sums)
        if not problem:
            return _known(adata, matrix.name, f"adata.obs[{TOTAL_COUNTS!r}]", depth, sums)
        problem = f"adata.obs[{TOTAL_COUNTS!r}] is not used: {problem}. "
    if adata.raw is not None and adata.raw.n_vars > adata.n_vars:
        sums = _sums(matrix)
        raw = _raw_sums(adata, sums)
        if raw is not None:
            return _known(adata, matrix.name, "adata.raw", raw, sums)
    _warn(adata, matrix, problem)
    return None


def _sums(matrix: CellMatrix) -> NDArray[np.float64]:
    sums = [np.asarray(rows.sum(axis=1), dtype=np.float64).ravel() for _, rows in matrix.chunks()]
    return np.concatenate(sums)


def _column(adata: AnnData, key: str, sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """Values of a column, and a description of problems."""
    depth = pd.to_numeric(read_column(adata.obs, key), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return depth, _problem(depth, sums)


def _problem(depth: NDArray[np.float64], sums: NDArray[np.float64]) -> str:
    unusable = ~np.isfinite(depth) | (depth < 0)
    if unusable.any():
        return f"it is missing, negative or not a number for {int(unusable.sum()):,} of {len(depth):,} cells"
    less = depth < sums * (1 - ROUNDING) - 0.5
    if less.any():
        first = int(np.argmax(less))
        return (
            f"it is less than the sum of the matrix for {int(less.sum()):,} of {len(depth):,} cells (for example {depth[first]:.6g} "
            f"and {sums[first]:.6g})"
        )
    return ""


def _raw_sums(adata: AnnData, sums: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Sums over the genes of ``adata.raw``, if it contains counts."""
    raw = CellMatrix.from_raw(adata)
    values = raw.summary()
    if values.n_nan or values.n_inf or values.n_negative:
        return None
    try:
        scale = scale_of(raw)
    except DataError:
        return None
    if scale.kind != "counts" or scale.normalised or not scale.sure:
        return None
    depth = _sums(raw)
    return None if _problem(depth, sums) else depth


def _known(
    adata: AnnData, name: str, source: str, depth: NDArray[np.float64], sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    share = float(np.median(sums[depth > 0] / depth[depth > 0])) if (depth > 0).any() else 1.0
    message = f"    total counts of each cell from {source}; {name} contains {share:.0%} of them"
    if share < 1 - ROUNDING and logg.is_news(adata, message):
        logg.info(message)
    return depth


def _warn(adata: AnnData, matrix: CellMatrix, problem: str) -> None:
    why = _cut(adata, matrix)
    if not why:
        if problem and logg.is_news(adata, problem):
            logg.info(f"    {problem.strip()}")
        return
    totals = [key for key in OTHER_TOTALS if key in adata.obs]
    cure = (
        f"Pass depth_key={totals[0]!r} if that column counts all genes"
        if totals
        else "Pass the column of adata.obs with total counts as depth_key="
    )
    message = (
        f"{problem}{matrix.name} seems to contain selected genes ({why}) and total counts are unknown, so "
        f"cells are normalised by the sum of these genes. {cure}, or call sc.pp.calculate_qc_metrics(adata, inplace=True) before "
        "selecting genes; if no other genes were measured, call it now."
    )
    if logg.is_news(adata, message):
        logg.warning(message)


def _cut(adata: AnnData, matrix: CellMatrix) -> str:
    """Evidence that genes were removed, or an empty text."""
    for key in SELECTIONS:
        if key in adata.var and adata.var[key].dtype == bool and adata.var[key].all():
            return f"all have adata.var[{key!r}]"
    here = None
    for key in NUMBERS_OF_GENES:
        if key in adata.obs and pd.api.types.is_numeric_dtype(adata.obs[key]):
            here = _n_genes(matrix) if here is None else here
            if np.median(adata.obs[key].to_numpy(dtype=np.float64, na_value=np.nan) - here) > 0.2 * np.median(here):
                return f"adata.obs[{key!r}] has more genes per cell"
    return f"only {matrix.n_vars:,} genes" if matrix.n_vars < PANEL else ""


def _n_genes(matrix: CellMatrix) -> NDArray[np.int64]:
    return np.concatenate([np.diff(rows.indptr) for _, rows in matrix.chunks()])
