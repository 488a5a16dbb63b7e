import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scgalore.data.cells import TokenCells, gene_ranks, ranked_tokens
from scgalore.data.hashing import cell_keys
from scgalore.data.matrix import CellMatrix
from scgalore.data.reading import Reading
from scgalore.data.sampler import BatchRequest
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, MissingKeyError
from scgalore.model import SCGPT

GENES = ["CD3E", "CD8A", "LYZ", "MS4A1", "NKG7"]
CONFIG = TokenizerConfig(n_bins=5, max_length=4)
COUNTS = np.array([[1, 0, 2, 0, 3], [0, 4, 0, 0, 0], [5, 6, 7, 8, 9], [0, 0, 1, 1, 0]])


@pytest.fixture
def adata() -> AnnData:
    made = AnnData(sp.csr_matrix(COUNTS.astype(np.float32)))
    made.var_names = GENES
    return made


@pytest.fixture
def vocab() -> GeneVocab:
    return GeneVocab.from_genes(["NKG7", "CD3E", "CD8A", "LYZ"])  # MS4A1 is unknown


@pytest.fixture
def cells(adata: AnnData, vocab: GeneVocab) -> TokenCells:
    return TokenCells.from_adata(adata, vocab, config=CONFIG)


class TestLengths:
    def test_count_cls_and_known_expressed_genes(self, cells: TokenCells) -> None:
        assert cells.lengths.tolist() == [4, 2, 4, 2]  # the third is cut, MS4A1 does not count
        assert cells.n_obs == 4
        assert cells.match.dropped == ("MS4A1",)

    def test_are_those_of_the_batches(self, cells: TokenCells) -> None:
        batch = cells.batch(BatchRequest(np.array([2, 1, 0])))
        assert (~batch.padding).sum(dim=1).tolist() == cells.lengths[[2, 1, 0]].tolist()
        assert batch.cells.tolist() == [2, 1, 0]

    def test_shortened(self, cells: TokenCells) -> None:
        short = cells.shortened(3)
        assert short.lengths.tolist() == [3, 2, 3, 2]
        assert short.batch(BatchRequest(np.arange(4))).genes.shape == (4, 3)
        assert cells.shortened(100).lengths.tolist() == cells.lengths.tolist()


class TestBatch:
    def test_draw_chooses_the_genes_of_long_cells_only(self, cells: TokenCells) -> None:
        draws = [cells.batch(BatchRequest(np.array([1, 2]), draw=draw)).genes.tolist() for draw in range(20)]
        assert len({tuple(sorted(draw[1])) for draw in draws}) == 4  # any three of four genes
        assert len({tuple(draw[0]) for draw in draws}) == 1

    def test_targets_follow_the_rows(self, cells: TokenCells) -> None:
        labelled = cells.with_targets(labels=np.array([3, 2, 1, 0])).with_targets(values=np.ones(4, np.float32))
        batch = labelled.batch(BatchRequest(np.array([2, 0])))
        assert batch.targets["labels"].tolist() == [1, 3]
        assert batch.targets["values"].dtype == torch.float32
        assert not cells.batch(BatchRequest(np.array([0]))).targets


class TestWithin:
    @pytest.fixture
    def cells(self, adata: AnnData, vocab: GeneVocab) -> TokenCells:
        return TokenCells.from_adata(adata, vocab, config=TokenizerConfig(n_bins=5))

    def test_only_these_genes_are_tokens_and_are_counted(self, cells: TokenCells) -> None:
        genes = cells.tokenizer.genes[::2]
        fewer = cells.within(genes)
        everyone = BatchRequest(np.arange(cells.n_obs))
        before, after = cells.batch(everyone), fewer.batch(everyone)
        assert set(after.genes.unique().tolist()) - set(genes.tolist()) <= {
            cells.tokenizer.cls_id,
            cells.tokenizer.pad_id,
        }
        assert fewer.lengths.tolist() == (~after.padding).sum(dim=1).tolist()
        assert (fewer.lengths < cells.lengths).any()
        value = {
            (cell, gene): value
            for cell, row, values in zip(
                before.cells.tolist(), before.genes.tolist(), before.values.tolist(), strict=True
            )
            for gene, value in zip(row, values, strict=True)
        }
        for cell, row, values in zip(after.cells.tolist(), after.genes.tolist(), after.values.tolist(), strict=True):
            for gene, own in zip(row, values, strict=True):
                if gene in genes:
                    assert own == value[cell, gene]

    def test_stays_when_cells_are_shortened(self, cells: TokenCells) -> None:
        genes = cells.tokenizer.genes[::2]
        short = cells.within(genes).shortened(3)
        batch = short.batch(BatchRequest(np.arange(cells.n_obs)))
        assert set(batch.genes.unique().tolist()) <= {*genes.tolist(), cells.tokenizer.cls_id, cells.tokenizer.pad_id}
        assert short.lengths.max() <= 3

    def test_the_vocabulary_of_a_run_stays_that_of_all_genes(self, cells: TokenCells) -> None:
        assert cells.within(cells.tokenizer.genes[:1]).tokens().tolist() == cells.tokens().tolist()


