"""Token batches from many files, in memory that does not grow with their number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from anndata import AnnData
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from scgalore._rng import seed_from
from scgalore.data.batches import Batches, Drawn
from scgalore.data.buffers import FileBuffers, Share
from scgalore.data.hashing import digest
from scgalore.data.loaders import LoaderBuffers
from scgalore.data.reading import Reading
from scgalore.data.seen import sums_of
from scgalore.data.sources import Source
from scgalore.data.tokens import RaggedTokens, TokenBatch, TokenizerConfig
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from scgalore._typing import PathLike, Rng
    from scgalore.data.batches import BatchPlan
    from scgalore.data.buffers import Part
    from scgalore.data.tokenizer import Tokenizer
    from scgalore.data.vocab import GeneVocab

__all__ = ["StreamedBatches", "TokenStream", "stream"]

_Buffer: TypeAlias = "tuple[int, RaggedTokens, NDArray[np.int64] | None]"  # its number, tokens and class codes


def stream(
    sources: PathLike | AnnData | Sequence[PathLike | AnnData] | Any,
    vocab: GeneVocab,
    *,
    config: TokenizerConfig | None = None,
    batch_size: int = 64,
    block_size: int = 256,
    buffer_size: int = 8192,
    shuffle: bool = True,
    rng: Rng = 0,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    labels_key: str | None = None,
    classes: Sequence[object] | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> TokenStream:
    """Stream token batches from many files.

    Genes are matched by name in each source, so sources may have different genes in different orders. A cell's tokens are
    those that :class:`~scgalore.data.cells.TokenCells` makes of its file alone.

    Parameters
    ----------
    sources
        Paths of ``.h5ad`` files and ``.zarr`` folders, AnnData objects in memory or backed, or one of these. Matrices in files
        are CSR or dense. Or a loader with the protocol of annbatch's ``Loader``: it has ``n_obs`` and ``var`` and yields
        dictionaries with ``X`` and, where it has them, ``obs`` and ``index``. It brings its own order; its cells are shuffled
        within the buffer. This was tested with an object of that protocol, not with annbatch, which needs Python 3.12.
    vocab
        Tokens of the network.
    config
        How cells become tokens; scGPT's pre-training settings with the seed of ``rng`` when left out.
    batch_size
        Cells in a batch; the last one of an epoch may be smaller.
    block_size
        Neighbouring rows that are read together. Shuffling moves whole blocks between buffers, so where files are sorted,
        by cell type for example, blocks should be small and the buffer large.
    buffer_size
        Cells in memory that are shuffled together, rounded down to whole batches. While one buffer is used, the next is read.
    shuffle
        Whether blocks are drawn over all sources and cells shuffled in the buffer, then cut into batches of like length.
        Otherwise cells come in order.
    rng
        Seed of the order of blocks, cells and batches.
    layer
        Layer to read; ``X`` when left out.
    gene_symbols
        Column of ``var`` that holds gene names; the names of ``var`` when left out.
    data_type, species, min_matched
        As for :func:`scgalore.tl.embed`.
    labels_key
        Column of ``obs`` with class labels.
    classes
        Names of the classes, in the order of their codes. When left out: those found, in the order of the categories where all
        sources agree on it, otherwise sorted, numbers as numbers.
    rank, world_size
        This process and how many there are; asked of :mod:`torch.distributed` when left out.

    Returns
    -------
    A dataset to iterate over, or to give to ``DataLoader(stream, batch_size=None)``.

    Raises
    ------
    DataError
        If a source does not exist, cannot be read, holds its matrix by columns, has no gene of the vocabulary or a label that
        is missing or none of the classes. While reading: if a cell has negative, NaN or infinite values or no known gene.
    MissingKeyError
        If a layer or a column does not exist.
    OptionError
        If a size, ``rank`` or ``world_size`` is out of range.

    Examples
    --------
    >>> batches = sg.data.stream(["lung.h5ad", "blood.h5ad"], model.vocab, batch_size=64)  # doctest: +SKIP
    >>> for epoch in range(3):  # doctest: +SKIP
    ...     batches.set_epoch(epoch)
    ...     for batch in batches:
    ...         ...
    """
    seed = seed_from(rng)
    config = TokenizerConfig(seed=seed) if config is None else config
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    _check_sizes(batch_size, block_size, buffer_size)
    _check_rank(rank, world_size)
    buffers: FileBuffers | LoaderBuffers
    if _is_loader(sources):
        if layer is not None or gene_symbols is not None:
            msg = "layer= and gene_symbols= do not apply to a loader, which reads its files itself."
            raise OptionError(msg)
        buffers = LoaderBuffers(sources, vocab, config, labels_key=labels_key, classes=classes, reading=reading)
    else:
        listed = [sources] if isinstance(sources, str | os.PathLike | AnnData) else list(sources)
        named = [
            Source.of(source, number, reading=reading, labels_key=labels_key) for number, source in enumerate(listed)
        ]
        if not named:
            msg = "There are no sources; pass paths of .h5ad files or .zarr folders, or AnnData objects."
            raise DataError(msg)
        labelled = labels_key is not None
        buffers = FileBuffers(named, vocab, config, block_size=block_size, labelled=labelled, classes=classes)
    return TokenStream(
        buffers,
        batch_size=batch_size,
        buffer_size=buffer_size,
        seed=seed if shuffle else None,
        rank=rank,
        world_size=world_size,
        labels_key=labels_key,
    )


class TokenStream(IterableDataset[TokenBatch]):
    """Batches of tokens, read while they are used. Made by :func:`stream`.

    An epoch is determined by the seed and its number. Each process gets as many cells, and so as many batches, as any other:
    the cells left over, fewer than there are processes, are the last of the epoch's order and are not read in it. None is read
    twice. A DataLoader's workers share the buffers of their process, so the batches are the same whatever the number of
    workers, and only their order differs; without workers nothing changes the order. Files are opened where they are read,
    one at a time, and closed when the iteration ends or is dropped.

    Parameters
    ----------
    buffers
        The cells.
    batch_size
        Cells in a batch.
    buffer_size
        Cells in a buffer.
    seed
        Seed of the shuffling; ``None`` for the cells in order.
    rank, world_size
        This process and how many there are; asked of :mod:`torch.distributed` when ``None``.
    labels_key
        Column that the class codes were read from.
    """

    def __init__(
        self,
        buffers: FileBuffers | LoaderBuffers,
        *,
        batch_size: int,
        buffer_size: int,
        seed: int | None,
        rank: int | None = None,
        world_size: int | None = None,
        labels_key: str | None = None,
    ) -> None:
        super().__init__()
        #: Arguments of tasks that the stream was made with, for training.
        self.arguments = {} if labels_key is None else {"labels_key": labels_key}
        self._buffers, self._seed = buffers, seed
        self.batch_size = batch_size
        self._buffer_size = buffer_size // batch_size * batch_size
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        # In shared memory, so that workers that outlive an epoch learn of the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __repr__(self) -> str:
        return (
            f"TokenStream({self.n_obs:,} cells, batch_size={self.batch_size}, block_size={self._buffers.block_size}, "
            f"buffer_size={self._buffer_size}, seed={self._seed})"
        )

    @property
    def n_obs(self) -> int:
        """Number of cells in all sources."""
        return self._buffers.n_obs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their codes; empty without labels."""
        return self._buffers.classes

    @property
    def class_counts(self) -> NDArray[np.int64] | None:
        """Cells of each class, int64 ``(n_classes,)``; ``None`` for a loader, which shows its labels only while it is read."""
        return self._buffers.class_counts

    @property
    def epoch(self) -> int:
        """Number of the epoch that the next iteration is."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, with its order of cells and its draws."""
        self._epoch.fill_(epoch)

    @property
    def tokenizer(self) -> Tokenizer:
        """Makes the tokens of the first source; all are made alike."""
        return self._buffers.tokenizer

    @property
    def n_matched(self) -> int:
        """Number of genes in the files that are tokens of the network."""
        return len(self._buffers.genes())

    @property
    def lengths(self) -> None:
        """Not known before the cells are read."""

    @property
    def ranked(self) -> None:
        """A stream has no ranking of genes."""

    @property
    def limits(self) -> Mapping[str, str]:
        """Batches and lengths are the stream's own."""
        own = "a stream makes its own batches. Set it where the stream is made."
        return {
            "batch_size": own,
            "batch_tokens": own,
            "max_length": own,
            "curriculum": "a curriculum needs cells in one AnnData; a stream makes its own batches.",
        }

    def identity(self) -> dict[str, Any]:
        """Sizes and settings; the cells are not read."""
        return {
            "number of cells": self.n_obs,
            "genes": digest([self.tokens()]),
            "tokens": repr(self.tokenizer.config),
            "classes": ", ".join(self.classes),
            "expression": repr(self),
        }

    def training_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """The stream's own batches, each pass in another order."""
        return StreamedBatches(self, rows, n_batches=plan.n_batches)

    def validation_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """The stream's own batches of its first epoch, always the same; each process has its own."""
        return StreamedBatches(self, rows, epoch=0)

    def largest_batch(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> tuple[int, int]:
        """Cells of a batch and tokens of a cell, at most."""
        return self.batch_size, self.tokenizer.config.max_length

    def windows(self, rows: NDArray[np.int64] | None = None, *, size: int = 0) -> Iterator[RaggedTokens]:
        """Tokens of all cells in their order, a buffer at a time; the stream must not shuffle.

        Parameters
        ----------
        rows
            Must be left out: a stream is read whole.
        size
            Not used; windows are the stream's buffers.

        Raises
        ------
        OptionError
            If it shuffles, or some rows are asked for, as each of several processes does.
        """
        if rows is not None:
            msg = "A stream is read whole, so it is embedded by one process. Give each process files of its own."
            raise OptionError(msg)
        if self._seed is not None:
            msg = "This stream shuffles its cells, so results could not be told apart. Make it with shuffle=False."
            raise OptionError(msg)
        with closing(self._buffers.read(Share(), size=self._buffer_size, order=None)) as buffers:
            for _, ragged, _ in _ahead(_encoded(buffers, self.epoch)):
                yield ragged

    def tokens(self) -> NDArray[np.int64]:
        """Ids of all tokens that a batch may hold, sorted."""
        genes = np.union1d(self._buffers.genes(), self.tokenizer.genes)
        return np.union1d(genes, [self.tokenizer.cls_id, self.tokenizer.pad_id])

    def __len__(self) -> int:
        """Batches of this process in an epoch, the same for every process."""
        _, world_size = self._rank()
        return -(-(self.n_obs // world_size) // self.batch_size)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self.batches(self.epoch)

    def n_own_batches(self) -> int:
        """Batches of this process in an epoch, and in a worker of a DataLoader those of the worker.

        Raises
        ------
        OptionError
            If there are more workers than buffers of cells, so that this one has none.
        """
        share, size = self._share(), self._buffer_size
        n_cells = self.n_obs // share.world_size
        buffers = range(share.worker * size, n_cells, share.n_workers * size)
        if not buffers:
            msg = (
                f"num_workers={share.n_workers} workers share {-(-n_cells // size)} buffers of cells, which is fewer. Make the "
                "stream with a smaller buffer_size=, or lower num_workers."
            )
            raise OptionError(msg)
        return sum(-(-min(size, n_cells - first) // self.batch_size) for first in buffers)

    def _share(self) -> Share:
        rank, world_size = self._rank()
        if self.n_obs < world_size:
            msg = f"There are {self.n_obs} cells for {world_size} processes; each needs at least one."
            raise DataError(msg)
        info = get_worker_info()
        return Share(rank, world_size, *((0, 1) if info is None else (info.id, info.num_workers)))

    def batches(self, epoch: int, *, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of one epoch from some batch on, whichever :meth:`set_epoch` has chosen."""
        share = self._share()
        order = None if self._seed is None else np.random.default_rng([self._seed, epoch])
        with closing(self._buffers.read(share, size=self._buffer_size, order=order)) as buffers:
            for number, ragged, labels in _ahead(_encoded(buffers, epoch)):
                shuffle = None if self._seed is None else np.random.default_rng([self._seed, epoch, share.rank, number])
                for rows in self._cut(ragged.lengths, shuffle):
                    if start > 0:
                        start -= 1
                        continue
                    batch = self.tokenizer.pad(ragged, rows)
                    yield batch if labels is None else batch.with_targets(labels=torch.from_numpy(labels[rows]))

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker knows nothing of torch.distributed, so what the process knows of it travels along.
        return {**vars(self), "_ranks": self._rank() if _is_distributed() else self._ranks}

    def _rank(self) -> tuple[int, int]:
        if self._ranks is not None:
            return self._ranks
        return (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)

    def _cut(self, lengths: NDArray[np.int64], shuffle: np.random.Generator | None) -> Iterator[NDArray[np.int64]]:
        """Cells of each batch of a buffer."""
        order = np.arange(len(lengths))
        if shuffle is not None:
            shuffle.shuffle(order)
            order = order[np.argsort(lengths[order], kind="stable")]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for number in range(len(batches)) if shuffle is None else shuffle.permutation(len(batches)):
            yield batches[number]


class _Epochs(IterableDataset[Drawn]):
    """Batches of the epoch that the stream is in, or always of the same one."""

    def __init__(self, stream: TokenStream, epoch: int | None) -> None:
        super().__init__()
        self.stream, self.epoch = stream, epoch

    def __len__(self) -> int:
        return len(self.stream)

    def __iter__(self) -> Iterator[Drawn]:
        epoch = self.stream.epoch if self.epoch is None else self.epoch
        for batch in self.stream.batches(epoch):
            yield Drawn(batch, epoch)


class _Pieces(IterableDataset[Drawn]):
    """Passes over the stream, one after the other, cut into epochs of ``size`` batches.

    A draw is a pass. An epoch that follows the last one goes on reading where that has ended; any other finds its place anew.
    """

    def __init__(self, stream: TokenStream, size: int) -> None:
        super().__init__()
        self.stream, self.size = stream, size
        self._at = -1  # number of the next batch
        self._batches: Iterator[Drawn] = iter(())  # where it comes from

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Drawn]:
        info = get_worker_info()
        worker, n_workers = (0, 1) if info is None else (info.id, info.num_workers)
        size = len(range(worker, self.size, n_workers))
        start = self.stream.epoch * size
        if self._at != start:
            self._at, self._batches = start, self._from(start)
        for _ in range(size):
            drawn = next(self._batches)
            self._at += 1
            yield drawn

    def _from(self, at: int) -> Iterator[Drawn]:
        number, start = divmod(at, self.stream.n_own_batches())
        while True:
            for batch in self.stream.batches(number, start=start):
                yield Drawn(batch, number)
            number, start = number + 1, 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_at": -1, "_batches": iter(())}  # what is open stays where it is


class StreamedBatches(Batches):
    """Batches as a stream makes them. Each of several processes gets cells of its own.

    Parameters
    ----------
    stream
        The cells.
    rows
        Must be ``None``: a stream serves all of its cells.
    epoch
        Which epoch to serve whenever they are iterated over; ``None`` for the one that :meth:`set_epoch` chooses.
    n_batches
        Batches of an epoch; ``None`` for a pass over all cells.
    """

    reload = True

    def __init__(
        self,
        stream: TokenStream,
        rows: NDArray[np.int64] | None,
        epoch: int | None = None,
        n_batches: int | None = None,
    ) -> None:
        if rows is not None:
            msg = "split= does not go with a stream, which serves all of its cells. Make one stream for each split."
            raise OptionError(msg)
        self.rows, self.n = np.empty(0, dtype=np.int64), stream.n_obs
        self.dataset: IterableDataset[Drawn] = (
            _Epochs(stream, epoch) if n_batches is None else _Pieces(stream, n_batches)
        )
        self._stream, self._epoch = stream, epoch
        self._n_batches = len(stream) if n_batches is None else n_batches

    @property
    def sampler(self) -> None:
        """The stream decides itself what comes next."""

    def n_batches(self, epoch: int) -> int:
        """Batches of an epoch, the same for all processes."""
        return self._n_batches

    def first(self) -> Drawn:
        """The first batch."""
        batches = iter(self.dataset)
        try:
            return next(batches)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        if self._epoch is None:
            self._stream.set_epoch(epoch)


def _ahead(buffers: Iterator[_Buffer]) -> Iterator[_Buffer]:
    """Make the next buffer in a thread while the present one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="scgalore-stream") as reader:
        pending = reader.submit(next, buffers, None)
        while (buffer := pending.result()) is not None:
            pending = reader.submit(next, buffers, None)
            yield buffer


def _encoded(buffers: Iterator[tuple[int, list[Part]]], epoch: int) -> Iterator[_Buffer]:
    for number, parts in buffers:
        ragged = RaggedTokens.concatenate([tokens for part in parts for tokens in _tokens(part, epoch)])
        labels = None if parts[0].labels is None else np.concatenate([part.labels for part in parts])
        yield number, ragged, labels


def _tokens(part: Part, epoch: int) -> Iterator[RaggedTokens]:
    empty = sums_of(part.rows, part.tokenizer.token_ids)[:, 0] == 0
    if empty.any() and not part.allow_unseen:
        msg = (
            f"{part.name} has cells that express no gene that the model knows: {part.called(part.cells[empty])}. "
            "Remove them, or pass min_matched=0 to keep them all the same."
        )
        raise DataError(msg)
    yield from part.tokenizer.parts(part.rows, part.cells, draw=epoch)


def _is_loader(sources: Any) -> bool:
    listed = isinstance(sources, str | os.PathLike | AnnData | Sequence)
    return not listed and all(hasattr(sources, name) for name in ("__iter__", "n_obs", "var"))


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _check_sizes(batch_size: int, block_size: int, buffer_size: int) -> None:
    if min(batch_size, block_size) < 1 or buffer_size < batch_size:
        msg = (
            f"batch_size={batch_size}, block_size={block_size}, buffer_size={buffer_size}: the first two must be at least 1, "
            "and a buffer must hold at least one batch."
        )
        raise OptionError(msg)


def _check_rank(rank: int | None, world_size: int | None) -> None:
    if (rank is None) != (world_size is None) or (
        rank is not None and world_size is not None and not 0 <= rank < world_size
    ):
        msg = f"rank={rank} and world_size={world_size}: give both or neither, with 0 <= rank < world_size."
        raise OptionError(msg)
