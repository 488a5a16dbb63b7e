"""Attention maps, and their means over many cells, computed explicitly (not used in training).

Shape letters: b cells, s tokens, d width, h heads, e width of a head, q and k wanted queries and keys in a cell.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from scgalore.nn.base import CellNetwork

__all__ = ["AttentionMeans", "AttentionScale", "attention_scores", "rank_scores"]

AttentionScale = Literal["rank", "softmax"]

CHUNK = 1 << 24
"""Maximum number of scores of one head in memory (64 MiB)."""


@torch.no_grad()
def attention_scores(
    network: CellNetwork,
    genes: Tensor,
    values: Tensor,
    padding: Tensor | None = None,
    *,
    layer: int = -1,
    **conditions: Any,
) -> Tensor:
    """Raw query-key products of one layer.

    Parameters
    ----------
    network
        A network in evaluation mode.
    genes, values, padding
        Tokens as for :meth:`CellNetwork.encode`.
    layer
        Index of the block.
    conditions
        Additional inputs of the network, as for :meth:`CellNetwork.encode`.

    Returns
    -------
    Tensor
        Float ``(b, h, s, s)``: queries by keys, neither scaled nor soft-maxed, as in scGPT's gene network tutorial.
    """
    number = range(len(network.blocks))[layer]
    found: list[Tensor] = []
    with _listening(network, {number: found.append}):
        network.encode(genes, values, padding, **conditions)
    q, k = network.queries_and_keys(number, found[0])
    return q @ k.transpose(-1, -2)


def rank_scores(scores: Tensor) -> Tensor:
    """Rank scores within each row, then each column, scaled to [0, 1), and average over heads.

    Parameters
    ----------
    scores
        Query-key products ``(b, h, s, s)``.

    Returns
    -------
    Tensor
        ``(b, s, s)``.

    Notes
    -----
    As in scGPT's tutorial. Ranks within rows are integers with many ties within a column, whose ranks depend on the
    order of the sort: :class:`AttentionMeans` uses mean ranks for ties.
    """
    for dim in (-1, -2):
        scores = scores.argsort(dim=dim).argsort(dim=dim) / scores.shape[-1]
    return scores.mean(dim=1)


class AttentionMeans:
    """Mean attention between pairs of genes over many cells, in constant memory.

    Cells are added one by one, and each layer is reduced while the network runs: only queries and keys of one cell and
    layer, and scores of some rows of one head, are in memory. A cell counts for pairs with both genes among its tokens.

    Parameters
    ----------
    network
        Network in evaluation mode, on its device.
    keys
        Token ids of the genes attended to, int64 ``(n_keys,)``, each once.
    queries
        Token ids of the attending genes, int64 ``(n_queries,)``, each once.
    layers
        Indices of the blocks to average over, from either end; ``None`` uses all.
    scale
        ``"rank"``: ranks among all tokens of the cell, within queries and then within keys, from 0 to 1, with
        mean ranks for ties; see :func:`rank_scores`. ``"softmax"``: attention weights.
    n_groups
        Number of groups of cells, each with its own means.

    Raises
    ------
    OptionError
        If the scale or layer does not exist, or the network has no attention.

    Attributes
    ----------
    sums
        Sum over cells of the mean over heads and layers, float64 ``(n_groups, n_keys, n_queries)``.
    n_cells
        Number of cells with both genes, int64, of the same shape.
    """

    def __init__(
        self,
        network: CellNetwork,
        keys: NDArray[np.int64],
        queries: NDArray[np.int64],
        *,
        layers: Sequence[int] | None = None,
        scale: AttentionScale = "rank",
        n_groups: int = 1,
    ) -> None:
        if scale not in get_args(AttentionScale):
            msg = f"scale={scale!r}: choose one of {', '.join(map(repr, get_args(AttentionScale)))}."
            raise OptionError(msg)
        self.network, self.scale = network, scale
        self.layers = _layers(network, layers)
        self._row_of_key = _places(keys, network.config.n_tokens)
        self._row_of_query = _places(queries, network.config.n_tokens)
        self.sums = np.zeros((n_groups, len(keys), len(queries)))
        self.n_cells = np.zeros(self.sums.shape, dtype=np.int64)

    @torch.no_grad()
    def add(self, genes: Tensor, values: Tensor, group: int = 0, **conditions: Any) -> None:
        """Add a cell.

        Parameters
        ----------
        genes
            Tokens of the cell, int64 ``(s,)``.
        values
            Values of these tokens, float32 ``(s,)``.
        group
            Index of the group of the cell.
        conditions
            Additional inputs of the network, ``(1,)``, such as ``batches``.
        """
        ids = genes.cpu().numpy()
        rows, columns = self._row_of_query[ids], self._row_of_key[ids]
        at_q, at_k = (np.flatnonzero(places >= 0) for places in (rows, columns))
        if len(at_q) == 0 or len(at_k) == 0:
            return
        total = np.zeros((len(at_k), len(at_q)))
        listeners = {n: _adder(self.network, n, total, at_q, at_k, self.scale) for n in self.layers}
        with _listening(self.network, listeners):
            self.network.encode(genes.unsqueeze(0), values.unsqueeze(0), **conditions)
        place = np.ix_([group], columns[at_k], rows[at_q])
        self.sums[place] += total / len(self.layers)
        self.n_cells[place] += 1

    def means(self) -> NDArray[np.float32]:
        """Means over the cells with both genes, NaN if there are none, float32 ``(n_groups, n_keys, n_queries)``."""
        with np.errstate(invalid="ignore"):
            return (self.sums / self.n_cells).astype(np.float32)


def _layers(network: CellNetwork, layers: Sequence[int] | None) -> list[int]:
    n = len(network.blocks)
    if n == 0:
        msg = f"{type(network).__name__} has no attention. Choose another model, or another method."
        raise OptionError(msg)
    wanted = list(range(n)) if layers is None else list(layers)
    if not wanted or any(not -n <= layer < n for layer in wanted) or len({layer % n for layer in wanted}) < len(wanted):
        msg = f"layers={wanted}: expected numbers from {-n} to {n - 1}, each layer once; the network has {n}."
        raise OptionError(msg)
    return [layer % n for layer in wanted]


def _places(tokens: NDArray[np.int64], n_tokens: int) -> NDArray[np.int64]:
    place = np.full(n_tokens, -1)
    place[tokens] = np.arange(len(tokens))
    return place


@contextmanager
def _listening(network: CellNetwork, listeners: dict[int, Callable[[Tensor], None]]) -> Iterator[None]:
    """Call functions with the input of blocks, by index, whenever the network runs."""

    # Hooks on the blocks include everything that `encode` adds to the tokens before.
    def hook(listen: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: listen(args[0])

    blocks = network.blocks
    handles = [blocks[number].register_forward_pre_hook(hook(listen)) for number, listen in listeners.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(
    network: CellNetwork,
    number: int,
    total: NDArray[np.float64],
    at_q: NDArray[np.int64],
    at_k: NDArray[np.int64],
    scale: str,
) -> Callable[[Tensor], None]:
    """Function that adds the mean over heads of one layer of one cell to ``total``, ``(k, q)``."""
    reduce = _ranks if scale == "rank" else _weights

    def add(x: Tensor) -> None:
        q, k = network.queries_and_keys(number, x)  # (1, h, s, e)
        for queries, keys in zip(q[0].float(), k[0].float(), strict=True):
            total[...] += reduce(queries, keys, at_q, at_k) / q.shape[1]

    return add


def _ranks(q: Tensor, k: Tensor, at_q: NDArray[np.int64], at_k: NDArray[np.int64]) -> NDArray[np.floating]:
    """Ranks of one head within rows, then within columns, for the given pairs, ``(k, q)``."""
    s = len(k)
    columns = torch.from_numpy(at_k).to(k.device)
    # Columns are ranked over all queries, but only the given columns.
    ranks = torch.cat([_doubled_ranks(q[rows] @ k.T, columns) for rows in _chunks(s, s)]).T  # (k, s)
    places = ranks + 2 * s * torch.arange(len(columns), device=k.device).unsqueeze(1)
    counts = torch.bincount(places.flatten(), minlength=2 * s * len(columns)).unflatten(0, (len(columns), -1))
    mean_ranks = counts.cumsum(dim=1).gather(1, ranks) - (counts.gather(1, ranks) + 1) / 2
    return (mean_ranks / s).cpu().numpy()[:, at_q]


def _doubled_ranks(scores: Tensor, columns: Tensor) -> Tensor:
    """Twice the ranks of the given columns among all, within each row; ties have their mean rank."""
    wanted = scores[:, columns].contiguous()
    # On a CPU, NumPy sorts ten times faster than torch; the position among sorted scores is the rank.
    ordered = torch.from_numpy(np.sort(scores.numpy(), axis=1)) if scores.device.type == "cpu" else scores.sort(1)[0]
    smaller = torch.searchsorted(ordered, wanted)
    if not bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return 2 * smaller
    return smaller + torch.searchsorted(ordered, wanted, right=True) - 1


def _weights(q: Tensor, k: Tensor, at_q: NDArray[np.int64], at_k: NDArray[np.int64]) -> NDArray[np.floating]:
    """Attention weights of one head for the given pairs, ``(k, q)``."""
    q = q[torch.from_numpy(at_q).to(q.device)] * q.shape[1] ** -0.5
    columns = torch.from_numpy(at_k).to(k.device)
    parts = [(q[rows] @ k.T).softmax(dim=1)[:, columns] for rows in _chunks(len(q), len(k))]
    return torch.cat(parts).T.cpu().numpy()


def _chunks(n_rows: int, n_columns: int) -> Iterator[slice]:
    size = max(1, CHUNK // n_columns)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
