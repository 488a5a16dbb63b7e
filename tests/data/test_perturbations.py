from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.flagged import (
    CLS,
    CONTROL,
    KNOWN,
    OF_CELL,
    PAD,
    SECOND_POOL,
    TARGETS,
    TOKEN_IDS,
    flagged_cells,
    targets,
    tensor_of,
)

from scgalore.data.perturbations import FlagTokenizer, HeldOutPrior, PerturbationCells, Targets
from scgalore.data.sampler import BatchRequest
from scgalore.data.tokens import TokenBatch

PERTURBED_CELLS = np.flatnonzero(OF_CELL >= 0)
MEASURED = set(TOKEN_IDS[TOKEN_IDS >= 0].tolist())
COLUMN_OF = {int(token): column for column, token in enumerate(TOKEN_IDS) if token >= 0}

requests = st.builds(
    lambda rows, draw: BatchRequest(np.array(rows), draw),
    st.lists(st.sampled_from(PERTURBED_CELLS.tolist()), min_size=1, max_size=12),
    st.integers(0, 5),
)


def tokens_where(batch: TokenBatch, where: torch.Tensor | None) -> list[list[int]]:
    """Tokens of each cell where a condition holds."""
    assert where is not None
    return [genes[row].tolist() for genes, row in zip(batch.genes, where, strict=True)]


def values_of(batch: TokenBatch, row: int, name: str) -> dict[int, float]:
    """What stands at each measured gene of a cell."""
    tensor, counted = tensor_of(batch, name), batch.targets["masked"]
    return {int(batch.genes[row, i]): float(tensor[row, i]) for i in torch.nonzero(counted[row]).ravel()}


def matrix(cells: PerturbationCells) -> np.ndarray:
    return cells.expression.rows(np.arange(cells.n_obs)).toarray()


def flags_of(batch: TokenBatch) -> list[dict[int, int]]:
    """Flag of each flagged token."""
    return [
        {int(genes[i]): int(flags[i]) for i in torch.nonzero(flags).ravel()}
        for genes, flags in zip(batch.genes, batch.conditions["flags"], strict=True)
    ]


def flags_of_row(row: int, known: tuple[int, ...] = KNOWN) -> dict[int, int]:
    return {token: 2 if token in known else 1 for token in TARGETS[row]}


def check_tokens(batch: TokenBatch, rows: np.ndarray, *, columns: int) -> None:
    """Everything that must hold of tokens, flags and padding."""
    assert (batch.genes[:, 0] == CLS).all()
    present, counted = tokens_where(batch, ~batch.padding), tokens_where(batch, batch.targets["masked"])
    for row, tokens, flags, measured in zip(rows, present, flags_of(batch), counted, strict=True):
        assert flags == flags_of_row(row)
        assert len(set(tokens)) == len(tokens)
        assert set(tokens) == {CLS, *measured, *TARGETS[row]}
        assert set(measured) <= MEASURED
        assert len(measured) == columns
    assert (batch.genes[batch.padding] == PAD).all()
    assert (batch.genes[~batch.padding] != PAD).all()
    assert (batch.conditions["flags"][batch.padding] == 0).all()
    assert not (batch.targets["masked"] & batch.padding).any()
    assert batch.padded == bool(batch.padding.any())


