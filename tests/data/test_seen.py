"""The share of the expression that a model sees: warned of, refused, reported."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.data import stream
from scgalore.data.cells import TokenCells
from scgalore.data.reading import Reading
from scgalore.data.seen import FEW_GENES, Seen, sums_of
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError

KNOWN = [f"K{i}" for i in range(300)]
VOCAB = GeneVocab.from_genes(KNOWN)


def adata_of(
    n_known: int, n_unknown: int, *, share: float | None = None, n_obs: int = 20, log: bool = False
) -> AnnData:
    """Cells in which known genes have some share of the counts; as many as they are if none is named."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 9, (n_obs, n_known + n_unknown)).astype(np.float64)
    if share is not None:
        x[:, :n_known] *= share / (1 - share) * x[:, n_known:].sum() / x[:, :n_known].sum()
    adata = AnnData(sp.csr_matrix(np.log1p(x) if log else x, dtype=np.float32))
    adata.var_names = [*KNOWN[:n_known], *(f"U{i}" for i in range(n_unknown))]
    return adata


def cells_of(adata: AnnData, min_matched: float | None = None) -> TokenCells:
    return TokenCells.from_adata(adata, VOCAB, config=TokenizerConfig(), reading=Reading(min_matched=min_matched))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1))
def test_shares_are_those_of_the_sums(cells: list[tuple[int, int]]) -> None:
    known, unknown = np.array(cells, dtype=np.float64).T
    found = sums_of(sp.csr_matrix(np.stack([unknown, known], axis=1)), np.array([-1, 7]))
    np.testing.assert_allclose(found, np.stack([known, known + unknown], axis=1))
    seen = Seen.of(*found.T)
    total = known + unknown
    if total.sum():
        np.testing.assert_allclose(seen.share, known.sum() / total.sum())
        np.testing.assert_allclose(seen.quartiles[1], np.median((known / np.maximum(total, 1))[total > 0]))
        assert 0 <= seen.quartiles[0] <= seen.quartiles[1] <= seen.quartiles[2] <= 1


def test_the_report_has_the_shares(caplog: pytest.LogCaptureFixture) -> None:
    adata = adata_of(250, 50)
    report = cells_of(adata).genes_report()
    x = adata.X.toarray()
    of_cell = x[:, :250].sum(axis=1) / x.sum(axis=1)
    np.testing.assert_allclose(report["share"], x[:, :250].sum() / x.sum(), rtol=1e-6)
    np.testing.assert_allclose(report["share_by_cell"]["median"], np.median(of_cell), rtol=1e-6)
    assert not caplog.records


@pytest.mark.parametrize("log", [False, True])
def test_a_small_share_is_warned_of(log: bool, caplog: pytest.LogCaptureFixture) -> None:
    cells_of(adata_of(250, 1000, log=log))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "250 of 1,250 genes matched" in record.message
    assert f"of a cell's {'expression' if log else 'counts'} (median; quartiles" in record.message


@pytest.mark.parametrize("n", [FEW_GENES - 1, 40, 1])
def test_few_genes_are_warned_of_whatever_their_share(n: int, caplog: pytest.LogCaptureFixture) -> None:
    cells_of(adata_of(n, 0))
    assert [f"{n:,} of {n:,} genes matched" in record.message for record in caplog.records] == [True]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("n_known", "n_unknown"), [(3, 297), (1, 200), (5, 1000)])
def test_almost_nothing_seen_is_refused_unless_it_is_allowed(n_known: int, n_unknown: int, log: bool) -> None:
    adata = adata_of(n_known, n_unknown, log=log)
    with pytest.raises(DataError, match=rf"{n_known} of {n_known + n_unknown:,} genes matched.*\(0 accepts any data\)"):
        cells_of(adata)
    assert cells_of(adata, 0).match.matched == cells_of(adata, 0.001).match.matched == n_known


@given(st.floats(0.06, 0.9), st.floats(0.01, 1))
def test_min_matched_is_the_share_that_is_refused_below(share: float, least: float) -> None:
    adata = adata_of(250, 50, share=share)
    found = cells_of(adata).seen.share
    np.testing.assert_allclose(found, share, rtol=1e-4)
    if found < least:
        with pytest.raises(DataError, match=r"change this with min_matched="):
            cells_of(adata, least)
    else:
        cells_of(adata, least)


def test_cells_without_a_known_gene_are_removed_by_the_call_that_the_message_proposes() -> None:
    rng = np.random.default_rng(0)
    for n_empty in (2, 7):
        x = rng.poisson(0.3, (30, 60)).astype(np.float32)
        x[:, :30] += 1
        x[:n_empty, :30] = 0
        x[:, 59] += 1
        adata = AnnData(x)
        adata.var_names = [*KNOWN[:30], *(f"U{i}" for i in range(30))]
        with pytest.raises(DataError, match="express no gene of the model's vocabulary") as refused:
            cells_of(adata)
        import scanpy as sc

        call = str(refused.value).split("Remove them: ")[1].split(", pass")[0]
        found = {"adata": adata.copy(), "sc": sc}
        exec(call, found)
        assert cells_of(found["adata"]).n_obs <= 30 - n_empty
        assert cells_of(adata, 0).n_obs == 30


@pytest.mark.parametrize(("n_unseen", "refused"), [(3, False), (4, True)])
def test_few_cells_without_a_known_gene_are_warned_of(
    n_unseen: int, refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    adata = adata_of(250, 20, n_obs=300)
    x = adata.X.toarray()
    x[:n_unseen, :250] = 0
    adata.X = x
    says = f"{n_unseen} of 300 cells .* express no gene of the model's vocabulary"
    if refused:
        with pytest.raises(DataError, match=says):
            cells_of(adata)
        return
    assert cells_of(adata).n_obs == 300
    assert re.search(says, caplog.text)
    x[0] = 0
    adata.X = x
    with pytest.raises(DataError, match=r"1 of 300 cells .*'0'.* are empty in adata.X"):
        cells_of(adata)


def test_numbered_copies_are_said_to_be_left_out(caplog: pytest.LogCaptureFixture) -> None:
    adata = adata_of(250, 3)
    adata.var_names = [*adata.var_names[:250], "K1-1", "K2-1", "K999-1"]
    assert cells_of(adata).match.numbered == ("K1-1", "K2-1")
    assert "2 genes are numbered duplicates of others ('K1-1', 'K2-1')" in caplog.records[0].message


def test_files_of_a_stream_are_looked_at_one_by_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, poor = adata_of(250, 10), adata_of(3, 297)
    for name, adata in (("good", good), ("poor", poor)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / "good.h5ad", tmp_path / "poor.h5ad"]
    with pytest.raises(DataError, match=r"poor\.h5ad: in its first 20 cells: 3 of 300 genes matched"):
        stream(files, VOCAB)
    assert stream(files, VOCAB, min_matched=0).n_obs == 40
    assert [record.message.split(": ")[0].endswith("poor.h5ad") for record in caplog.records] == [True]


def test_a_stream_proposes_the_column_that_matches(tmp_path: Path) -> None:
    adata = adata_of(250, 10)
    adata.var["gene_name"] = adata.var_names.to_numpy()
    adata.var_names = [f"probe{i}" for i in range(adata.n_vars)]
    adata.write_h5ad(tmp_path / "probes.h5ad")
    for source in (adata, tmp_path / "probes.h5ad"):
        with pytest.raises(DataError, match="pass gene_symbols='gene_name'"):
            stream([source], VOCAB)
        assert stream([source], VOCAB, gene_symbols="gene_name").n_matched == 250
