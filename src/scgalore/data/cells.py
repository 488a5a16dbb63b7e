"""Cells of an AnnData prepared for a network: checked, matched to a vocabulary, and tokenised in batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from scgalore import _logging as logg
from scgalore._keys import GeneKeys
from scgalore.data.batches import WHOLE_PASSES, ListedBatches, SampledBatches, largest_batch
from scgalore.data.columns import read_column
from scgalore.data.expression import LogExpression
from scgalore.data.hashing import cell_keys, digest
from scgalore.data.identity import parts_of
from scgalore.data.match import GeneMatch, advice_for, match_genes
from scgalore.data.matrix import CellMatrix
from scgalore.data.names import as_names, other_columns
from scgalore.data.reading import AS_IT_IS
from scgalore.data.sampler import sorted_batches
from scgalore.data.scale import log_base_of, scale_of
from scgalore.data.seen import FEW_UNSEEN, Seen, sums_of
from scgalore.data.tokenizer import Tokenizer
from scgalore.data.tokens import RaggedTokens
from scgalore.errors import DataError, MissingKeyError, OptionError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.batches import Batches, BatchPlan
    from scgalore.data.reading import Reading
    from scgalore.data.sampler import BatchRequest
    from scgalore.data.tokens import TokenBatch, TokenizerConfig
    from scgalore.data.vocab import GeneVocab

COMPUTED = ("prior", "start")
"""Targets that are determined by cells and other targets up to rounding, which depends on the number of threads."""

MOST_KEPT = 2**23
"""Maximum number of tokens kept for further epochs, of 12 bytes each."""

__all__ = ["TokenCells", "gene_names", "gene_ranks", "ranked_tokens"]


@dataclass(frozen=True)
class TokenCells:
    """Tokenised cells for a network.

    Attributes
    ----------
    matrix
        Rows of the expression matrix.
    tokenizer
        Tokenizer for rows.
    match
        Token of each column.
    lengths
        Number of tokens of each cell, including ``<cls>``, int64, shape ``(n_obs,)``.
    seen
        Fraction of the expression in genes with a token.
    targets
        Targets of an objective, arrays ``(n_obs, ...)`` by their names in
        :attr:`TokenBatch.targets <scgalore.data.tokens.TokenBatch>`.
    conditions
        Additional inputs of a network, arrays ``(n_obs,)`` by their names in
        :attr:`TokenBatch.conditions <scgalore.data.tokens.TokenBatch>`, such as ``batches``.
    ranked
        Token ids of the genes from best to worst, int64, for a curriculum; ``None`` without a ranking.
    signs
        Additional evidence on the scale of the matrix, for ``scale_of``.
    """

    matrix: CellMatrix
    tokenizer: Tokenizer
    match: GeneMatch
    lengths: NDArray[np.int64] = field(repr=False)
    seen: Seen
    targets: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=dict, repr=False)
    ranked: NDArray[np.int64] | None = field(default=None, repr=False)
    signs: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_adata(
        cls,
        adata: AnnData,
        vocab: GeneVocab,
        *,
        config: TokenizerConfig,
        reading: Reading = AS_IT_IS,
    ) -> TokenCells:
        """Check the matrix, match its genes and count the tokens of its cells.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised, sparse, dense, backed or a view.
        vocab
            Vocabulary of the network.
        config
            Tokenizer settings.
        reading
            Matrix to read, and names of its genes.

        Raises
        ------
        DataError
            If the matrix is empty or contains negative, NaN or infinite values, if no gene matches or the matched genes
            have too small a fraction of the expression, if a cell expresses no gene at all, or if more than 1 % of the
            cells express no gene of the vocabulary.
        MissingKeyError
            If the layer or the column does not exist.
        """
        names = gene_names(adata, reading.gene_symbols)
        columns = partial(other_columns, adata.var, reading.gene_symbols)
        matrix = CellMatrix.from_adata(adata, layer=reading.layer)
        try:
            match = match_genes(names, vocab, species=reading.species, columns=columns)
        except DataError:
            matrix.check()  # errors of values are reported before errors of names
            raise
        signs = {"uns": {key: adata.uns[key] for key in adata.uns if key == "log1p"}, "layer": reading.layer}
        signs["data_type"] = reading.data_type
        log_base = None
        if config.classes:  # other tokens are identical for counts and their logarithms
            matrix.check()
            log_base = log_base_of(matrix, **signs)
        tokenizer = Tokenizer.of_vocab(match.token_ids, vocab, config, log_base=log_base)
        found = matrix.count(lambda rows: np.column_stack([tokenizer.lengths(rows), *sums_of(rows, match.token_ids).T]))
        matrix.check()
        seen, lengths = Seen.of(found[:, 1], found[:, 2]), found[:, 0].astype(np.int64)
        advice = partial(advice_for, names, vocab, species=reading.species, columns=columns)
        counts = reading.data_type == "counts" or reading.data_type is None and matrix.summary().is_whole
        seen.check(match, reading.min_matched, advice, what="counts" if counts else "expression")
        unseen = np.flatnonzero(found[:, 1] == 0)
        _check_unseen_cells(adata, matrix, unseen, allowed=reading.min_matched == 0)
        return cls(matrix, tokenizer, match, lengths, seen, signs=signs)

    def expression(self) -> LogExpression:
        """The matrix with the detected scale of its values, on which tokens do not depend.

        Raises
        ------
        DataError
            If the values are neither counts nor log-normalised.
        """
        return LogExpression(self.matrix, scale_of(self.matrix, **self.signs))

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.n_obs

    @property
    def n_matched(self) -> int:
        """Number of genes that are tokens of the network."""
        return int((self.tokenizer.token_ids >= 0).sum())

    def measured_genes(self) -> NDArray[np.int32]:
        """Sorted token ids of the measured genes."""
        ids = self.tokenizer.token_ids
        return np.sort(ids[ids >= 0]).astype(np.int32)

    def genes_report(self) -> dict[str, Any]:
        """Matched genes and their fraction of the expression, for ``uns``."""
        return {**self.match.report(), **self.seen.report()}

    @property
    def limits(self) -> Mapping[str, str]:
        """An epoch is a pass over the cells."""
        return {"steps_per_epoch": WHOLE_PASSES}

    def with_targets(self, **targets: NDArray[Any]) -> TokenCells:
        """Return the same cells with additional targets, such as ``labels=codes``, for ``batch.targets``.

        Parameters
        ----------
        targets
            Arrays of shape ``(n_obs, ...)``; ``labels`` int64, ``values`` float32.
        """
        return replace(self, targets={**self.targets, **targets})

    def with_conditions(self, **conditions: NDArray[Any]) -> TokenCells:
        """Return the same cells with additional inputs of the network, such as ``batches=codes``.

        Parameters
        ----------
        conditions
            Arrays of shape ``(n_obs,)``; ``batches`` int64.
        """
        return replace(self, conditions={**self.conditions, **conditions})

    def with_zeros(self) -> TokenCells:
        """Return the same cells with unexpressed genes as tokens with value 0."""
        tokenizer = self._tokenizer(config=replace(self.tokenizer.config, include_zeros=True))
        return replace(self, tokenizer=tokenizer, lengths=self.matrix.count(tokenizer.lengths))

    def with_proteins(self, counts: sp.csr_matrix, token_ids: NDArray[np.int64]) -> TokenCells:
        """Return the same cells with proteins as additional tokens, which are binned separately.

        Parameters
        ----------
        counts
            float32, in canonical form, ``(n_obs, n_proteins)``.
        token_ids
            Token id of each protein, above those of all genes.

        Raises
        ------
        OptionError
            If the maximum number of tokens is too small.
        WeightsError
            If there are genes after the proteins in the vocabulary.
        """
        config = self.tokenizer.config
        if len(token_ids) >= config.max_genes:
            msg = f"max_length={config.max_length} leaves no tokens for genes, since there are {len(token_ids)} proteins. Pass a larger value."
            raise OptionError(msg)
        if self.tokenizer.token_ids.max() > token_ids.min():
            msg = (
                "The vocabulary of these weights has genes after its proteins, but proteins must come last. Start "
                "from weights to which proteins were added last."
            )
            raise WeightsError(msg)
        genes, shape = self.matrix, (self.n_obs, self.matrix.n_vars + len(token_ids))

        def read(rows: NDArray[np.int64]) -> sp.csr_matrix:
            return sp.hstack([genes.rows(rows), counts[rows]], format="csr")

        ids = np.concatenate([self.tokenizer.token_ids, token_ids])
        special = {"cls_id": self.tokenizer.cls_id, "pad_id": self.tokenizer.pad_id}
        tokenizer = Tokenizer(ids, **special, config=config, first_protein=int(token_ids.min()))
        lengths = np.minimum(self.lengths + np.diff(counts.indptr), config.max_length)
        return replace(self, matrix=CellMatrix(read, shape, name=genes.name), tokenizer=tokenizer, lengths=lengths)

    def with_ranks(self, ranks: NDArray[np.floating]) -> TokenCells:
        """Return the same cells with a ranking of the genes.

        Parameters
        ----------
        ranks
            Rank of each column, 0 is the best, NaN for unranked genes, shape ``(n_vars,)``.
        """
        return replace(self, ranked=ranked_tokens(self.tokenizer.token_ids, ranks))

    def shortened(self, max_length: int) -> TokenCells:
        """Return the same cells with at most ``max_length`` tokens each; genes of longer cells are sampled."""
        config = replace(self.tokenizer.config, max_length=min(max_length, self.tokenizer.config.max_length))
        return replace(
            self, tokenizer=self._tokenizer(config=config), lengths=np.minimum(self.lengths, config.max_length)
        )

    def within(self, genes: NDArray[np.int64]) -> TokenCells:
        """Return the same cells with only these genes as tokens; the matrix is read once to count them.

        Parameters
        ----------
        genes
            Token ids of the genes. A cell may have only ``<cls>``.
        """
        tokenizer = self._tokenizer(admitted=genes)
        return replace(self, tokenizer=tokenizer, lengths=self.matrix.count(tokenizer.lengths))

    def _tokenizer(self, **changes: Any) -> Tokenizer:
        own = self.tokenizer
        admitted = None if own.admitted is None else own.genes[own.admitted]
        same: dict[str, Any] = {"cls_id": own.cls_id, "pad_id": own.pad_id, "config": own.config, "admitted": admitted}
        same |= {"vocabulary": own.genes, "log_base": own.log_base, "first_protein": own.first_protein}
        return Tokenizer(own.token_ids, **{**same, **changes})

    def tokens(self) -> NDArray[np.int64]:
        """Sorted ids of all tokens that may occur in these cells."""
        return np.union1d(self.tokenizer.genes, [self.tokenizer.cls_id, self.tokenizer.pad_id])

    def keys(self) -> Iterator[NDArray[np.uint64]]:
        """Content keys of the cells, in chunks; see :func:`scgalore.data.hashing.cell_keys`."""
        for _, rows in self.matrix.chunks():
            genes = self.tokenizer.token_ids[rows.indices]
            kept = genes >= 0
            indptr = np.concatenate(([0], np.cumsum(kept)))[rows.indptr]
            yield cell_keys(genes[kept], rows.data[kept], indptr)

    def windows(
        self, rows: NDArray[np.int64] | None = None, *, size: int = 4096, draw: int = 0
    ) -> Iterator[RaggedTokens]:
        """Tokens of cells in order, in windows; each cell is read and tokenised once.

        Parameters
        ----------
        rows
            Row numbers; by default all cells. Consecutive rows of a file are read together.
        size
            Number of cells per window.
        draw
            As for :meth:`scgalore.data.tokenizer.Tokenizer.encode`.
        """
        rows = self._rows(rows)
        for start in range(0, len(rows), size):
            window = rows[start : start + size]
            yield self._tokens(window, draw)

    def batch(self, request: BatchRequest) -> TokenBatch:
        """Read, tokenise and pad the cells of a request."""
        of_rows = {name: torch.from_numpy(values[request.rows]) for name, values in self.targets.items()}
        kept = self._kept
        tokens = self._tokens(request.rows, request.draw) if kept is None else kept.take(request.rows)
        return self.tokenizer.pad(tokens).with_targets(**of_rows)

    @cached_property
    def _kept(self) -> RaggedTokens | None:
        """Tokens of all cells, where each draw gives the same ones and they are few."""
        config = self.tokenizer.config
        drawn = config.ties == "random" or bool((self.lengths >= config.max_length).any())
        if drawn or self.n_obs == 0 or self.lengths.sum() > MOST_KEPT:
            return None
        return RaggedTokens.concatenate(list(self.windows()))

    def _tokens(self, rows: NDArray[np.int64], draw: int) -> RaggedTokens:
        ragged = self.tokenizer.encode(self.matrix.rows(rows), rows, draw=draw)
        return replace(ragged, conditions={name: codes[rows] for name, codes in self.conditions.items()})

    def identity(self) -> dict[str, Any]:
        """Hashes of everything that training depends on; the matrix is read once for this."""
        return {
            "number of cells": self.n_obs,
            "genes": digest([self.tokens()]),
            "tokens": parts_of(self.tokenizer.config),
            "expression": digest(self.keys()),
            "ranking of genes": "none" if self.ranked is None else digest([self.ranked]),
            **{name: digest([values]) for name, values in self.targets.items() if name not in COMPUTED},
            **{name: digest([values]) for name, values in self.conditions.items()},
        }

    def training_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Shuffled batches of the cells; see :class:`~scgalore.data.source.CellSource`."""
        cells = self if plan.max_length is None else self.shortened(plan.max_length)
        return SampledBatches(cells, self._rows(rows), plan)

    def validation_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Batches of the cells at full length, the longest first."""
        rows = self._rows(rows)
        list_of = partial(
            sorted_batches,
            rows,
            self.lengths[rows],
            batch_size=plan.batch_size,
            batch_tokens=plan.batch_tokens,
        )
        return ListedBatches(self.batch, rows, list_of)

    def largest_batch(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> tuple[int, int]:
        """Maximum numbers of cells in a training batch and of tokens of a cell."""
        return largest_batch(self.lengths[self._rows(rows)], plan)

    def _rows(self, rows: NDArray[np.int64] | None) -> NDArray[np.int64]:
        return np.arange(self.n_obs) if rows is None else np.asarray(rows, dtype=np.int64)


def ranked_tokens(token_ids: NDArray[np.int64], ranks: NDArray[np.floating]) -> NDArray[np.int64]:
    """Token ids of the columns with a token and a rank, best first.

    Parameters
    ----------
    token_ids
        Token id of each column, -1 for columns without, shape ``(n_vars,)``.
    ranks
        Rank of each column, 0 is the best, NaN for unranked columns, shape ``(n_vars,)``.
    """
    order = np.argsort(ranks, kind="stable")
    order = order[(token_ids[order] >= 0) & np.isfinite(ranks[order])]
    return token_ids[order]


def gene_names(adata: AnnData, gene_symbols: str | None) -> list[str]:
    """Names of the genes: ``adata.var_names``, or a column of ``adata.var``, as read by :func:`~scgalore.data.names.as_names`."""
    if gene_symbols is None:
        return as_names(adata.var_names)
    hint = "Omit gene_symbols= to use var_names."
    return as_names(read_column(adata.var, gene_symbols, slot="adata.var", hint=hint))


def gene_ranks(adata: AnnData, key: str) -> NDArray[np.float64]:
    """Ranks that :func:`scgalore.tl.select_genes` wrote under ``key``: 0 is the best, NaN for unranked genes, ``(n_vars,)``."""
    column = GeneKeys.from_key_added(key).rank
    call = f"sg.tl.select_genes(adata{'' if key == GeneKeys().selected else f', key_added={key!r}'})"
    if column not in adata.var:
        msg = f"No column {column!r} in adata.var; it has {list(adata.var.columns)}. Rank the genes first: {call}."
        raise MissingKeyError(msg)
    ranks = pd.to_numeric(adata.var[column], errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(ranks).any():
        msg = f"adata.var[{column!r}] has no ranks. Write it with {call}."
        raise DataError(msg)
    return ranks


def _check_unseen_cells(adata: AnnData, matrix: CellMatrix, unseen: NDArray[np.int64], *, allowed: bool) -> None:
    """Raise an error for empty cells; warn about cells without a gene of the vocabulary, or raise an error for many."""
    if len(unseen) == 0:
        return

    def called(cells: NDArray[np.int64]) -> str:
        return f"{len(cells):,} of {matrix.n_obs:,} cells (for example {adata.obs_names[cells[:3]].tolist()})"

    n_genes = matrix.count(lambda rows: np.diff(rows.indptr))[unseen]
    if not n_genes.all():
        msg = f"{called(unseen[n_genes == 0])} are empty in {matrix.name}. Remove them: sc.pp.filter_cells(adata, min_genes=1)."
        raise DataError(msg)
    says = f"{called(unseen)} express no gene of the model's vocabulary"
    if allowed or len(unseen) <= FEW_UNSEEN * matrix.n_obs:
        logg.warning(f"{says}; results for them are meaningless.")
        return
    call = f"sc.pp.filter_cells(adata, min_genes={n_genes.max() + 1})"  # all cells with this number of genes express a matched gene
    if len(unseen) <= 3:
        call = f"adata = adata[~adata.obs_names.isin({adata.obs_names[unseen].tolist()})].copy()"
    msg = (
        f"{says} and cannot be embedded. Remove them: {call}, pass min_matched=0 to keep them, or choose a "
        "model with more of your genes."
    )
    raise DataError(msg)