class TestTokens:
    @given(requests)
    def test_all_measured_genes_and_the_perturbed_ones(self, request: BatchRequest) -> None:
        cells = flagged_cells()
        batch = cells.batch(request)
        check_tokens(batch, OF_CELL[request.rows], columns=len(MEASURED))
        assert batch.cells.tolist() == request.rows.tolist()

    @given(request=requests, n_genes=st.integers(1, 12), seed=st.integers(0, 3))
    def test_perturbed_genes_are_among_those_drawn(self, request: BatchRequest, n_genes: int, seed: int) -> None:
        batch = flagged_cells(n_genes=n_genes, seed=seed).batch(request)
        always = {token for row in OF_CELL[request.rows] for token in TARGETS[row]} & MEASURED
        check_tokens(batch, OF_CELL[request.rows], columns=max(min(n_genes, len(MEASURED)), len(always)))

    def test_genes_are_drawn_anew_each_epoch_and_all_get_their_turn(self) -> None:
        cells = flagged_cells(n_genes=4)
        drawn = [
            frozenset(tokens_where(batch, batch.targets["masked"])[0])
            for batch in (cells.batch(BatchRequest(PERTURBED_CELLS[:6], draw)) for draw in range(60))
        ]
        assert len(set(drawn)) > 20
        assert set().union(*drawn) == MEASURED
        again = cells.batch(BatchRequest(PERTURBED_CELLS[:6], 3))
        assert frozenset(tokens_where(again, again.targets["masked"])[0]) == drawn[3]

    def test_padding_stands_only_where_another_cell_has_more_genes(self) -> None:
        cells = flagged_cells()
        first = {row: int(np.flatnonzero(row == OF_CELL)[0]) for row in range(len(TARGETS))}
        width = 1 + len(MEASURED)
        for row, n_extra in ((0, 0), (1, 1), (2, 1), (3, 2), (4, 0)):
            alone = cells.batch(BatchRequest(np.array([first[row]])))
            assert alone.genes.shape == (1, width + n_extra)
            assert not alone.padded
            beside = cells.batch(BatchRequest(np.array([first[3], first[row]])))
            assert int(beside.padding[1].sum()) == 2 - n_extra

    def test_values_of_tokens_that_are_no_measured_genes(self) -> None:
        tokenizer = {"cls_value": -7.0, "pad_value": -8.0, "unmeasured_value": -9.0}
        batch = flagged_cells(tokenizer=tokenizer).batch(BatchRequest(PERTURBED_CELLS))
        assert (batch.values[:, 0] == -7).all()
        assert (batch.values[batch.padding] == -8).all()
        unmeasured = ~batch.targets["masked"] & ~batch.padding
        unmeasured[:, 0] = False
        assert unmeasured.any()
        assert (batch.values[unmeasured] == -9).all()
        assert (batch.conditions["flags"][unmeasured] > 0).all()

    def test_a_cell_reads_the_same_in_any_batch(self) -> None:
        cells = flagged_cells()
        whole = cells.batch(BatchRequest(PERTURBED_CELLS, 2))
        for i in (0, 8, 13, 17, 20):
            alone = cells.batch(BatchRequest(PERTURBED_CELLS[[i]], 2))
            n = alone.genes.shape[1]
            for name in ("genes", "values", "flags", "expression", "controls", "prior", "masked", "padding"):
                assert torch.equal(tensor_of(whole, name)[i, :n], tensor_of(alone, name)[0]), name

    def test_all_tokens_of_any_batch_are_announced(self) -> None:
        cells = flagged_cells()
        batch = cells.batch(BatchRequest(PERTURBED_CELLS))
        assert set(batch.genes.unique().tolist()) <= set(cells.tokens().tolist())
        assert cells.tokens().tolist() == sorted({CLS, PAD, 50, 51} | MEASURED)

    @pytest.mark.parametrize(("n_genes", "length"), [(None, 11), (4, 5), (99, 11)])
    def test_lengths_of_training_cells(self, n_genes: int | None, length: int) -> None:
        assert set(flagged_cells(n_genes=n_genes).lengths.tolist()) == {length}


class TestUpstreamsWay:
    """Perturbed genes that are not measured are no tokens, and drawn genes take no notice of what was perturbed."""

    def test_unmeasured_genes_leave_no_trace(self) -> None:
        batch = flagged_cells(tokenizer={"flag_unmeasured": False}).batch(BatchRequest(PERTURBED_CELLS))
        assert batch.genes.shape[1] == 1 + len(MEASURED)
        assert not batch.padded
        for row, flags in zip(OF_CELL[PERTURBED_CELLS], flags_of(batch), strict=True):
            assert flags == {token: flag for token, flag in flags_of_row(row).items() if token in MEASURED}

    def test_perturbed_genes_may_be_missed_by_the_draw(self) -> None:
        cells = flagged_cells(tokenizer={"flag_unmeasured": False}, n_genes=3)
        one = np.flatnonzero(OF_CELL == 0)[:1]
        assert {len(flags_of(cells.batch(BatchRequest(one, draw)))[0]) for draw in range(40)} == {0, 1}


