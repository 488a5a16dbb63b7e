"""From rows of a matrix to tokens.

Shape letters: b cells in a batch, s tokens in a row (``<cls>`` included).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from scgalore.data.binning import bin_rows
from scgalore.data.hashing import cell_keys, fold_seed, uniforms
from scgalore.data.tokens import RaggedTokens, TokenBatch, TokenizerConfig, starts
from scgalore.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Tokenizer", "keep_smallest"]


class Tokenizer:
    """Turn rows of a matrix into tokens.

    A cell's tokens depend on its expression, the configuration and ``draw`` alone: not on the order of columns or rows,
    the batch, or what held the matrix. Genes come sorted by token id.

    Parameters
    ----------
    token_ids
        Token id of each column of the matrix; -1 for columns to leave out.
    cls_id
        Token id of ``<cls>``.
    pad_id
        Token id of ``<pad>``.
    config
        How cells become tokens; scGPT's pre-training settings when left out.
    """

    def __init__(
        self, token_ids: ArrayLike, *, cls_id: int, pad_id: int, config: TokenizerConfig | None = None
    ) -> None:
        self.config = TokenizerConfig() if config is None else config
        self.cls_id = int(cls_id)
        self.pad_id = int(pad_id)
        self.token_ids = np.array(token_ids, dtype=np.int64).ravel()
        columns = np.flatnonzero(self.token_ids >= 0)
        columns = columns[np.argsort(self.token_ids[columns])]
        #: Token ids of the genes that are kept, sorted.
        self.genes: NDArray[np.int64] = self.token_ids[columns]
        self._check_genes()
        # Position of each column in `genes`; sorting by it is sorting by token id.
        self._rank = np.full(len(self.token_ids), -1, dtype=np.int64)
        self._rank[columns] = np.arange(len(columns))

    @property
    def n_vars(self) -> int:
        """Columns of the matrix that :meth:`encode` expects."""
        return len(self.token_ids)

    def lengths(self, csr: sp.csr_matrix | sp.csr_array) -> NDArray[np.int64]:
        """Number of tokens that each row will have, ``<cls>`` included.

        Parameters
        ----------
        csr
            Rows of the matrix.
        """
        config = self.config
        if config.include_zeros:
            n_genes = np.full(csr.shape[0], len(self.genes), dtype=np.int64)
        else:
            kept = (self._rank[csr.indices] >= 0) & (csr.data != 0)
            n_genes = _kept_lengths(kept, csr.indptr)
        return np.minimum(n_genes, config.max_genes) + config.append_cls

    def encode(self, csr: sp.csr_matrix | sp.csr_array, cells: ArrayLike, *, draw: int = 0) -> RaggedTokens:
        """Tokens of some rows.

        Values are binned over all expressed genes of the vocabulary before a long cell is sampled.

        Parameters
        ----------
        csr
            Rows of the matrix, in canonical form (as from :meth:`scgalore.data.matrix.CellMatrix.rows`).
        cells
            Row number of each of them in the data set.
        draw
            Which draw of the sampling and of random ties, such as the epoch; the same draw gives the same tokens.
        """
        config = self.config
        seed = fold_seed(config.seed, draw)
        cells = np.array(cells, dtype=np.int64).ravel()
        rank, values, indptr = self._expressed(csr, n_cells=len(cells))
        genes = self.genes[rank]
        keys = cell_keys(genes, values, indptr)
        if config.binned:
            u = None
            if config.ties == "random":
                u = uniforms(seed, "ties", np.repeat(keys, np.diff(indptr)), genes)
            values = bin_rows(values, indptr, config.n_bins, ties=config.ties, u=u).astype(np.float32)
        if config.include_zeros:
            genes, values, indptr = self._with_zeros(rank, values, indptr)
        genes, values, indptr = self._sample(genes, values, indptr, keys, seed)
        if config.append_cls:
            # np.insert keeps the order of equal positions, so a cell without genes becomes `<cls>` alone.
            genes = np.insert(genes, indptr[:-1], self.cls_id)
            values = np.insert(values, indptr[:-1], config.cls_value)
            indptr = indptr + np.arange(len(indptr))
        return RaggedTokens(genes=genes, values=values, indptr=indptr, cells=cells, keys=keys)

    def pad(self, ragged: RaggedTokens, rows: ArrayLike | None = None) -> TokenBatch:
        """Pad some cells to the longest of them.

        Parameters
        ----------
        ragged
            Tokens from :meth:`encode`.
        rows
            Which of its cells, by position; all when left out.
        """
        picked = np.arange(len(ragged)) if rows is None else np.asarray(rows, dtype=np.int64)
        lengths = ragged.lengths[picked]  # (b,)
        offset = np.arange(lengths.max(initial=0))  # (s,)
        padding = offset >= lengths[:, None]  # (b, s)
        source = (ragged.indptr[picked][:, None] + offset)[~padding]
        genes = np.full(padding.shape, self.pad_id, dtype=np.int64)
        values = np.full(padding.shape, self.config.pad_value, dtype=np.float32)
        genes[~padding] = ragged.genes[source]
        values[~padding] = ragged.values[source]
        return TokenBatch(
            genes=torch.from_numpy(genes),
            values=torch.from_numpy(values),
            padding=torch.from_numpy(padding),
            cells=torch.from_numpy(ragged.cells[picked]),
            keys=torch.from_numpy(ragged.keys[picked].view(np.int64)),
        )

    def _check_genes(self) -> None:
        repeated = self.genes[1:][self.genes[1:] == self.genes[:-1]]
        if len(repeated):
            msg = (
                f"Token id {repeated[0]} stands for more than one column ({len(repeated)} such columns in all). "
                "Give -1 to the columns to leave out."
            )
            raise DataError(msg)
        if np.isin((self.cls_id, self.pad_id), self.genes).any():
            msg = f"A column has the token id of <cls> ({self.cls_id}) or <pad> ({self.pad_id}); give it -1."
            raise DataError(msg)

    def _expressed(
        self, csr: sp.csr_matrix | sp.csr_array, *, n_cells: int
    ) -> tuple[NDArray[np.integer], NDArray[np.float32], NDArray[np.int64]]:
        """Rank among `genes`, value, and indptr of the kept non-zero entries, sorted by rank within each row."""
        if csr.shape != (n_cells, self.n_vars):
            msg = (
                f"The rows have shape {csr.shape}; expected {(n_cells, self.n_vars)}: "
                "one row for each of `cells`, one column for each of `token_ids`."
            )
            raise DataError(msg)
        rank = self._rank[csr.indices]
        values = np.asarray(csr.data, dtype=np.float32)
        kept = (rank >= 0) & (values != 0)
        lengths = _kept_lengths(kept, csr.indptr)
        rank, values = rank[kept], values[kept]
        if not np.isfinite(values).all():
            msg = "The rows hold NaN or infinite values; scgalore.data.matrix.CellMatrix.check() says how many."
            raise DataError(msg)
        # Two changes of format sort the entries of each row in linear time.
        tidy = sp.csr_matrix((values, rank, starts(lengths)), shape=(n_cells, len(self.genes))).tocsc().tocsr()
        return tidy.indices, tidy.data, starts(lengths)

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
        kept = np.ones(len(genes), dtype=bool)
        kept[in_long] = keep_smallest(u, starts(lengths[long]), limit)
        return genes[kept], values[kept], starts(np.minimum(lengths, limit))


def keep_smallest(u: NDArray[np.floating], indptr: NDArray[np.integer], limit: int) -> NDArray[np.bool_]:
    """Mark the ``limit`` smallest numbers of each cell.

    Parameters
    ----------
    u
        Numbers of all cells, one cell after the other.
    indptr
        Where each cell starts.
    limit
        How many to keep of a cell; all of a cell that has no more.
    """
    kept = np.ones(len(u), dtype=bool)
    for start, stop in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True):
        if stop - start > limit:
            kept[start + np.argpartition(u[start:stop], limit)[limit:]] = False
    return kept


def _kept_lengths(kept: NDArray[np.bool_], indptr: NDArray[Any]) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = np.diff(np.concatenate(([0], np.cumsum(kept)))[indptr])
    return lengths