class TestRanks:
    def test_best_first_without_columns_that_have_no_token_or_no_rank(self) -> None:
        token_ids = np.array([7, -1, 3, 9, 5])
        ranks = np.array([2.0, 0.0, np.nan, 1.0, 4.0])
        assert ranked_tokens(token_ids, ranks).tolist() == [9, 7, 5]

    def test_of_a_column_that_is_not_there(self, adata: AnnData) -> None:
        with pytest.raises(MissingKeyError, match=r"No column 'mine_rank'.*key_added='mine'"):
            gene_ranks(adata, "mine")


class TestWindows:
    @pytest.mark.parametrize("rows", [None, [3, 0, 2], [1, 1], []])
    @pytest.mark.parametrize("size", [1, 3, 100])
    def test_are_the_cells_in_order(self, cells: TokenCells, rows: list[int] | None, size: int) -> None:
        asked = np.arange(4) if rows is None else np.array(rows, dtype=np.int64)
        windows = list(cells.windows(None if rows is None else asked, size=size, draw=3))
        assert [len(window) for window in windows] == [len(asked[i : i + size]) for i in range(0, len(asked), size)]
        alone = [cells.batch(BatchRequest(np.array([row]), draw=3)) for row in asked]
        found = [cells.tokenizer.pad(window, [i]) for window in windows for i in range(len(window))]
        for one, other in zip(found, alone, strict=True):
            for name in ("genes", "values", "cells", "keys"):
                assert getattr(one, name).tolist() == getattr(other, name).tolist()

    def test_of_a_file_hold_one_window_in_memory(self, tmp_path: Path, vocab: GeneVocab) -> None:
        made = AnnData(sp.csr_matrix(np.ones((40_000, 5), dtype=np.float32)))
        made.var_names = GENES
        made.write_h5ad(tmp_path / "the.h5ad")
        cells = TokenCells.from_adata(ad.read_h5ad(tmp_path / "the.h5ad", backed="r"), vocab, config=CONFIG)
        tracemalloc.start()
        n_cells = sum(len(window) for window in cells.windows(size=200))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_cells == 40_000
        assert peak < 40_000 * 5 * 4  # the values alone


class TestKeys:
    def test_are_those_of_the_batches(self, cells: TokenCells) -> None:
        keys = np.concatenate(list(cells.keys()))
        batch = cells.batch(BatchRequest(np.array([3, 0, 2])))
        assert batch.keys.numpy().view(np.uint64).tolist() == keys[[3, 0, 2]].tolist()

    def test_know_only_the_genes_of_the_vocabulary(self, adata: AnnData, cells: TokenCells, vocab: GeneVocab) -> None:
        before = np.concatenate(list(cells.keys()))
        adata.X[3, 3] = 77  # MS4A1
        after = np.concatenate(list(TokenCells.from_adata(adata, vocab, config=CONFIG).keys()))
        assert after.tolist() == before.tolist()
        genes = np.array([vocab["CD8A"]])
        assert before[1] == cell_keys(genes, np.array([4.0]), np.array([0, 1]))[0]


class TestNames:
    def test_from_a_column(self, adata: AnnData, vocab: GeneVocab) -> None:
        adata.var["symbol"] = adata.var_names
        adata.var_names = [f"row{i}" for i in range(5)]
        cells = TokenCells.from_adata(adata, vocab, config=CONFIG, reading=Reading(gene_symbols="symbol"))
        assert cells.match.matched == 4

    def test_missing_column_lists_the_others(self, adata: AnnData, vocab: GeneVocab) -> None:
        adata.var["symbol"] = adata.var_names
        with pytest.raises(MissingKeyError, match=r"No column 'symbols' in adata\.var; it has \['symbol'\]"):
            TokenCells.from_adata(adata, vocab, config=CONFIG, reading=Reading(gene_symbols="symbols"))

    def test_categories_and_gaps(self, adata: AnnData, vocab: GeneVocab) -> None:
        adata.var["symbol"] = adata.var_names.astype("category")
        adata.var.loc["CD3E", "symbol"] = np.nan
        cells = TokenCells.from_adata(adata, vocab, config=CONFIG, reading=Reading(gene_symbols="symbol"))
        assert cells.match.matched == 3


