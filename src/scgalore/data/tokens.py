"""Types for cells as tokens, used by all later stages.

Shape letters: b cells in a batch, s tokens in a row (``<cls>`` included).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore.data.binning import Ties, check_binning
from scgalore.data.ragged import starts
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

__all__ = ["MODALITIES", "PROTEIN", "RaggedTokens", "Ties", "TokenBatch", "TokenizerConfig"]

MODALITIES = ("Protein", "RNA", "<pad>", "<cls>", "<eoc>")
"""Modalities of tokens, numbered as in scGPT's multi-omic models."""
PROTEIN, RNA, NO_TOKEN, CELL = range(4)


@dataclass(frozen=True)
class TokenBatch:
    """Padded tokens of cells, with all inputs of networks and objectives.

    Attributes
    ----------
    genes
        Token ids, int64, shape ``(b, s)``; column 0 is ``<cls>`` if the tokenizer adds it.
    values
        Binned (or unbinned) expression, float32, shape ``(b, s)``.
    padding
        ``True`` for padding, bool, shape ``(b, s)``.
    cells
        Row number of each cell in the data set, int64, shape ``(b,)``.
    keys
        Content key of each cell, int64 (bits of a uint64), shape ``(b,)``: random draws depend on it, not on position.
    conditions
        Further inputs of a network, as keyword arguments of its ``encode``: ``"batches"``, codes of sequencing batches,
        int64 ``(b,)``; ``"flags"``, perturbation flags, int64 ``(b, s)``; ``"generated"``, tokens whose expression is
        generated from the others, bool ``(b, s)``; ``"modalities"``, positions in :data:`MODALITIES`, int64 ``(b, s)``.
    targets
        Inputs of an objective: ``"labels"``, class codes, int64 ``(b,)``; ``"values"``, numbers, float32 ``(b,)``;
        ``"expression"``, expression to predict, float32 ``(b, s)``, and ``"masked"``, the positions that count, bool
        ``(b, s)``; ``"proteins"``, standardised abundance of each protein, float32 ``(b, n_proteins)``; ``"controls"``,
        mean expression of control cells, and ``"prior"``, the effect that a network's output is added to, float32 ``(b,
        s)``.
    padded
        Whether any position is padding; known without synchronising with the device.
    """

    genes: torch.Tensor
    values: torch.Tensor
    padding: torch.Tensor
    cells: torch.Tensor
    keys: torch.Tensor
    conditions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    targets: Mapping[str, torch.Tensor] = field(default_factory=dict)
    padded: bool = True

    def __len__(self) -> int:
        return self.genes.shape[0]

    @property
    def n_tokens(self) -> int:
        """Number of tokens without padding."""
        return int((~self.padding).sum())

    @property
    def padding_if_any(self) -> torch.Tensor | None:
        """``padding``, or ``None`` if there is none, since attention without a mask is faster."""
        return self.padding if self.padded else None

    def with_conditions(self, **tensors: torch.Tensor) -> TokenBatch:
        """Same cells with additional conditions."""
        return replace(self, conditions={**self.conditions, **tensors})

    def with_targets(self, **tensors: torch.Tensor) -> TokenBatch:
        """Same cells with additional targets."""
        return replace(self, targets={**self.targets, **tensors})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenBatch:
        """Move all tensors to a device.

        Parameters
        ----------
        device
            Target device.
        non_blocking
            Whether to copy tensors in pinned memory asynchronously.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenBatch:
        """Copy all tensors to pinned memory, for asynchronous copies to a CUDA device."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TokenBatch:
        return TokenBatch(
            genes=change(self.genes),
            values=change(self.values),
            padding=change(self.padding),
            cells=change(self.cells),
            keys=change(self.keys),
            conditions={name: change(tensor) for name, tensor in self.conditions.items()},
            targets={name: change(tensor) for name, tensor in self.targets.items()},
            padded=self.padded,
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of the tokenizer.

    Attributes
    ----------
    n_bins
        Number of expression bins, including the bin for zeros.
    max_length
        Maximum number of tokens per cell, including ``<cls>``; longer cells are sampled.
    cls_value
        Value of ``<cls>``: -2 in scGPT's pre-training and embedding, 0 in its fine-tuning.
    pad_value
        Value of padding.
    ties
        Bin of a value that equals several edges.
    include_zeros
        Whether genes without expression become tokens with value 0.
    append_cls
        Whether each cell starts with ``<cls>``.
    binned
        Whether to bin values; otherwise they are used unchanged.
    classes
        Whether to bin values into the classes ``log2(1 + counts per 10,000)``, rounded down and limited to ``n_bins -
        1``, instead of bins of the cell. Genes of class 0 are not tokens, unless genes without expression are.
    every_gene
        Whether all genes without expression become tokens with value 0, including genes that the data lack.
    seed
        Seed for sampling long cells and for random ties.
    """

    n_bins: int = 51
    max_length: int = 1200
    cls_value: float = -2.0
    pad_value: float = -2.0
    ties: Ties = "upper"
    include_zeros: bool = False
    append_cls: bool = True
    binned: bool = True
    classes: bool = False
    every_gene: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_binning(self.n_bins, self.ties)
        if self.max_genes < 1:
            msg = f"max_length={self.max_length} is too small for a gene; scGPT uses 1200."
            raise OptionError(msg)

    @property
    def max_genes(self) -> int:
        """Maximum number of genes per cell."""
        return self.max_length - self.append_cls


@dataclass(frozen=True)
class RaggedTokens:
    """Tokens of cells without padding, concatenated.

    Attributes
    ----------
    genes
        Token ids, int64, shape ``(n_tokens,)``.
    values
        Binned (or unbinned) expression, float32, shape ``(n_tokens,)``.
    indptr
        Start of each cell, int64, shape ``(b + 1,)``.
    cells
        Row number of each cell in the data set, int64, shape ``(b,)``.
    keys
        Content key of each cell, uint64, shape ``(b,)``.
    conditions
        Further inputs of a network for each cell, such as ``"batches"``, arrays ``(b,)``.
    """

    genes: NDArray[np.int64]
    values: NDArray[np.float32]
    indptr: NDArray[np.int64]
    cells: NDArray[np.int64]
    keys: NDArray[np.uint64]
    conditions: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each cell, including ``<cls>``."""
        return np.diff(self.indptr)

    def take(self, rows: NDArray[np.integer]) -> RaggedTokens:
        """Select cells by position, in the given order."""
        lengths = self.lengths[rows]
        indptr = starts(lengths)
        source = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        conditions = {name: codes[rows] for name, codes in self.conditions.items()}
        return RaggedTokens(
            self.genes[source], self.values[source], indptr, self.cells[rows], self.keys[rows], conditions
        )

    @staticmethod
    def concatenate(parts: Sequence[RaggedTokens]) -> RaggedTokens:
        """Concatenate the cells of several parts."""
        if len(parts) == 1:
            return parts[0]
        lengths = np.concatenate([part.lengths for part in parts])
        return RaggedTokens(
            genes=np.concatenate([part.genes for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            indptr=starts(lengths),
            cells=np.concatenate([part.cells for part in parts]),
            keys=np.concatenate([part.keys for part in parts]),
            conditions={
                name: np.concatenate([part.conditions[name] for part in parts]) for name in parts[0].conditions
            },
        )
