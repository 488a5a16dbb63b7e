"""Expression on one scale, against scanpy's own normalisation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.expression import TARGET_SUM, LogExpression
from scgalore.data.reading import Reading
from scgalore.errors import DataError, MissingKeyError

N_OBS, N_VARS = 37, 19
KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    "dense": lambda x: x,
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "integers": lambda x: sp.csr_matrix(x.astype(np.int32)),
}


def counts() -> np.ndarray:
    x = np.random.default_rng(0).poisson(0.8, (N_OBS, N_VARS)).astype(np.float64)
    x[5] = 0  # a cell without counts
    return x


def normalised(x: np.ndarray) -> np.ndarray:
    adata = ad.AnnData(x.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return np.asarray(adata.X)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_normalised_as_scanpy_does(kind: str) -> None:
    adata = ad.AnnData(KINDS[kind](counts()))
    found = LogExpression.from_adata(adata)
    assert found.from_counts
    rows = found.rows(np.arange(N_OBS))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.toarray(), normalised(counts()), rtol=1e-6)
    assert TARGET_SUM == 1e4
    np.testing.assert_array_equal(adata.X if kind == "dense" else adata.X.toarray(), counts())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "integers"])
def test_logarithms_are_left_as_they_are(kind: str) -> None:
    x = normalised(counts())
    found = LogExpression.from_adata(ad.AnnData(KINDS[kind](x)))
    assert not found.from_counts
    np.testing.assert_array_equal(found.rows(np.arange(N_OBS)).toarray(), x.astype(np.float32))


@pytest.mark.parametrize("kind", ["dense", "csr", "csc"])
@pytest.mark.parametrize("view", [False, True])
def test_file_on_disk_reads_as_in_memory(kind: str, view: bool, tmp_path: Path) -> None:
    ad.AnnData(KINDS[kind](counts())).write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    cells, genes = np.arange(N_OBS), np.arange(N_VARS)
    if view:
        cells, genes = np.array([30, 2, 7, 11]), np.array([4, 18, 0, 9, 3])
    adata = backed[cells, genes] if view else backed
    found = LogExpression.from_adata(adata)
    assert (found.n_obs, found.n_vars) == (len(cells), len(genes))
    rows = found.rows(np.arange(len(cells))).toarray()
    # Of a view of some genes those genes are all there is, for scanpy as for this.
    np.testing.assert_allclose(rows, normalised(counts()[np.ix_(cells, genes)]), rtol=1e-6)
    backed.file.close()


def test_view_and_layer() -> None:
    adata = ad.AnnData(normalised(counts()))
    adata.layers["counts"] = sp.csc_matrix(counts())
    part = adata[[3, 1, 30], 2:9]
    assert not LogExpression.from_adata(part).from_counts
    found = LogExpression.from_adata(part, Reading("counts"))
    assert found.from_counts
    np.testing.assert_allclose(found.rows([0, 1, 2]).toarray(), normalised(counts()[[3, 1, 30], 2:9]), rtol=1e-6)


@given(rows=st.lists(st.integers(0, N_OBS - 1), max_size=20), size=st.integers(1, N_OBS + 3))
def test_rows_and_chunks_are_the_same_numbers(rows: list[int], size: int) -> None:
    found = LogExpression.from_adata(ad.AnnData(sp.csr_matrix(counts())))
    whole = found.rows(np.arange(N_OBS)).toarray()
    np.testing.assert_array_equal(found.rows(rows).toarray(), whole[rows])
    chunks = list(found.chunks(size))
    assert [start for start, _ in chunks] == list(range(0, N_OBS, size))
    np.testing.assert_array_equal(sp.vstack([chunk for _, chunk in chunks]).toarray(), whole)


def test_a_cell_without_counts_stays_without() -> None:
    assert LogExpression.from_adata(ad.AnnData(counts())).rows([5]).nnz == 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x - 1.5, "negative values"),
        (lambda x: np.where(x == 3, np.nan, x), "NaN"),
        (np.sqrt, "neither counts nor logarithms of them.*square roots"),
        (lambda x: x[:0], "is empty"),
    ],
)
def test_what_is_neither_is_refused(change: Callable[[np.ndarray], np.ndarray], match: str) -> None:
    with pytest.raises(DataError, match=match):
        LogExpression.from_adata(ad.AnnData(change(counts())))


def test_layer_that_is_not_there() -> None:
    with pytest.raises(MissingKeyError, match="raw_counts"):
        LogExpression.from_adata(ad.AnnData(counts()), Reading("raw_counts"))