class TestPartners:
    def partners(self, cells: PerturbationCells, rows: np.ndarray, draw: int) -> list[int]:
        """The cells whose expression stands in a batch."""
        x = matrix(cells)[:, cells.tokenizer.columns]
        batch = cells.batch(BatchRequest(rows, draw))
        read = batch.values[:, 1 : 1 + x.shape[1]].numpy()
        found = [np.flatnonzero((x == values).all(axis=1)).tolist() for values in read]
        assert all(len(same) == 1 for same in found)
        return [same[0] for same in found]

    @pytest.mark.parametrize("draw", range(4))
    def test_are_control_cells_of_the_same_pool(self, draw: int) -> None:
        partners = self.partners(flagged_cells(), PERTURBED_CELLS, draw)
        assert (OF_CELL[partners] == CONTROL).all()
        assert SECOND_POOL[partners].tolist() == SECOND_POOL[PERTURBED_CELLS].tolist()

    def test_all_of_a_pool_get_their_turn(self) -> None:
        cells = flagged_cells()
        found: dict[int, set[int]] = {cell: set() for cell in PERTURBED_CELLS[:2].tolist()}
        for draw in range(60):
            for cell, partner in zip(found, self.partners(cells, PERTURBED_CELLS[:2], draw), strict=True):
                found[cell].add(partner)
        for cell, partners in found.items():
            assert partners == set(cells.pool_cells[cells.pools[cell]].tolist())

    def test_are_drawn_anew_each_epoch_from_the_seed_alone(self) -> None:
        one, same, other = flagged_cells(seed=3), flagged_cells(seed=3), flagged_cells(seed=4)
        first = self.partners(one, PERTURBED_CELLS, 0)
        assert first == self.partners(same, PERTURBED_CELLS, 0)
        assert first != self.partners(one, PERTURBED_CELLS, 1)
        assert first != self.partners(other, PERTURBED_CELLS, 0)

    @given(st.permutations(PERTURBED_CELLS.tolist()), st.integers(1, 20))
    @settings(max_examples=25)
    def test_do_not_depend_on_the_batch_a_cell_is_in(self, order: list[int], n: int) -> None:
        cells = flagged_cells()
        expected = dict(zip(PERTURBED_CELLS.tolist(), self.partners(cells, PERTURBED_CELLS, 2), strict=True))
        part = order[:n]
        assert self.partners(cells, np.array(part), 2) == [expected[cell] for cell in part]


class TestTargets:
    @pytest.mark.parametrize("n_genes", [None, 5])
    def test_stand_at_their_tokens(self, n_genes: int | None) -> None:
        cells = flagged_cells(n_genes=n_genes)
        assert cells.prior is not None
        x = matrix(cells)
        batch = cells.batch(BatchRequest(PERTURBED_CELLS, 1))
        for i, cell in enumerate(PERTURBED_CELLS):
            row = OF_CELL[cell]
            for name, of_columns in (
                ("expression", x[cell]),
                ("controls", cells.controls[row]),
                ("prior", cells.prior[row]),
            ):
                found = values_of(batch, i, name)
                assert found == {token: float(of_columns[COLUMN_OF[token]]) for token in found}
                assert len(found) >= 5

    def test_are_zero_where_they_do_not_count(self) -> None:
        batch = flagged_cells().batch(BatchRequest(PERTURBED_CELLS))
        for tensor in (batch.targets["expression"], batch.targets["controls"], batch.targets["prior"]):
            assert tensor.dtype == torch.float32
            assert (tensor[~batch.targets["masked"]] == 0).all()

    def test_without_a_prior_there_is_none(self) -> None:
        assert "prior" not in flagged_cells(prior=False).batch(BatchRequest(PERTURBED_CELLS)).targets


