"""Sums over groups of cells, whatever holds the matrix."""

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data.matrix import CellMatrix
from scgalore.data.moments import Moments, column_sums


def values(n: int = 1200, n_vars: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.7, (n, n_vars)).astype(np.float32)


def assert_right(found: Moments, x: np.ndarray, group: np.ndarray, n_groups: int) -> None:
    np.testing.assert_array_equal(found.n_expressed, (x[group >= 0] > 0).sum(axis=0))
    for number in range(n_groups):
        rows = x[group == number].astype(np.float64)
        assert found.n_cells[number] == len(rows)
        np.testing.assert_allclose(found.sums[number], rows.sum(axis=0), rtol=1e-12)
        mean = rows.mean(axis=0) if len(rows) else np.zeros(x.shape[1])
        variance = rows.var(axis=0, ddof=1) if len(rows) > 1 else np.zeros(x.shape[1])
        np.testing.assert_allclose(found.means[number], mean, rtol=1e-12)
        np.testing.assert_allclose(found.variances[number], variance, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 12), st.integers(0, 50), st.integers(0, 2**20))
def test_sums_are_those_of_a_loop_whatever_the_groups(n_groups: int, n: int, seed: int) -> None:
    x = values(n, 5, seed)
    group = np.random.default_rng(seed).integers(-1, n_groups, n)
    found = Moments.empty(n_groups, 5)
    for rows in np.array_split(np.arange(n), 3):
        found.add(sp.csr_matrix(x[rows]), group[rows])
    assert_right(found, x, group, n_groups)


@pytest.mark.parametrize("kind", ["dense", "csr", "csc", "view", "backed", "backed dense", "backed view"])
@pytest.mark.parametrize("n_groups", [1, 9])
def test_whatever_holds_the_matrix(kind: str, n_groups: int, tmp_path: Path) -> None:
    x = values()
    held: Any = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "backed": sp.csr_matrix, "backed view": sp.csr_matrix}
    adata = ad.AnnData(held.get(kind, np.asarray)(x))
    if "backed" in kind:
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    if "view" in kind:
        adata, x = adata[::2, 3:], x[::2, 3:]
    group = np.random.default_rng(1).integers(-1, n_groups, len(x))
    assert_right(Moments.of(CellMatrix.from_adata(adata), group, n_groups), x, group, n_groups)


def test_column_sums_weigh_rows() -> None:
    x, weights = values(30), np.linspace(0, 1, 30)
    rows = sp.csr_matrix(x)
    np.testing.assert_allclose(column_sums(rows, rows.data.astype(np.float64), weights), weights @ x, rtol=1e-12)
