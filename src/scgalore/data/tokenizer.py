"""Conversion of matrix rows to tokens.

Shape letters: b cells in a batch, s tokens in a row (``<cls>`` included).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from scgalore.data.binning import bin_rows
from scgalore.data.hashing import cell_keys, fold_seed, splitmix64, uniforms
from scgalore.data.levels import expression_classes
from scgalore.data.ragged import argsort_rows, blocks, starts
from scgalore.data.tokens import CELL, NO_TOKEN, PROTEIN, RNA, RaggedTokens, TokenBatch, TokenizerConfig
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import scipy.sparse as sp
    from numpy.typing import ArrayLike, NDArray

    from scgalore.data.vocab import GeneVocab

__all__ = ["Tokenizer", "keep_smallest"]


class Tokenizer:
    """Convert rows of a matrix to tokens.

    A cell's tokens depend only on its expression, the configuration and ``draw``: not on the order of columns or rows,
    the batch, or how the matrix is stored. Genes are sorted by token id.

    Parameters
    ----------
    token_ids
        Token id of each column of the matrix; -1 for columns to ignore.
    cls_id
        Token id of ``<cls>``.
    pad_id
        Token id of ``<pad>``.
    config
        Options; ``None`` uses scGPT's pre-training settings.
    admitted
        Token ids of genes that can become tokens; ``None`` for all. Values are still binned over all genes, so that the
        value of a gene does not depend on the admitted genes.
    vocabulary
        Token ids of all genes of the model; used if ``config.every_gene`` is set.
    log_base
        Base of the logarithm ``log(1 + x)`` of the values, ``None`` for counts; used if ``config.classes`` is set.
    first_protein
        First token id of the proteins, which are binned separately and always kept when a long cell is sampled; batches
        then have the condition ``"modalities"``. ``None`` if there are only genes.
    """

    def __init__(
        self,
        token_ids: ArrayLike,
        *,
        cls_id: int,
        pad_id: int,
        config: TokenizerConfig | None = None,
        admitted: ArrayLike | None = None,
        vocabulary: ArrayLike | None = None,
        log_base: float | None = None,
        first_protein: int | None = None,
    ) -> None:
        self.config = TokenizerConfig() if config is None else config
        self.cls_id = int(cls_id)
        self.pad_id = int(pad_id)
        self.token_ids = np.array(token_ids, dtype=np.int64).ravel()
        self.log_base = log_base
        self.first_protein = first_protein
        columns = np.flatnonzero(self.token_ids >= 0)
        self._check_genes(np.sort(self.token_ids[columns]))
        every = np.asarray([] if vocabulary is None or not self.config.every_gene else vocabulary, dtype=np.int64)
        #: Token ids of the genes that are kept, sorted.
        self.genes: NDArray[np.int64] = np.union1d(self.token_ids[columns], every)
        # Position of each column in `genes`; sorting by it sorts by token id.
        self._rank = np.full(len(self.token_ids), -1, dtype=np.int32)
        self._rank[columns] = np.searchsorted(self.genes, self.token_ids[columns])
        #: Whether each of `genes` can become a token; ``None`` if all can.
        self.admitted: NDArray[np.bool_] | None = None if admitted is None else np.isin(self.genes, admitted)

    @classmethod
    def of_vocab(
        cls, token_ids: ArrayLike, vocab: GeneVocab, config: TokenizerConfig, *, log_base: float | None = None
    ) -> Self:
        """Create a tokenizer for a vocabulary.

        Parameters
        ----------
        token_ids
            Token id of each column of the matrix; -1 for columns to ignore.
        vocab
            Genes and special tokens.
        config, log_base
            As for the class.
        """
        special = {"cls_id": vocab.cls_id, "pad_id": vocab.pad_id}
        genes = vocab.gene_ids() if config.every_gene else None
        return cls(token_ids, **special, config=config, vocabulary=genes, log_base=log_base)

    @property
    def n_vars(self) -> int:
        """Number of columns of the matrix that :meth:`encode` expects."""
        return len(self.token_ids)

    def lengths(self, csr: sp.csr_matrix | sp.csr_array) -> NDArray[np.int64]:
        """Number of tokens of each row, including ``<cls>``.

        Parameters
        ----------
        csr
            Rows of the matrix.
        """
        config = self.config
        if config.include_zeros or config.every_gene:
            n_admitted = len(self.genes) if self.admitted is None else int(self.admitted.sum())
            n_genes = np.full(csr.shape[0], n_admitted, dtype=np.int64)
        else:
            rank = self._rank[csr.indices]
            kept = (rank >= 0) & (csr.data != 0)
            if config.classes:
                of_cells = starts(_kept_lengths(kept, csr.indptr))
                kept[kept] = self._classes(csr.data[kept], of_cells) > 0
            if self.admitted is not None:
                kept &= self.admitted[rank]
            n_genes = _kept_lengths(kept, csr.indptr)
        return np.minimum(n_genes, config.max_genes) + config.append_cls

    def encode(
        self,
        csr: sp.csr_matrix | sp.csr_array,
        cells: ArrayLike,
        *,
        draw: int = 0,
        repeats: NDArray[np.int64] | None = None,
    ) -> RaggedTokens:
        """Convert rows to tokens.

        Values are binned over all expressed genes of the vocabulary before long cells are sampled.

        Parameters
        ----------
        csr
            Rows of the matrix in canonical form (as from :meth:`scgalore.data.matrix.CellMatrix.rows`).
        cells
            Row number of each row in the data set.
        draw
            Number that selects the random sampling and ties, such as the epoch; the same draw gives the same tokens.
        repeats
            Number of each repetition of a cell in this draw, int64 ``(b,)``. Each value but 0 gives the cell another
            key and therefore other random numbers. ``None`` is 0 for all.
        """
        return RaggedTokens.concatenate(list(self.parts(csr, cells, draw=draw, repeats=repeats)))

    def parts(
        self,
        csr: sp.csr_matrix | sp.csr_array,
        cells: ArrayLike,
        *,
        draw: int = 0,
        repeats: NDArray[np.int64] | None = None,
    ) -> Iterator[RaggedTokens]:
        """Convert rows to tokens as :meth:`encode`, in one or more parts that fit into the cache of a core.

        Parameters
        ----------
        csr, cells, draw, repeats
            As for :meth:`encode`.
        """
        cells = np.array(cells, dtype=np.int64).ravel()
        if csr.shape != (len(cells), self.n_vars):
            msg = (
                f"The rows have shape {csr.shape}; expected {(len(cells), self.n_vars)}: "
                "one row per element of `cells`, one column per element of `token_ids`."
            )
            raise DataError(msg)
        seed = fold_seed(self.config.seed, draw)
        for rows in blocks(csr.indptr):
            yield self._encode(csr, rows, cells[rows], seed, None if repeats is None else repeats[rows])
        if len(cells) == 0:
            yield self._encode(csr, slice(0, 0), cells, seed, repeats)

    def pad(self, ragged: RaggedTokens, rows: ArrayLike | None = None) -> TokenBatch:
        """Pad cells to the length of the longest.

        Parameters
        ----------
        ragged
            Tokens from :meth:`encode`.
        rows
            Positions of the cells; ``None`` for all.
        """
        picked = np.arange(len(ragged)) if rows is None else np.asarray(rows, dtype=np.int64)
        lengths = ragged.lengths[picked]  # (b,)
        offset = np.arange(lengths.max(initial=0))  # (s,)
        padding = offset >= lengths[:, None]  # (b, s)
        source = ragged.indptr[picked][:, None] + offset
        genes = ragged.genes.take(source, mode="clip")  # padding reads the following tokens, or the last one
        values = ragged.values.take(source, mode="clip")
        np.copyto(genes, self.pad_id, where=padding)
        np.copyto(values, np.float32(self.config.pad_value), where=padding)
        conditions = {name: torch.from_numpy(codes[picked]) for name, codes in ragged.conditions.items()}
        if self.first_protein is not None:
            kinds = np.where(genes >= self.first_protein, PROTEIN, RNA)
            kinds[genes == self.cls_id], kinds[padding] = CELL, NO_TOKEN
            conditions["modalities"] = torch.from_numpy(kinds)
        return TokenBatch(
            genes=torch.from_numpy(genes),
            values=torch.from_numpy(values),
            padding=torch.from_numpy(padding),
            cells=torch.from_numpy(ragged.cells[picked]),
            keys=torch.from_numpy(ragged.keys[picked].view(np.int64)),
            conditions=conditions,
            padded=bool(padding.any()),
        )

    def _check_genes(self, ids: NDArray[np.int64]) -> None:
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if len(repeated):
            msg = (
                f"Token id {repeated[0]} occurs for more than one column ({len(repeated)} such columns in all). "
                "Use -1 for columns to ignore."
            )
            raise DataError(msg)
        if np.isin((self.cls_id, self.pad_id), ids).any():
            msg = f"A column has the token id of <cls> ({self.cls_id}) or <pad> ({self.pad_id}); use -1 to ignore it."
            raise DataError(msg)

    def _encode(
        self,
        csr: sp.csr_matrix | sp.csr_array,
        rows: slice,
        cells: NDArray[np.int64],
        seed: int,
        repeats: NDArray[np.int64] | None,
    ) -> RaggedTokens:
        config = self.config
        rank, values, indptr = self._expressed(csr, rows)
        genes = self.genes[rank]
        keys = cell_keys(genes, values, indptr)
        if repeats is not None:
            keys = np.where(repeats == 0, keys, splitmix64(keys ^ splitmix64(repeats)))
        if config.classes:
            values = self._classes(values, indptr).astype(np.float32)
            kept = values > 0
            genes, rank, values, indptr = genes[kept], rank[kept], values[kept], starts(_kept_lengths(kept, indptr))
        elif config.binned:
            u = None
            if config.ties == "random":
                u = uniforms(seed, "ties", np.repeat(keys, np.diff(indptr)), genes)
            together = indptr
            if self.first_protein is not None:
                together = _by_modality(genes < self.first_protein, indptr)
            values = bin_rows(values, together, config.n_bins, ties=config.ties, u=u).astype(np.float32)
        if config.include_zeros or config.every_gene:
            genes, values, indptr = self._with_zeros(rank, values, indptr)
        if self.admitted is not None:
            kept = self.admitted[np.searchsorted(self.genes, genes)]
            genes, values, indptr = genes[kept], values[kept], starts(_kept_lengths(kept, indptr))
        genes, values, indptr = self._sample(genes, values, indptr, keys, seed)
        if config.append_cls:
            genes, values, indptr = self._with_cls(genes, values, indptr)
        return RaggedTokens(genes=genes, values=values, indptr=indptr, cells=cells, keys=keys)

    def _expressed(
        self, csr: sp.csr_matrix | sp.csr_array, rows: slice
    ) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int64]]:
        """Position in `genes`, value, and indptr of the kept non-zero entries, sorted by position within each row."""
        indptr = csr.indptr[rows.start : rows.stop + 1].astype(np.int64)
        entries = slice(indptr[0], indptr[-1])
        indptr -= indptr[0]
        rank, values = self._rank[csr.indices[entries]], np.asarray(csr.data[entries], dtype=np.float32)
        kept = (rank >= 0) & (values != 0)
        if not kept.all():
            rank, values, indptr = rank[kept], values[kept], starts(_kept_lengths(kept, indptr))
        if not np.isfinite(values).all():
            msg = "The rows contain NaN or infinite values; call scgalore.data.matrix.CellMatrix.check() to count them."
            raise DataError(msg)
        rising = rank[1:] > rank[:-1]
        rising[indptr[(indptr > 0) & (indptr < len(rank))] - 1] = True  # between cells
        if not rising.all():
            order = argsort_rows(rank.view(np.uint32), indptr)
            rank, values = rank[order], values[order]
        return rank, values, indptr

    def _classes(self, values: NDArray[np.float32], indptr: NDArray[np.integer]) -> NDArray[np.int64]:
        return expression_classes(values, indptr, self.config.n_bins, log_base=self.log_base)

    def _with_cls(
        self, genes: NDArray[np.int64], values: NDArray[np.float32], indptr: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        indptr = indptr + np.arange(len(indptr))
        is_gene = np.ones(indptr[-1], dtype=bool)
        is_gene[indptr[:-1]] = False
        all_genes = np.full(indptr[-1], self.cls_id, dtype=np.int64)
        all_values = np.full(indptr[-1], self.config.cls_value, dtype=np.float32)
        all_genes[is_gene], all_values[is_gene] = genes, values
        return all_genes, all_values, indptr

    def _with_zeros(
        self, rank: NDArray[np.integer], values: NDArray[np.float32], indptr: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        n_cells, n_genes = len(indptr) - 1, len(self.genes)
        dense = np.zeros((n_cells, n_genes), dtype=np.float32)
        dense[np.repeat(np.arange(n_cells), np.diff(indptr)), rank] = values
        return np.tile(self.genes, n_cells), dense.ravel(), np.arange(n_cells + 1) * n_genes

    def _sample(
        self,
        genes: NDArray[np.int64],
        values: NDArray[np.float32],
        indptr: NDArray[np.int64],
        keys: NDArray[np.uint64],
        seed: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Keep at most `max_genes` genes of each cell."""
        lengths = np.diff(indptr)
        limit = self.config.max_genes
        long = lengths > limit
        if not long.any():
            return genes, values, indptr
        in_long = np.repeat(long, lengths)
        u = uniforms(seed, "sample", np.repeat(keys[long], lengths[long]), genes[in_long])
        if self.first_protein is not None:
            u[genes[in_long] >= self.first_protein] = -1
        kept = np.ones(len(genes), dtype=bool)
        kept[in_long] = keep_smallest(u, starts(lengths[long]), limit)
        return genes[kept], values[kept], starts(np.minimum(lengths, limit))