class TestHeldOutPrior:
    """A cell is shown with the prior that has seen its row, or with the one that has not, and the flags say which."""

    def views(self, cells: PerturbationCells, rows: np.ndarray, draw: int) -> list[bool]:
        """Whether each cell is shown as one that the prior has not seen."""
        assert cells.prior is not None
        assert cells.held_out is not None
        batch = cells.batch(BatchRequest(rows, draw))
        out = []
        for i, (cell, flags) in enumerate(zip(rows, flags_of(batch), strict=True)):
            row = OF_CELL[cell]
            found = values_of(batch, i, "prior")
            matches = [
                found == {token: float(table[row, column]) for token, column in COLUMN_OF.items()}
                for table in (cells.prior, cells.held_out.effects)
            ]
            assert sum(matches) == 1
            assert flags == flags_of_row(row, KNOWN[:2] if matches[1] else KNOWN)
            out.append(matches[1])
        return out

    def test_each_cell_is_shown_both_ways_about_equally_often(self) -> None:
        cells = flagged_cells(held_out=True)
        views = np.array([self.views(cells, PERTURBED_CELLS, draw) for draw in range(40)])
        assert (views.any(axis=0) & ~views.all(axis=0)).all()
        # 920 draws of one half: standard deviation 15.
        assert abs(views.sum() - views.size / 2) < 75

    @given(order=st.permutations(PERTURBED_CELLS.tolist()), n=st.integers(1, 20), draw=st.integers(0, 3))
    @settings(max_examples=25)
    def test_which_one_does_not_depend_on_the_batch(self, order: list[int], n: int, draw: int) -> None:
        cells = flagged_cells(held_out=True)
        expected = dict(zip(PERTURBED_CELLS.tolist(), self.views(cells, PERTURBED_CELLS, draw), strict=True))
        assert self.views(cells, np.array(order[:n]), draw) == [expected[cell] for cell in order[:n]]

    def test_validation_shows_the_prior_as_it_is(self) -> None:
        one, other = (flagged_cells(held_out=held_out).validation_batch(3) for held_out in (True, False))
        for name in ("prior", "flags", "genes", "values"):
            assert torch.equal(tensor_of(one, name), tensor_of(other, name))

    def test_without_a_prior_nothing_is_known(self) -> None:
        batch = flagged_cells(prior=False).batch(BatchRequest(PERTURBED_CELLS))
        assert {flag for flags in flags_of(batch) for flag in flags.values()} == {1}


class TestValidation:
    def test_batches_have_equal_sizes_and_one_perturbation(self) -> None:
        cells = flagged_cells(n_controls=6)
        for row in range(len(TARGETS)):
            batch = cells.validation_batch(row)
            assert len(batch) == 6
            check_tokens(batch, np.full(6, row), columns=len(MEASURED))
            assert not batch.padded
            assert set(batch.cells.tolist()) <= set(cells.row_pools[row].tolist())

    def test_targets_are_the_means_of_the_row(self) -> None:
        cells = flagged_cells()
        assert cells.prior is not None
        for row in range(len(TARGETS)):
            batch = cells.validation_batch(row)
            for i in range(len(batch)):
                for name, table in (("expression", cells.means), ("controls", cells.controls), ("prior", cells.prior)):
                    expected = {token: float(table[row, column]) for token, column in COLUMN_OF.items()}
                    assert values_of(batch, i, name) == expected

    def test_values_are_those_of_the_control_cells(self) -> None:
        cells = flagged_cells()
        x = matrix(cells)
        batch = cells.validation_batch(2)
        for i, cell in enumerate(batch.cells.tolist()):
            assert values_of(batch, i, "values") == {
                token: float(x[cell, column]) for token, column in COLUMN_OF.items()
            }

    def test_use_all_genes_whatever_training_draws(self) -> None:
        some, every = (flagged_cells(n_genes=n).validation_batch(1) for n in (3, None))
        assert torch.equal(some.genes, every.genes)
        assert torch.equal(some.values, every.values)

    def test_control_cells_are_drawn_once_each_where_there_are_enough(self) -> None:
        cells = flagged_cells(n_controls=5)
        n_of = [len(pool) for pool in cells.row_pools]
        assert set(n_of) == {4, 5}
        for row, n in enumerate(n_of):
            drawn = cells.validation_batch(row).cells.tolist()
            assert len(drawn) == 5
            assert len(set(drawn)) == 5 if n == 5 else len(set(drawn)) <= 4

    def test_never_change_within_a_seed_and_differ_between_rows(self) -> None:
        cells, other = flagged_cells(n_controls=3), flagged_cells(n_controls=3, seed=9)
        drawn = [cells.validation_batch(row).cells.tolist() for row in (0, 2, 4)]
        assert drawn == [cells.validation_batch(row).cells.tolist() for row in (0, 2, 4)]
        assert drawn != [other.validation_batch(row).cells.tolist() for row in (0, 2, 4)]
        assert drawn[0] != drawn[1]


