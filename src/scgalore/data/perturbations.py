"""Control cells as tokens with perturbation flags, and the expression of perturbed cells as targets.

Shape letters: b cells in a batch, s tokens in a row (``<cls>`` included), n columns of the matrix, r rows
(perturbations in their contexts).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from scgalore.data.batches import WHOLE_PASSES, ListedBatches, SampledBatches, largest_batch
from scgalore.data.cells import ranked_tokens
from scgalore.data.hashing import digest, fold_seed, uniforms
from scgalore.data.sampler import BatchRequest
from scgalore.data.tokens import TokenBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore.data.batches import Batches, BatchPlan
    from scgalore.data.expression import LogExpression

__all__ = ["FlagTokenizer", "HeldOutPrior", "PerturbationCells", "Targets"]

UNPERTURBED, PERTURBED, KNOWN = 0, 1, 2
"""Flags: not perturbed; perturbed; perturbed, and the prior was fitted to this perturbation."""


class Targets(NamedTuple):
    """Perturbation of a cell: genes, or a compound at a dose.

    Attributes
    ----------
    tokens
        Token ids, int64 ``(k,)``.
    known
        Whether the prior was fitted to perturbations of each token, bool ``(k,)``; all ``False`` without a prior.
    values
        Logarithms of doses, float32 ``(k,)``, used as values of the tokens of compounds; ``None`` for genes.
    """

    tokens: NDArray[np.int64]
    known: NDArray[np.bool_]
    values: NDArray[np.float32] | None = None

    @property
    def flags(self) -> NDArray[np.int64]:
        """Flag of each token."""
        return np.where(self.known, KNOWN, PERTURBED)


@dataclass(frozen=True)
class HeldOutPrior:
    """Prediction of the prior for each row when it is fitted to the other rows, and the genes it then covers.

    Attributes
    ----------
    effects
        float32 ``(r, n)``.
    targets
        Perturbed genes of each row.
    """

    effects: NDArray[np.float32] = field(repr=False)
    targets: tuple[Targets, ...] = field(repr=False)


@dataclass(frozen=True)
class FlagTokenizer:
    """Convert expression and perturbed genes or compounds to tokens with flags.

    A cell's tokens are ``<cls>``, the measured genes, and perturbations that are not measured. A perturbed gene is
    always a token, since only its flag tells the network about the perturbation; a compound is a token with its dose as
    value.

    Attributes
    ----------
    token_ids
        Token id of each column, int64 ``(n,)``; -1 for columns without a token.
    cls_id, pad_id
        Ids of the special tokens.
    cls_value, pad_value
        Values of the special tokens.
    unmeasured_value
        Value of a perturbed gene that is not measured; the same as for masked values.
    flag_unmeasured
        Whether perturbed genes that are not measured become tokens. ``False`` reproduces scGPT, for comparison.
    """

    token_ids: NDArray[np.int64] = field(repr=False)
    cls_id: int
    pad_id: int
    cls_value: float = -2.0
    pad_value: float = -2.0
    unmeasured_value: float = -1.0
    flag_unmeasured: bool = True

    @property
    def columns(self) -> NDArray[np.int64]:
        """Columns of the matrix with a token."""
        return np.flatnonzero(self.token_ids >= 0)

    def batch(
        self,
        expression: NDArray[np.float32],
        targets: Sequence[Targets],
        *,
        columns: NDArray[np.int64],
        cells: NDArray[np.int64],
    ) -> TokenBatch:
        """Tokens of some cells.

        Parameters
        ----------
        expression
            Expression in ``columns``, float32 ``(b, len(columns))``.
        targets
            Genes to flag in each cell.
        columns
            Columns of the matrix; each has a token.
        cells
            Row number of each cell.
        """
        ids = self.token_ids[columns]
        # Measured genes are at the position of their column; the others follow after all columns.
        measured_at = {token: 1 + i for i, token in enumerate(ids.tolist())}
        n_extra = 0
        if self.flag_unmeasured:
            n_extra = max(
                (sum(t not in measured_at for t in of_cell.tokens.tolist()) for of_cell in targets), default=0
            )
        shape = (len(expression), 1 + len(ids) + n_extra)
        genes = np.full(shape, self.pad_id)
        values = np.full(shape, self.pad_value, dtype=np.float32)
        flags = np.full(shape, UNPERTURBED)
        genes[:, 0], values[:, 0] = self.cls_id, self.cls_value
        measured = slice(1, 1 + len(ids))
        genes[:, measured], values[:, measured] = ids, expression
        padding = np.zeros(shape, dtype=bool)
        padding[:, measured.stop :] = True
        for row, of_cell in enumerate(targets):
            free = measured.stop
            given = [self.unmeasured_value] * len(of_cell.tokens) if of_cell.values is None else of_cell.values.tolist()
            for token, flag, value in zip(of_cell.tokens.tolist(), of_cell.flags.tolist(), given, strict=True):
                if token in measured_at:
                    flags[row, measured_at[token]] = flag
                elif self.flag_unmeasured:
                    genes[row, free], values[row, free] = token, value
                    flags[row, free], padding[row, free] = flag, False
                    free += 1
        counted = np.zeros(shape, dtype=bool)
        counted[:, measured] = True
        return TokenBatch(
            genes=torch.from_numpy(genes),
            values=torch.from_numpy(values),
            padding=torch.from_numpy(padding),
            cells=torch.from_numpy(cells),
            keys=torch.zeros(len(cells), dtype=torch.int64),
            conditions={"flags": torch.from_numpy(flags)},
            targets={"masked": torch.from_numpy(counted)},
            padded=bool(padding.any()),
        )


@dataclass(frozen=True)
class PerturbationCells:
    """Perturbed cells, each with the control cells it can be paired with.

    Attributes
    ----------
    expression
        Log-normalised expression of all cells.
    tokenizer
        Converts expression to tokens.
    targets
        Perturbed genes of each row.
    rows
        Row of each cell, int64 ``(n_obs,)``; -1 for control cells and excluded cells.
    pools
        Pool of control cells of each cell, int64 ``(n_obs,)``: those of the same cell type and batch.
    pool_cells
        Control cells of each pool.
    row_pools
        Control cells of each row's context.
    means
        Mean expression of each row's cells, float32 ``(r, n)``.
    controls
        Mean expression of the control cells of each row's context, float32 ``(r, n)``.
    prior
        Effect that the network's output is added to, float32 ``(r, n)``; ``None`` for no prior.
    held_out
        The prior for perturbations it was not fitted to. Training cells alternate between the two priors, with
        different flags: what the network learns about genes that the prior does not cover must not be added again for
        genes that it covers.
    n_genes
        Number of genes per training step, resampled for each step and always including the perturbed genes. ``None``
        uses all genes.
    n_controls
        Number of control cells used to validate a perturbation.
    seed
        Seed for pairing cells and drawing genes.
    ranked
        Token ids of the measured genes from best to worst, for a curriculum; ``None`` without a ranking.
    admitted
        Token ids of the measured genes used in training, in addition to the perturbed genes; ``None`` for all.
    """

    expression: LogExpression
    tokenizer: FlagTokenizer
    targets: tuple[Targets, ...] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    pools: NDArray[np.int64] = field(repr=False)
    pool_cells: tuple[NDArray[np.int64], ...] = field(repr=False)
    row_pools: tuple[NDArray[np.int64], ...] = field(repr=False)
    means: NDArray[np.float32] = field(repr=False)
    controls: NDArray[np.float32] = field(repr=False)
    prior: NDArray[np.float32] | None = field(repr=False, default=None)
    held_out: HeldOutPrior | None = field(repr=False, default=None)
    n_genes: int | None = None
    n_controls: int = 64
    seed: int = 0
    ranked: NDArray[np.int64] | None = field(repr=False, default=None)
    admitted: NDArray[np.int64] | None = field(repr=False, default=None)

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.expression.n_obs

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each cell in training, int64 ``(n_obs,)``, without genes that are not measured."""
        n = len(self._admitted_columns())
        return np.full(self.n_obs, 1 + min(n, self.n_genes or n))

    def tokens(self) -> NDArray[np.int64]:
        """Ids of all tokens that a batch can contain, sorted."""
        known = self.tokenizer.token_ids[self.tokenizer.columns]
        special = [self.tokenizer.cls_id, self.tokenizer.pad_id]
        return np.unique(np.concatenate([known, special, *(of_row.tokens for of_row in self.targets)]).astype(np.int64))

    def with_ranks(self, ranks: NDArray[np.floating]) -> PerturbationCells:
        """Same cells with a ranking of the genes, as :meth:`scgalore.data.cells.TokenCells.with_ranks`."""
        return replace(self, ranked=ranked_tokens(self.tokenizer.token_ids, ranks))

    def within(self, genes: NDArray[np.int64]) -> PerturbationCells:
        """Same cells, with training restricted to these genes and the perturbed genes."""
        return replace(self, admitted=genes)

    @property
    def n_matched(self) -> int:
        """Number of measured genes with a token."""
        return len(self.tokenizer.columns)

    @property
    def limits(self) -> Mapping[str, str]:
        """``max_length`` does not apply, since cells have a token for each measured gene."""
        return {
            "max_length": "perturbed cells have a token for each measured gene, or for each gene of a step. Set genes_per_step instead.",
            "steps_per_epoch": WHOLE_PASSES,
        }

    def identity(self) -> dict[str, Any]:
        """Hashes of everything that training depends on; reads the matrix once."""
        return {
            "number of cells": self.n_obs,
            "genes": digest([self.tokens()]),
            "tokens": repr(self),
            "expression": digest(self._arrays()),
            "ranking of genes": "none" if self.ranked is None else digest([self.ranked]),
        }

    def training_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Shuffled batches of the perturbed cells, each paired with a control cell."""
        rows = np.arange(self.n_obs) if rows is None else rows
        return SampledBatches(self, rows[self.rows[rows] >= 0], plan)

    def validation_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """One batch per perturbation and context of the cells; every process gets all of them."""
        perturbed = np.unique(self.rows if rows is None else self.rows[rows])
        perturbed = perturbed[perturbed >= 0]
        requests = [BatchRequest(row) for row in perturbed[:, None]]
        return ListedBatches(self._validation, perturbed, lambda rank, size: requests)

    def largest_batch(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> tuple[int, int]:
        """Maximum numbers of cells per training batch and of tokens per cell."""
        return largest_batch(self.lengths if rows is None else self.lengths[rows], plan)

    def _arrays(self) -> Iterator[NDArray[np.generic]]:
        arrays: list[NDArray[np.generic]] = [self.rows, self.pools, self.means, self.controls]
        arrays += [array for of_row in self.targets for array in of_row if array is not None]
        arrays += self.pool_cells
        if self.prior is not None:
            arrays.append(self.prior)
        if self.held_out is not None:
            arrays += [self.held_out.effects, *(of_row.known for of_row in self.held_out.targets)]
        yield from arrays
        for _, cells in self.expression.chunks():
            yield cells.data
            yield cells.indices

    def batch(self, request: BatchRequest) -> TokenBatch:
        """Perturbed cells paired with control cells, for training.

        Parameters
        ----------
        request
            Perturbed cells; ``draw`` is the epoch, which determines the control cells.
        """
        cells = request.rows
        rows = self.rows[cells]
        columns = self._columns(cells, rows, request.draw)
        partners = self._partners(cells, request.draw)
        targets = [self.targets[row] for row in rows]
        prior = None if self.prior is None else self.prior[rows][:, columns]
        if self.held_out is not None and prior is not None:
            unseen = uniforms(self.seed, f"view/{request.draw}", cells.astype(np.uint64), np.zeros_like(cells)) < 0.5
            prior = np.where(unseen[:, None], self.held_out.effects[rows][:, columns], prior)
            targets = [
                self.held_out.targets[row] if new else self.targets[row] for row, new in zip(rows, unseen, strict=True)
            ]
        batch = self.tokenizer.batch(self._dense(partners, columns), targets, columns=columns, cells=cells)
        return self._with_targets(batch, self._dense(cells, columns), prior, rows, columns)

    def validation_batch(self, row: int) -> TokenBatch:
        """Control cells of one row, flagged as perturbed, with the mean of its perturbed cells to be predicted.

        Every row has :attr:`n_controls` of them, so that batches have equal weight.

        Parameters
        ----------
        row
            Index of the row.
        """
        pool = self.row_pools[row]
        generator = np.random.default_rng([self.seed, row])
        cells = generator.choice(pool, self.n_controls, replace=len(pool) < self.n_controls)
        columns, rows = self.tokenizer.columns, np.full(len(cells), row)
        batch = self.tokenizer.batch(
            self._dense(cells, columns), [self.targets[row]] * len(cells), columns=columns, cells=cells
        )
        prior = None if self.prior is None else self.prior[rows][:, columns]
        return self._with_targets(batch, self.means[rows][:, columns], prior, rows, columns)

    def _validation(self, request: BatchRequest) -> TokenBatch:
        return self.validation_batch(int(request.rows[0]))

    def _partners(self, cells: NDArray[np.int64], draw: int) -> NDArray[np.int64]:
        u = uniforms(self.seed, f"partner/{draw}", cells.astype(np.uint64), np.zeros_like(cells))
        pools = [self.pool_cells[pool] for pool in self.pools[cells]]
        return np.array([pool[int(part * len(pool))] for pool, part in zip(pools, u, strict=True)], dtype=np.int64)

    def _columns(self, cells: NDArray[np.int64], rows: NDArray[np.int64], draw: int) -> NDArray[np.int64]:
        columns = self._admitted_columns()
        of_all = self.n_genes is None or self.n_genes >= len(columns)
        if of_all and self.admitted is None:
            return columns
        perturbed = np.unique(np.concatenate([self.targets[row].tokens for row in rows]))
        always = np.flatnonzero(np.isin(self.tokenizer.token_ids, perturbed))
        if not self.tokenizer.flag_unmeasured:
            always = always[:0]  # scGPT draws genes regardless of the perturbation
        if of_all:
            return np.union1d(always, columns)
        assert self.n_genes is not None
        generator = np.random.default_rng([fold_seed(self.seed, "genes", draw, int(cells[0]))])
        others = np.setdiff1d(columns, always)
        drawn = generator.choice(others, max(self.n_genes - len(always), 0), replace=False)
        return np.union1d(always, drawn)

    def _admitted_columns(self) -> NDArray[np.int64]:
        columns = self.tokenizer.columns
        if self.admitted is None:
            return columns
        return columns[np.isin(self.tokenizer.token_ids[columns], self.admitted)]

    def _dense(self, cells: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.expression.rows(cells)[:, columns].toarray()

    def _with_targets(
        self,
        batch: TokenBatch,
        truth: NDArray[np.float32],
        prior: NDArray[np.float32] | None,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
    ) -> TokenBatch:
        def placed(values: NDArray[np.float32]) -> torch.Tensor:
            out = torch.zeros(batch.values.shape)
            out[:, 1 : 1 + len(columns)] = torch.from_numpy(values)
            return out

        batch = batch.with_targets(expression=placed(truth), controls=placed(self.controls[rows][:, columns]))
        return batch if prior is None else batch.with_targets(prior=placed(prior))