class TestReading:
    def test_the_matrix_is_read_once(self, adata: AnnData, vocab: GeneVocab, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[int] = []
        rows = CellMatrix.rows

        def counted(matrix: CellMatrix, indices: Any) -> Any:
            read.extend(indices)
            return rows(matrix, indices)

        monkeypatch.setattr(CellMatrix, "rows", counted)
        cells = TokenCells.from_adata(adata, vocab, config=CONFIG)
        assert cells.matrix.summary().max == 9
        assert read == [0, 1, 2, 3]


class TestRefusals:
    def test_values_come_before_names(self, adata: AnnData, vocab: GeneVocab) -> None:
        adata.var_names = ["p", "q", "r", "s", "t"]
        with pytest.raises(DataError, match="None of the 5 gene names"):
            TokenCells.from_adata(adata, vocab, config=CONFIG)
        adata.X[0, 0] = -1
        with pytest.raises(DataError, match="negative"):
            TokenCells.from_adata(adata, vocab, config=CONFIG)

    def test_values_come_before_empty_cells(self, adata: AnnData, vocab: GeneVocab) -> None:
        x = adata.X.toarray()
        x[1], x[2, 0] = 0, np.nan
        adata.X = x
        with pytest.raises(DataError, match="1 NaN"):
            TokenCells.from_adata(adata, vocab, config=CONFIG)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            pytest.param(lambda x: x.__setitem__((0, 0), -1), "negative", id="negative"),
            pytest.param(lambda x: x.__setitem__((0, 0), np.nan), "1 NaN", id="nan"),
            pytest.param(lambda x: x.__setitem__((0, 0), np.inf), "1 infinite", id="infinite"),
            pytest.param(lambda x: x.__setitem__(1, 0), r"1 of 4 cells .*'1'.* are empty.*min_genes=1\)", id="empty"),
            pytest.param(
                lambda x: x.__setitem__(1, [0, 0, 0, 9, 0]),
                "express no gene of the model's vocabulary",
                id="unknown_only",
            ),
        ],
    )
    def test_values(self, adata: AnnData, vocab: GeneVocab, spoil: Callable[[Any], None], message: str) -> None:
        x = adata.X.toarray()
        spoil(x)
        adata.X = x
        with pytest.raises(DataError, match=message):
            TokenCells.from_adata(adata, vocab, config=CONFIG)

    def test_layer(self, adata: AnnData, vocab: GeneVocab) -> None:
        with pytest.raises(MissingKeyError, match="'counts'"):
            TokenCells.from_adata(adata, vocab, config=CONFIG, reading=Reading("counts"))

    @pytest.mark.parametrize("shape", [(0, 5), (4, 0)])
    def test_nothing_at_all(self, adata: AnnData, vocab: GeneVocab, shape: tuple[int, int]) -> None:
        with pytest.raises(DataError, match=f"is empty: {shape[0]} cells x {shape[1]} genes"):
            TokenCells.from_adata(adata[: shape[0], : shape[1]].copy(), vocab, config=CONFIG)


def test_conditions_reach_batches_and_windows(few: AnnData, model: SCGPT) -> None:
    codes = np.arange(few.n_obs) % 3
    cells = model.cells(few).with_conditions(batches=codes)
    rows = np.array([5, 1, 7])
    assert cells.batch(BatchRequest(rows)).conditions["batches"].tolist() == codes[rows].tolist()
    (window,) = cells.windows(rows)
    assert window.conditions["batches"].tolist() == codes[rows].tolist()
    assert cells.identity() != model.cells(few).with_conditions(batches=codes[::-1].copy()).identity()


def test_with_zeros_all_genes_are_tokens(few: AnnData, model: SCGPT) -> None:
    cells = model.cells(few).with_zeros()
    batch = cells.batch(BatchRequest(np.arange(4)))
    assert set(cells.lengths) == {min(few.n_vars + 1, cells.tokenizer.config.max_length)}
    assert (batch.values[:, 1:] == 0).any()
    assert batch.values.shape[1] == cells.lengths.max()


@pytest.mark.parametrize(("config", "kept"), [({}, True), ({"ties": "random"}, False), ({"max_length": 3}, False)])
def test_tokens_are_kept_only_where_each_draw_gives_the_same(
    few: AnnData, model: SCGPT, config: dict[str, Any], kept: bool
) -> None:
    cells = TokenCells.from_adata(few, model.vocab, config=TokenizerConfig(**config)).with_targets(
        labels=np.arange(few.n_obs)
    )
    rows = np.array([2, 0])
    for draw in (0, 1):
        batch = cells.batch(BatchRequest(rows, draw))
        (tokens,) = cells.windows(rows, draw=draw)
        anew = cells.tokenizer.pad(tokens)
        assert all(
            torch.equal(getattr(batch, name), getattr(anew, name))
            for name in ("genes", "values", "padding", "cells", "keys")
        )
        assert batch.targets["labels"].tolist() == rows.tolist()
    assert (cells._kept is not None) == kept