def keep_smallest(u: NDArray[np.floating], indptr: NDArray[np.integer], limit: int) -> NDArray[np.bool_]:
    """Mark the ``limit`` smallest numbers of each cell.

    Parameters
    ----------
    u
        Numbers of all cells, concatenated.
    indptr
        Start of each cell.
    limit
        Maximum number to keep per cell.
    """
    kept = np.ones(len(u), dtype=bool)
    # Row by row: such rows are long, and padding them to equal length for one call would take longer than the calls.
    for row in np.flatnonzero(np.diff(indptr) > limit).tolist():
        cell = slice(int(indptr[row]), int(indptr[row + 1]))
        last = np.partition(u[cell], limit - 1)[limit - 1]
        kept[cell] = u[cell] < last
        equal = np.flatnonzero(u[cell] == last)
        kept[cell.start + equal[: limit - np.count_nonzero(kept[cell])]] = True
    return kept


def _kept_lengths(kept: NDArray[np.bool_], indptr: NDArray[Any]) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = np.diff(np.concatenate(([0], np.cumsum(kept)))[indptr])
    return lengths


def _by_modality(is_gene: NDArray[np.bool_], indptr: NDArray[Any]) -> NDArray[np.int64]:
    """Start of the genes and of the proteins of each cell, int64 ``(2 b + 1,)``."""
    starts_of = np.empty(2 * len(indptr) - 1, dtype=np.int64)
    starts_of[::2] = indptr
    np.add(indptr[:-1], _kept_lengths(is_gene, indptr), out=starts_of[1::2])
    return starts_of
