import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from tests.scberts import small_model
from tests.tiny_plugin import tiny_model

from scgalore.data.binning import bin_edges
from scgalore.data.expression import LogExpression
from scgalore.data.tokens import RaggedTokens
from scgalore.model import SCGPT, CellModel
from scgalore.model.edits import Edit
from scgalore.model.in_silico import EditedCells, Shifts
from scgalore.model.inference import RunOptions

N = 12


@pytest.fixture
def model(few: AnnData) -> SCGPT:
    return tiny_model([*few.var_names, "ABSENT"], mvc=True, max_length=200)


def edited(
    model: CellModel, adata: AnnData, edit: Edit, *, groups: list[int] | None = None, **options: int
) -> EditedCells:
    cells = model.cells(adata)
    rows = np.arange(N)
    logs = LogExpression.from_adata(adata, log_base=math.e).rows(rows)
    run = RunOptions.of(precision="32-true", accelerator="cpu", **options)
    extra = tokens_of(model, *({"ABSENT"} & set(model.vocab.tokens)))
    return EditedCells(model, cells, rows, np.array(groups or [0] * N), logs, edit, extra=extra, options=run)


def tokens_of(model: CellModel, *genes: str) -> np.ndarray:
    return np.array([model.vocab[gene] for gene in genes])


