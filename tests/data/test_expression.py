"""Expression on one scale, against scanpy's own normalisation."""

import re
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
        (np.sqrt, "neither counts nor their logarithms.*square roots"),
        (lambda x: x[:0], "is empty"),
    ],
)
def test_what_is_neither_is_refused(change: Callable[[np.ndarray], np.ndarray], match: str) -> None:
    with pytest.raises(DataError, match=match):
        LogExpression.from_adata(ad.AnnData(change(counts())))


# Fractional counts and bases -----------------------------------------------------------------------------------------------


@given(factor=st.floats(1e-3, 1e3), per_cell=st.booleans())
def test_a_scaled_cell_is_the_same_cell(factor: float, per_cell: bool) -> None:
    scaled = counts() * factor
    if per_cell:
        scaled *= np.random.default_rng(1).uniform(0.3, 1, (N_OBS, 1))
    rows = [LogExpression.from_adata(ad.AnnData(x)).rows(np.arange(N_OBS)).toarray() for x in (counts(), scaled)]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target_sum", [1e4, 1e6])
def test_normalised_counts_become_the_logarithms_of_the_counts(target_sum: float) -> None:
    adata = ad.AnnData(counts())
    sc.pp.normalize_total(adata, target_sum=target_sum)
    found = LogExpression.from_adata(adata).rows(np.arange(N_OBS)).toarray()
    np.testing.assert_allclose(found, normalised(counts()), rtol=1e-5)


@given(base=st.floats(1.5, 20), other=st.floats(1.5, 20))
def test_logarithms_to_any_base_are_given_to_any_other(base: float, other: float) -> None:
    adata = ad.AnnData(normalised(counts()) / np.log(base))
    adata.uns["log1p"] = {"base": base}
    own = LogExpression.from_adata(adata)
    assert own.log_base == base
    np.testing.assert_allclose(own.rows(np.arange(N_OBS)).toarray(), adata.X, rtol=1e-6)
    given_to = LogExpression.from_adata(adata, log_base=other)
    assert given_to.log_base == other
    np.testing.assert_allclose(
        given_to.rows(np.arange(N_OBS)).toarray(), normalised(counts()) / np.log(other), rtol=1e-5
    )
    linear = own.linear(own.matrix.rows(np.arange(N_OBS))).toarray()
    np.testing.assert_allclose(linear, np.expm1(normalised(counts())), rtol=1e-4)


def test_counts_are_given_to_a_base_that_is_asked_for() -> None:
    found = LogExpression.from_adata(ad.AnnData(counts()), log_base=2).rows(np.arange(N_OBS))
    np.testing.assert_allclose(found.toarray(), normalised(counts()) / np.log(2), rtol=1e-5)


def test_what_was_decided_is_said_once_for_each_object(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="scgalore"):
        for adata in (ad.AnnData(counts() * 0.97), ad.AnnData(normalised(counts()))):
            for _ in range(3):
                LogExpression.from_adata(adata)
    assert (
        caplog.text.count("adata.X contains counts, since the values of a cell are multiples of its smallest value")
        == 1
    )
    assert caplog.text.count("adata.X contains natural logarithms, since once the logarithm is undone") == 1


@pytest.mark.parametrize(
    ("x", "data_type", "match"),
    [
        (
            np.random.default_rng(0).uniform(0.5, 3, (10, 6)),
            None,
            "may contain counts or log-normalised values.*data_type='counts' or",
        ),
        (normalised(counts()), "counts", "but it appears to contain logarithms.*data_type="),
        (counts(), "log1p", "but it appears to contain counts.*data_type="),
    ],
    ids=["no sign", "not counts", "not logarithms"],
)
def test_doubts_are_said(x: np.ndarray, data_type: str | None, match: str, caplog: pytest.LogCaptureFixture) -> None:
    LogExpression.from_adata(ad.AnnData(x), Reading(data_type=data_type))
    (text,) = [record.getMessage() for record in caplog.records if "selected genes" not in record.getMessage()]
    assert re.search(match, text)


def test_layer_that_is_not_there() -> None:
    with pytest.raises(MissingKeyError, match="raw_counts"):
        LogExpression.from_adata(ad.AnnData(counts()), Reading("raw_counts"))
