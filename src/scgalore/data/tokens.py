"""Cells as tokens: the named types that every later stage works on.

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
"""Modalities of tokens, in the order in which upstream's multi-omic models number them."""
PROTEIN, RNA, NO_TOKEN, CELL = range(4)


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
        Content key of each cell, int64 (bits of a uint64), shape ``(b,)``: random draws depend on it, not on position.
    conditions
        What a network reads in addition, as keyword arguments of its ``encode``: ``"batches"``, codes of sequencing batches,
        int64 ``(b,)``; ``"flags"``, perturbation flags, int64 ``(b, s)``; ``"generated"``, tokens whose expression is to
        be generated from the others, bool ``(b, s)``; ``"modalities"``, of each token, positions in :data:`MODALITIES`, int64
        ``(b, s)``.
    targets
        What an objective reads: ``"labels"``, class codes, int64 ``(b,)``; ``"values"``, numbers, float32 ``(b,)``;
        ``"expression"``, expression to predict, float32 ``(b, s)``, and ``"masked"``, where it counts, bool ``(b, s)``;
        ``"proteins"``, standardised abundance of each protein, float32 ``(b, n_proteins)``; ``"controls"``, mean expression of control cells, and ``"prior"``, the effect that a network's output is added to,
        float32 ``(b, s)``.
    padded
        Whether any position is padding; known without asking the device.
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
        """Tokens that are not padding."""
        return int((~self.padding).sum())

    @property
    def padding_if_any(self) -> torch.Tensor | None:
        """``padding``, or ``None`` where no position is: attention without a mask is the faster one."""
        return self.padding if self.padded else None

    def with_conditions(self, **tensors: torch.Tensor) -> TokenBatch:
        """Same cells with these conditions in addition."""
        return replace(self, conditions={**self.conditions, **tensors})

    def with_targets(self, **tensors: torch.Tensor) -> TokenBatch:
        """Same cells with these targets in addition."""
        return replace(self, targets={**self.targets, **tensors})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenBatch:
        """Move every tensor to a device.

        Parameters
        ----------
        device
            Where to.
        non_blocking
            Whether the host goes on while tensors in pinned memory are copied.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenBatch:
        """Copy every tensor to page-locked memory, from where it is copied to a CUDA device while the host goes on."""
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
    classes
        Whether they are binned into classes of ``log2(1 + counts per 10,000)``, rounded down, of which the last is
        ``n_bins - 1``, in place of bins of the cell. Genes of class 0 are no tokens, unless those without expression are.
    every_gene
        Whether genes without expression become tokens too, with value 0, and also those that the data lack.
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
    classes: bool = False
    every_gene: bool = False
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
    conditions
        What a network reads of each cell in addition, such as ``"batches"``, arrays ``(b,)``.
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
        """Number of tokens of each cell, ``<cls>`` included."""
        return np.diff(self.indptr)

    def take(self, rows: NDArray[np.integer]) -> RaggedTokens:
        """Some of the cells, by position, in the order asked for."""
        lengths = self.lengths[rows]
        indptr = starts(lengths)
        source = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        conditions = {name: codes[rows] for name, codes in self.conditions.items()}
        return RaggedTokens(
            self.genes[source], self.values[source], indptr, self.cells[rows], self.keys[rows], conditions
        )

    @staticmethod
    def concatenate(parts: Sequence[RaggedTokens]) -> RaggedTokens:
        """Join the cells of several parts, in their order."""
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
