"""Modes of training the table of gene embeddings, which contains 60 % of scGPT's parameters.

To add a mode, write its context manager and add an :class:`EmbeddingMode` to :data:`EMBEDDINGS`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from scgalore.nn.base import CellNetwork


@dataclass(frozen=True)
class EmbeddingMode:
    """Entry of :data:`EMBEDDINGS`.

    Attributes
    ----------
    name
        Value of ``embedding=``.
    applied
        Context manager for a network and the token ids, int64 ``(n,)``, that occur in batches: inside, the network has
        the structure for training; afterwards its own structure is restored, with the trained weights.
    trains
        Description of the trained parameters.
    state_bytes
        Description of the optimizer state.
    """

    name: str
    applied: Callable[[CellNetwork, Tensor], AbstractContextManager[None]]
    trains: str
    state_bytes: str


class RowEmbedding(nn.Embedding):
    """Subset of the rows of a larger table, looked up by their ids in the larger table.

    Parameters
    ----------
    table
        The larger table; its weight is copied and not modified.
    rows
        Ids of the rows, int64 ``(n,)``, sorted and unique, on the CPU: the table may be on the meta device.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        pad = None if table.padding_idx is None else (rows == table.padding_idx).nonzero().flatten().tolist()
        ids, rows = rows, rows.to(table.weight.device)
        weight = table.weight.detach()[rows]
        super().__init__(len(rows), table.embedding_dim, _weight=weight)
        self.weight.requires_grad = table.weight.requires_grad
        # -1 is outside the rows: an unexpected token raises an error instead of using a wrong gene.
        row_of = torch.full((table.num_embeddings,), -1, device=weight.device)
        row_of[rows] = torch.arange(len(rows), device=weight.device)
        self.register_buffer("row_of", row_of, persistent=False)
        self.row_of: Tensor
        self.padding_idx = pad[0] if pad else None
        self.ids = ids

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of the ids, ``(..., d)``."""
        return super().forward(self.row_of[ids])

    @torch.no_grad()
    def write_back(self, table: nn.Embedding) -> None:
        """Copy the rows to a table of the original size."""
        table.weight[self.ids] = self.weight.detach().to(table.weight)


@contextmanager
def _rows(network: CellNetwork, tokens: Tensor) -> Iterator[None]:
    table = network.gene_table
    rows = RowEmbedding(table, tokens.unique())
    network.gene_table = rows
    try:
        yield
    finally:
        network.gene_table = table
        rows.write_back(table)


@contextmanager
def _full(network: CellNetwork, tokens: Tensor) -> Iterator[None]:
    yield


@contextmanager
def _frozen(network: CellNetwork, tokens: Tensor) -> Iterator[None]:
    weight = network.gene_table.weight
    before = weight.requires_grad
    weight.requires_grad = False
    try:
        yield
    finally:
        weight.requires_grad = before


EMBEDDINGS: dict[str, EmbeddingMode] = {
    mode.name: mode
    for mode in (
        EmbeddingMode(
            name="rows",
            applied=_rows,
            trains="Embeddings of the genes in your data; all others are neither copied to the device nor changed.",
            state_bytes="That of the optimizer, for the genes in your data; none for the others.",
        ),
        EmbeddingMode(
            name="full",
            applied=_full,
            trains="All rows. Without weight decay those of absent genes get no update, at the full cost.",
            state_bytes="That of the optimizer, for all rows.",
        ),
        EmbeddingMode(
            name="frozen",
            applied=_frozen,
            trains="None of the rows.",
            state_bytes="None.",
        ),
    )
}


def embedding_mode(name: str) -> EmbeddingMode:
    """Entry of :data:`EMBEDDINGS` with this name.

    Raises
    ------
    OptionError
        If there is none.
    """
    if name not in EMBEDDINGS:
        msg = f"embedding={name!r}: choose one of {', '.join(map(repr, EMBEDDINGS))}."
        raise OptionError(msg)
    return EMBEDDINGS[name]