class TestDigests:
    """What a checkpoint asks before it is resumed."""

    def digest(self, cells: PerturbationCells) -> str:
        return cells.identity()["expression"]

    def test_are_the_same_for_the_same_data(self) -> None:
        assert self.digest(flagged_cells()) == self.digest(flagged_cells())

    @pytest.mark.parametrize("name", ["rows", "pools", "means", "controls", "prior", "pool_cells"])
    def test_change_with_every_array_that_training_reads(self, name: str) -> None:
        cells = flagged_cells()
        value = getattr(cells, name)
        changed: dict[str, Any] = {name: (value[0] + 1, *value[1:]) if isinstance(value, tuple) else value + 1}
        assert self.digest(replace(cells, **changed)) != self.digest(cells)

    def test_change_with_what_is_flagged_and_with_the_prior_that_is_held_out(self) -> None:
        cells = flagged_cells(held_out=True)
        assert cells.held_out is not None
        effects, of_rows = cells.held_out.effects, cells.held_out.targets
        others = [
            replace(cells, targets=targets(())),
            replace(cells, targets=(Targets(np.array([8]), np.array([True])), *cells.targets[1:])),
            replace(cells, held_out=HeldOutPrior(effects + 1, of_rows)),
            replace(cells, held_out=HeldOutPrior(effects, targets(()))),
            replace(cells, held_out=None),
        ]
        digests = [self.digest(one) for one in (cells, *others)]
        assert all(one != other for one, other in combinations(digests, 2))


def test_tokenizer_alone_flags_what_it_is_told() -> None:
    tokenizer = FlagTokenizer(np.array([4, -1, 2]), cls_id=0, pad_id=1)
    assert tokenizer.columns.tolist() == [0, 2]
    batch = tokenizer.batch(
        np.array([[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]], dtype=np.float32),
        [
            Targets(np.array([9, 2]), np.array([True, False])),
            Targets(np.array([], dtype=np.int64), np.array([], dtype=bool)),
            Targets(np.array([4, 2]), np.array([False, True])),
        ],
        columns=tokenizer.columns,
        cells=np.array([7, 8, 9]),
    )
    assert batch.genes.tolist() == [[0, 4, 2, 9], [0, 4, 2, 1], [0, 4, 2, 1]]
    assert batch.values.tolist() == [[-2, 1.5, 2.5, -1], [-2, 3.5, 4.5, -2], [-2, 5.5, 6.5, -2]]
    assert batch.conditions["flags"].tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [0, 1, 2, 0]]
    assert batch.padding.tolist() == [[False] * 4, [False] * 3 + [True], [False] * 3 + [True]]
    assert (batch.genes.dtype, batch.values.dtype, batch.conditions["flags"].dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
    )