def by_hand(model: SCGPT, genes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embedding of one cell by the network's own method, and predicted expression of all genes from it."""
    with torch.inference_mode():
        encoded = model.network.encode(torch.from_numpy(genes)[None], torch.from_numpy(values)[None])
        every = torch.arange(len(model.vocab))
        of_cell = model.network.mvc_decoder(encoded.cell, model.network.gene_embeddings(every)[None])[0]
    return encoded.cell[0].numpy(), of_cell[0].numpy()


def embedded(model: CellModel, tokens: RaggedTokens) -> np.ndarray:
    """Embeddings with unit norm by the network's own method; cells have equal numbers of tokens."""
    shape = (len(tokens), -1)
    genes, values = (torch.from_numpy(part.reshape(shape)) for part in (tokens.genes, tokens.values))
    with torch.inference_mode():
        cell = model.network.embedding(model.network.encode(genes, values, cell_only=True).cell)
    return torch.nn.functional.normalize(cell, dim=1).numpy()


def expressed(adata: AnnData, share: float) -> list[str]:
    """Genes that about this share of the first cells express, and not all of them."""
    found = (adata.X[:N].toarray() > 0).mean(axis=0)
    return adata.var_names[np.argsort(np.abs(found - share), kind="stable")][:3].tolist()


def expected(
    model: SCGPT, tokens: RaggedTokens, gene: int, new: list[float]
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Cosine distance of each cell when the gene gets a value (0: no token), and the change of embeddings and of predictions."""
    distances, moved, changes = [], [], []
    for cell in range(N):
        at = slice(tokens.indptr[cell], tokens.indptr[cell + 1])
        genes, values = tokens.genes[at], tokens.values[at]
        before, predicted = by_hand(model, genes, values)
        others = genes != gene
        genes, values = genes[others], values[others]
        if new[cell] > 0:
            genes, values = np.append(genes, gene), np.append(values, np.float32(new[cell]))
        after, predicted_after = by_hand(model, genes, values)
        distances.append(1 - before @ after / np.linalg.norm(before) / np.linalg.norm(after))
        moved.append(after - before)
        changes.append(predicted_after - predicted)
    return distances, np.mean(moved, axis=0), np.mean(changes, axis=0)


class TestKnockout:
    def test_equals_the_cell_without_the_token(self, model: SCGPT, few: AnnData) -> None:
        run = edited(model, few, Edit("knockout"))
        names = expressed(few, 0.5)
        shifts = run.shifts(tokens_of(model, *names), None)
        tokens = next(iter(model.cells(few).windows(np.arange(N))))
        for row, name in enumerate(names):
            distances, moved, changes = expected(model, tokens, model.vocab[name], [0.0] * N)
            assert 0 < shifts.n_changed[row, 0] < N
            assert shifts.n_changed[row, 0] == (few[:N, name].X.toarray() > 0).sum()
            assert shifts.shift[row, 0] == pytest.approx(np.mean(distances), rel=1e-3, abs=1e-7)
            assert shifts.embedding[row, 0] == pytest.approx(moved, abs=1e-5)
            every = np.arange(len(model.vocab))
            assert run.expression_change(shifts.embedding[row], every)[0] == pytest.approx(changes, abs=1e-4)
            logs = few[:N, name].X.toarray()
            assert shifts.change[row, 0] == pytest.approx(-logs.mean(), rel=1e-5)

    def test_a_gene_that_no_cell_expresses_changes_nothing(self, model: SCGPT, few: AnnData) -> None:
        shifts = edited(model, few, Edit("knockout")).shifts(tokens_of(model, "ABSENT"), None)
        assert shifts.shift == shifts.dose == shifts.n_changed == [[0]]


class TestLevels:
    @pytest.mark.parametrize("mode", ["set", "overexpress"])
    def test_the_value_is_that_of_a_gene_with_this_expression(self, model: SCGPT, few: AnnData, mode: str) -> None:
        name = expressed(few, 0.5)[0]
        level = 1.5
        run = edited(model, few, Edit(mode, level))
        shifts = run.shifts(tokens_of(model, name), None)
        tokens = next(iter(model.cells(few).windows(np.arange(N))))
        new = []
        for cell in range(N):
            x = few.X[cell].toarray().ravel()
            own = float(few[cell, name].X.toarray()[0, 0])
            wanted = level + (own if mode == "overexpress" else 0)
            new.append(float(np.clip((bin_edges(x[x > 0]) <= wanted).sum(), 1, 50)))
        distances, moved, _ = expected(model, tokens, model.vocab[name], new)
        assert shifts.shift[0, 0] == pytest.approx(np.mean(distances), rel=1e-3, abs=1e-7)
        assert shifts.embedding[0, 0] == pytest.approx(moved, abs=1e-5)

    def test_set_to_what_is_there_changes_nothing(self, model: SCGPT, few: AnnData) -> None:
        name = expressed(few, 0.5)[0]
        x = few.X.toarray()
        x[: N // 2, few.var_names.get_loc(name)] = x[: N // 2].max(axis=1) + 1  # the highest bin
        few.X = sp.csr_matrix(x)
        shifts = edited(model, few, Edit("set", 100.0)).shifts(tokens_of(model, name), None)
        assert shifts.n_changed[0, 0] == N - N // 2

    def test_set_to_nothing_is_a_knockout(self, model: SCGPT, few: AnnData) -> None:
        tokens = tokens_of(model, *expressed(few, 0.5))
        gone, zero = (edited(model, few, edit).shifts(tokens, None) for edit in (Edit("knockout"), Edit("set", 0)))
        assert np.array_equal(gone.shift, zero.shift)
        assert np.array_equal(gone.change, zero.change)

    def test_a_gene_that_is_not_measured_becomes_a_token(self, model: SCGPT, few: AnnData) -> None:
        shifts = edited(model, few, Edit("overexpress", 2.0)).shifts(tokens_of(model, "ABSENT"), None)
        assert shifts.n_changed[0, 0] == N
        assert shifts.shift[0, 0] > 0

    def test_counts_and_their_logarithms_get_about_the_same_values(self, model: SCGPT, few: AnnData) -> None:
        counts = few.copy()
        counts.X = few.X.copy()
        counts.X.data = np.round(np.expm1(few.X.data) * 3).clip(1)
        logged = counts.copy()
        depth = np.asarray(counts.X.sum(axis=1)).ravel()
        logged.X = counts.X.multiply(1e4 / depth[:, None]).log1p().tocsr().astype(np.float32)
        tokens = tokens_of(model, *expressed(few, 0.5))
        a, b = (edited(model, x, Edit("set", 5.0)).shifts(tokens, None) for x in (counts, logged))
        assert a.shift == pytest.approx(b.shift, rel=1e-3)


class TestGroups:
    def test_each_group_is_as_if_it_were_alone(self, model: SCGPT, few: AnnData) -> None:
        tokens = tokens_of(model, *expressed(few, 0.5))
        groups = [0, 1, 1] * (N // 3)
        axes = np.random.default_rng(0).normal(size=(2, 16))
        together = edited(model, few, Edit("knockout"), groups=groups).shifts(tokens, axes)
        for group in (0, 1):
            mine = [0 if g == group else 1 for g in groups]
            alone = edited(model, few, Edit("knockout"), groups=mine).shifts(tokens, axes[[group, 1 - group]])
            for name in Shifts.__annotations__:
                assert getattr(alone, name)[:, 0] == pytest.approx(getattr(together, name)[:, group], rel=1e-6)

    def test_neither_batches_nor_blocks_of_genes_change_the_numbers(self, model: SCGPT, few: AnnData) -> None:
        tokens = tokens_of(model, *few.var_names[:40])
        whole = edited(model, few, Edit("knockout")).shifts(tokens, None)
        small = edited(model, few, Edit("knockout"), batch_tokens=70)
        parts = [small.shifts(part, None) for part in np.array_split(tokens, 7)]
        assert np.concatenate([part.shift for part in parts]) == pytest.approx(whole.shift, rel=1e-3, abs=1e-8)

    def test_towards_is_the_share_of_the_way(self, model: SCGPT, few: AnnData) -> None:
        token = tokens_of(model, expressed(few, 0.5)[0])
        run = edited(model, few, Edit("knockout"))
        tokens = next(iter(model.cells(few).windows(np.arange(N))))
        before: list[np.ndarray] = []
        after: list[np.ndarray] = []
        for cell in range(N):
            at = slice(tokens.indptr[cell], tokens.indptr[cell + 1])
            kept = tokens.genes[at] != token[0]
            for where, mask in ((before, kept | True), (after, kept)):
                found, _ = by_hand(model, tokens.genes[at][mask], tokens.values[at][mask])
                where.append(found / np.linalg.norm(found))
        step = np.mean(after, axis=0) - np.mean(before, axis=0)
        # A state that lies three times as far as the step leads, in its direction.
        assert run.shifts(token, 3 * step[None]).towards[0, 0] == pytest.approx(1 / 3, rel=1e-3)
        assert run.shifts(token, -3 * step[None]).towards[0, 0] == pytest.approx(-1 / 3, rel=1e-3)
        assert np.isnan(run.shifts(token, None).towards).all()


class TestScBERT:
    """A network that reads every gene: what is taken away is a value and not a token."""

    def test_a_knockout_is_a_value_of_zero(self, few: AnnData) -> None:
        model = small_model(few.var_names.tolist())
        name = expressed(few, 0.5)[0]
        run = edited(model, few, Edit("knockout"))
        shifts = run.shifts(tokens_of(model, name), None)
        tokens = next(iter(model.cells(few).windows(np.arange(N))))
        values = tokens.values.copy()
        values[tokens.genes == model.vocab[name]] = 0
        changed = RaggedTokens(tokens.genes, values, tokens.indptr, tokens.cells, tokens.keys)
        before, after = (embedded(model, some) for some in (tokens, changed))
        moved = np.square(after - before).sum(axis=1) / 2
        assert (moved > 0).sum() == shifts.n_changed[0, 0] > 0
        assert shifts.shift[0, 0] == pytest.approx(moved.mean(), rel=1e-3)

    def test_a_level_is_its_class(self, few: AnnData) -> None:
        model = small_model(few.var_names.tolist())
        name = expressed(few, 0.5)[0]
        run = edited(model, few, Edit("set", math.log1p(3.5)))  # log2(4.5) is between 2 and 3
        shifts = run.shifts(tokens_of(model, name), None)
        old = run.values(tokens_of(model, name))[:, 0]
        assert shifts.n_changed[0, 0] == (old != 2).sum()
        assert shifts.dose[0, 0] == pytest.approx(np.abs(old - 2).mean())
