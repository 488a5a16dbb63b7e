"""Cells as tokens: the named types every later stage works on.

Shape letters: b cells in a batch, s tokens in a row (``<cls>`` included).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Ties = Literal["upper", "random"]


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
        Content key of each cell, int64 (bits of a uint64), shape ``(b,)``: random draws hang on it, not on the position.
    labels
        Class codes, int64, shape ``(b,)``, -1 for unlabelled; ``None`` when the task has no labels.
    batches
        Codes of the sequencing batches, int64, shape ``(b,)``; ``None`` when the network does not use them.
    flags
        Perturbation flags, int64, shape ``(b, s)``; ``None`` outside perturbation tasks.
    """

    genes: torch.Tensor
    values: torch.Tensor
    padding: torch.Tensor
    cells: torch.Tensor
    keys: torch.Tensor
    labels: torch.Tensor | None = None
    batches: torch.Tensor | None = None
    flags: torch.Tensor | None = None

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
