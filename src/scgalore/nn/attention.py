"""Attention maps, and their means over many cells, from an explicit path that training never takes.

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
"""Scores of one head that exist at a time (64 MiB)."""


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
    """Give the raw query-key products of one layer.

    Parameters
    ----------
    network
        A network in evaluation mode.
    genes, values, padding
        Tokens as for :meth:`CellNetwork.encode`.
    layer
        Index of the block.
    conditions
        What the network reads in addition, as for :meth:`CellNetwork.encode`.

    Returns
    -------
    Tensor
        Float ``(b, h, s, s)``: queries by keys, neither scaled nor soft-maxed, as in upstream's gene network tutorial.
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
    As upstream's tutorial does it. Ranks within rows are whole numbers, of which a column holds many equal ones, and the order
    in which a sort leaves these decides about their ranks: :class:`AttentionMeans` gives them their mean rank.
    """
    for dim in (-1, -2):
        scores = scores.argsort(dim=dim).argsort(dim=dim) / scores.shape[-1]
    return scores.mean(dim=1)


class AttentionMeans:
    """Mean attention between pairs of genes over many cells, in memory that does not grow with their number.

    Cells are added one by one, and each layer is reduced while the network runs: of one cell and one layer, queries and keys
    exist, and scores of some rows of one head. A cell counts for the pairs of which both genes are among its tokens.

    Parameters
    ----------
    network
        In evaluation mode, on the device to compute on.
    keys
        Token ids of the genes that are attended to, int64 ``(n_keys,)``, each once.
    queries
        Token ids of the genes that attend, int64 ``(n_queries,)``, each once.
    layers
        Numbers of the blocks to average over, from either end; all when ``None``.
    scale
        ``"rank"``: ranks among all tokens of the cell, within queries and then within keys, from 0 to 1, equal ones with their
        mean rank; see :func:`rank_scores`. ``"softmax"``: attention weights, as they mix values.
    n_groups
        Number of groups of cells, each with its own means.

    Raises
    ------
    OptionError
        If there is no such scale or layer, or the network does not attend.

    Attributes
    ----------
    sums
        Sum over cells of the mean over heads and layers, float64 ``(n_groups, n_keys, n_queries)``.
    n_cells
        Cells that have both genes, int64, of the same shape.
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
            Its tokens, int64 ``(s,)``.
        values
            Their values, float32 ``(s,)``.
        group
            Number of its group.
        conditions
            What the network reads of the cell in addition, ``(1,)``, such as ``batches``.
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
        """Means over the cells that have both genes, NaN where there are none, float32 ``(n_groups, n_keys, n_queries)``."""
        with np.errstate(invalid="ignore"):
            return (self.sums / self.n_cells).astype(np.float32)


def _layers(network: CellNetwork, layers: Sequence[int] | None) -> list[int]:
    n = len(network.blocks)
    if n == 0:
        msg = f"{type(network).__name__} has no attention to show. Choose another model, or another method."
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
    """Call functions with the input of blocks, by their number, whenever the network runs."""

    # Listening at the block leaves it to `encode` what a network adds to its tokens before.
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
    """What adds the mean over heads of one layer of one cell to ``total``, ``(k, q)``."""
    reduce = _ranks if scale == "rank" else _weights

    def add(x: Tensor) -> None:
        q, k = network.queries_and_keys(number, x)  # (1, h, s, e)
        for queries, keys in zip(q[0].float(), k[0].float(), strict=True):
            total[...] += reduce(queries, keys, at_q, at_k) / q.shape[1]

    return add


def _ranks(q: Tensor, k: Tensor, at_q: NDArray[np.int64], at_k: NDArray[np.int64]) -> NDArray[np.floating]:
    """Ranks of one head within rows, and of these within columns, for the wanted pairs, ``(k, q)``."""
    s = len(k)
    columns = torch.from_numpy(at_k).to(k.device)
    # Columns are ranked over all queries, and only the wanted ones of them.
    ranks = torch.cat([_doubled_ranks(q[rows] @ k.T, columns) for rows in _chunks(s, s)]).T  # (k, s)
    places = ranks + 2 * s * torch.arange(len(columns), device=k.device).unsqueeze(1)
    counts = torch.bincount(places.flatten(), minlength=2 * s * len(columns)).unflatten(0, (len(columns), -1))
    mean_ranks = counts.cumsum(dim=1).gather(1, ranks) - (counts.gather(1, ranks) + 1) / 2
    return (mean_ranks / s).cpu().numpy()[:, at_q]


def _doubled_ranks(scores: Tensor, columns: Tensor) -> Tensor:
    """Twice the ranks of some columns among all, within each row; equal ones have their mean rank."""
    wanted = scores[:, columns].contiguous()
    # NumPy sorts on a CPU in a tenth of torch's time, and the place among sorted scores is the rank.
    ordered = torch.from_numpy(np.sort(scores.numpy(), axis=1)) if scores.device.type == "cpu" else scores.sort(1)[0]
    smaller = torch.searchsorted(ordered, wanted)
    if not bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return 2 * smaller
    return smaller + torch.searchsorted(ordered, wanted, right=True) - 1


def _weights(q: Tensor, k: Tensor, at_q: NDArray[np.int64], at_k: NDArray[np.int64]) -> NDArray[np.floating]:
    """Attention weights of one head for the wanted pairs, ``(k, q)``."""
    q = q[torch.from_numpy(at_q).to(q.device)] * q.shape[1] ** -0.5
    columns = torch.from_numpy(at_k).to(k.device)
    parts = [(q[rows] @ k.T).softmax(dim=1)[:, columns] for rows in _chunks(len(q), len(k))]
    return torch.cat(parts).T.cpu().numpy()


def _chunks(n_rows: int, n_columns: int) -> Iterator[slice]:
    size = max(1, CHUNK // n_columns)
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
