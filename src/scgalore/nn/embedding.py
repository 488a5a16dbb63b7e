"""What training does with the table of gene embeddings, which holds 60 % of scGPT's parameters.

To add a way, write its context manager and put an :class:`EmbeddingMode` into :data:`EMBEDDINGS`.
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
    """One entry of :data:`EMBEDDINGS`.

    Attributes
    ----------
    name
        What the user writes as ``embedding=``.
    applied
        Context manager over a network and the token ids, int64 ``(n,)``, that batches may hold: inside, the network is
        as it is to be trained; afterwards it has its own structure again, with what was learnt.
    trains
        What is trained, in a sentence.
    state_bytes
        Bytes of optimizer state, in words.
    """

    name: str
    applied: Callable[[CellNetwork, Tensor], AbstractContextManager[None]]
    trains: str
    state_bytes: str


class RowEmbedding(nn.Embedding):
    """Some rows of a larger table, looked up by their ids in the larger one.

    Parameters
    ----------
    table
        The larger table; its weight is copied from and left alone.
    rows
        Ids of the rows, int64 ``(n,)``, sorted and without repeats, on the CPU: the table may be on the meta device.
    """

    def __init__(self, table: nn.Embedding, rows: Tensor) -> None:
        pad = None if table.padding_idx is None else (rows == table.padding_idx).nonzero().flatten().tolist()
        ids, rows = rows, rows.to(table.weight.device)
        weight = table.weight.detach()[rows]
        super().__init__(len(rows), table.embedding_dim, _weight=weight)
        self.weight.requires_grad = table.weight.requires_grad
        # -1 lies outside the rows: a token that was not announced is an error and not a wrong gene.
        row_of = torch.full((table.num_embeddings,), -1, device=weight.device)
        row_of[rows] = torch.arange(len(rows), device=weight.device)
        self.register_buffer("row_of", row_of, persistent=False)
        self.row_of: Tensor
        self.padding_idx = pad[0] if pad else None
        self.ids = ids

    def forward(self, ids: Tensor) -> Tensor:
        """Rows of the ids, ``(..., d)``."""
        return super().forward(self.row_of[ids])

    @torch.no_grad()
    def write_back(self, table: nn.Embedding) -> None:
        """Put the rows into a table as large as the one they are from."""
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
            trains="The rows of the genes at hand; the others are neither copied to the device nor touched.",
            state_bytes="The optimizer's, for the rows of the genes at hand; none for the others.",
        ),
        EmbeddingMode(
            name="full",
            applied=_full,
            trains="All rows. Without weight decay those of absent genes get no update, at the full cost.",
            state_bytes="The optimizer's, for every row.",
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
    """Entry of :data:`EMBEDDINGS` of this name.

    Raises
    ------
    OptionError
        If there is none.
    """
    if name not in EMBEDDINGS:
        msg = f"embedding={name!r}: choose one of {', '.join(map(repr, EMBEDDINGS))}."
        raise OptionError(msg)
    return EMBEDDINGS[name]
