"""Cells as tokens: the named types every later stage works on, and the tokenizer that makes them.

Shape letters: b cells in a batch, s tokens in a row (``<cls>`` included).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore.data.binning import Ties, bin_rows, check_binning
from scgalore.data.hashing import cell_keys, fold_seed, uniforms
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from scipy.sparse import csr_array, csr_matrix

__all__ = ["RaggedTokens", "Ties", "TokenBatch", "Tokenizer", "TokenizerConfig", "keep_smallest"]


@dataclass(frozen=True)
class TokenBatch:
    """Padded tokens of some cells; everything a network or an objective may read about them.

    Attributes
    ----------
    genes
        Token ids, int64, shape ``(b, s)``; column 0 is ``<cls>`` when the tokenizer appends it.
    values
        Binned (or plain) expression, float32, shape ``(b, s)``.
    padding
        ``True`` where a position is padding, bool, shape ``(b, s)``.
    cells
        Row number of each cell in the data set, int64, shape ``(b,)``.
    keys
        Content key of each cell, int64 (bits of a uint64), shape ``(b,)``: random draws hang on it, not on position.
    labels
        Class codes, int64, shape ``(b,)``, -1 for unlabelled; ``None`` when the task has no labels.
    batches
        Codes of the sequencing batches, int64, shape ``(b,)``; ``None`` when the network does not use them.
    flags
        Perturbation flags, int64, shape ``(b, s)``; ``None`` outside perturbation tasks.
    targets
        Expression to predict, float32, shape ``(b, s)``; ``None`` unless an objective put it there.
    masked
        ``True`` where ``targets`` count, bool, shape ``(b, s)``; ``None`` unless an objective put it there.
    """

    genes: torch.Tensor
    values: torch.Tensor
    padding: torch.Tensor
    cells: torch.Tensor
    keys: torch.Tensor
    labels: torch.Tensor | None = None
    batches: torch.Tensor | None = None
    flags: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    masked: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.genes.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((~self.padding).sum())

    def to(self, device: torch.device | str) -> TokenBatch:
        """Move every tensor to a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class TokenizerConfig:
    """How cells become tokens.

    Attributes
    ----------
    n_bins
        Bins of expression, the one for zeros included.
    max_length
        Most tokens a cell may have, ``<cls>`` included; longer cells are sampled.
    cls_value
        Value at ``<cls>``: -2 in scGPT's pre-training and embedding, 0 in its fine-tuning.
    pad_value
        Value at padding.
    ties
        Which bin a value gets that equals several edges.
    include_zeros
        Whether genes without expression become tokens too, with value 0.
    append_cls
        Whether each cell starts with ``<cls>``.
    binned
        Whether values are binned; otherwise they are taken as they are.
    seed
        Seed of the sampling of long cells and of random ties.
    """

    n_bins: int = 51
    max_length: int = 1200
    cls_value: float = -2.0
    pad_value: float = -2.0
    ties: Ties = "upper"
    include_zeros: bool = False
    append_cls: bool = True
    binned: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_binning(self.n_bins, self.ties)
        if self.max_genes < 1:
            msg = f"max_length={self.max_length} leaves no room for a gene; scGPT uses 1200."
            raise OptionError(msg)

    @property
    def max_genes(self) -> int:
        """Most genes a cell may have."""
        return self.max_length - self.append_cls


@dataclass(frozen=True)
class RaggedTokens:
    """Tokens of some cells without padding, one cell after the other.

    Attributes
    ----------
    genes
        Token ids, int64, shape ``(n_tokens,)``.
    values
        Binned (or plain) expression, float32, shape ``(n_tokens,)``.
    indptr
        Where each cell starts, int64, shape ``(b + 1,)``.
    cells
        Row number of each cell in the data set, int64, shape ``(b,)``.
    keys
        Content key of each cell, uint64, shape ``(b,)``.
    """

    genes: NDArray[np.int64]
    values: NDArray[np.float32]
    indptr: NDArray[np.int64]
    cells: NDArray[np.int64]
    keys: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each cell, ``<cls>`` included."""
        return np.diff(self.indptr)

    @staticmethod
    def concatenate(parts: Sequence[RaggedTokens]) -> RaggedTokens:
        """Join the cells of several parts, in their order."""
        lengths = np.concatenate([part.lengths for part in parts])
        return RaggedTokens(
            genes=np.concatenate([part.genes for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            indptr=_indptr(lengths),
            cells=np.concatenate([part.cells for part in parts]),
            keys=np.concatenate([part.keys for part in parts]),
        )


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

    def lengths(self, csr: csr_matrix | csr_array) -> NDArray[np.int64]:
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

    def encode(self, csr: csr_matrix | csr_array, cells: ArrayLike, *, draw: int = 0) -> RaggedTokens:
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
        self, csr: csr_matrix | csr_array, *, n_cells: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
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
        position = np.repeat(np.arange(n_cells) * len(self.genes), lengths) + rank
        if (position[1:] < position[:-1]).any():
            order = np.argsort(position)
            rank, values = rank[order], values[order]
        return rank, values, _indptr(lengths)

    def _with_zeros(
        self, rank: NDArray[np.int64], values: NDArray[np.float32], indptr: NDArray[np.int64]
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
        kept[in_long] = keep_smallest(u, _indptr(lengths[long]), limit)
        return genes[kept], values[kept], _indptr(np.minimum(lengths, limit))


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


def _indptr(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def _kept_lengths(kept: NDArray[np.bool_], indptr: NDArray[Any]) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = np.diff(np.concatenate(([0], np.cumsum(kept)))[indptr])
    return lengths
