"""Token batches from many files, in memory that does not grow with their number."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from scgalore._logging import info
from scgalore.data.buffers import FileBuffers, Share
from scgalore.data.hashing import digest
from scgalore.data.identity import KIND, parts_of
from scgalore.data.loaders import LoaderBuffers
from scgalore.data.seen import sums_of
from scgalore.data.streamed import StreamedBatches
from scgalore.data.tokens import RaggedTokens, TokenBatch, TokenizerConfig
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.batches import Batches, BatchPlan
    from scgalore.data.buffers import Part
    from scgalore.data.tokenizer import Tokenizer
    from scgalore.data.vocab import GeneVocab

__all__ = ["TokenStream"]

_Buffer: TypeAlias = "tuple[int, RaggedTokens, NDArray[np.int64] | None]"  # its number, tokens and class codes


class TokenStream(IterableDataset[TokenBatch]):
    """Batches of tokens, read while they are used. Made by :func:`scgalore.data.stream`.

    An epoch is determined by the seed and its number. Without shares and weights each cell comes once in it. Each process gets as many cells, and so as many batches, as any other:
    the cells left over, fewer than there are processes, are the last of the epoch's order and are not read in it. A DataLoader's workers share the buffers of their process, so the batches are the same whatever the number of
    workers, and only their order differs; without workers nothing changes the order. Files are opened where they are read,
    one at a time, and closed when the iteration ends or is dropped. A file that was changed since the stream was made, that is
    cut off or gone, is an error that names it as soon as it is read again.

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
        self._held_seed = seed or 0
        self.batch_size = batch_size
        self._buffer_size = buffer_size // batch_size * batch_size
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        # In shared memory, so that workers that outlive an epoch learn of the next: its number, and the batch to begin with.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        #: Seconds that this process has waited for cells that were not yet read.
        self.waited = 0.0
        #: Cells and tokens (without padding) that this process was given so far; those of DataLoader workers are not counted.
        self.n_cells_given = self.n_tokens_given = 0

    def __repr__(self) -> str:
        return (
            f"TokenStream({self.n_obs:,} cells, batch_size={self.batch_size}, block_size={self._buffers.block_size}, "
            f"buffer_size={self._buffer_size}, seed={self._seed})"
        )

    @property
    def n_obs(self) -> int:
        """Number of cells in all sources, those left out by ``where`` or held out not counted; draws of an epoch."""
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
        return int(self._position[0])

    @property
    def position(self) -> tuple[int, int]:
        """Number of the epoch that the next iteration is, and of the batch that it begins with."""
        epoch, start = self._position.tolist()
        return epoch, start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, with its order of cells and its draws.

        Parameters
        ----------
        epoch
            Its number.
        start
            Number of the batch to begin with, as for :meth:`batches`.
        """
        self._position[0], self._position[1] = epoch, start

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources; of a list without names, its files."""
        return self._buffers.names

    @property
    def shares(self) -> dict[str, float]:
        """Share of the cells of an epoch that each source has; the expected one where cells are drawn with replacement."""
        return self._buffers.shares

    @property
    def files(self) -> tuple[str, ...]:
        """What is read, one after the other: paths, or words for objects."""
        return self._buffers.files

    def locate(
        self, cells: NDArray[np.int64] | torch.Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Where cells come from.

        Parameters
        ----------
        cells
            ``cells`` of batches: their numbers among the cells of all files, those included that are not read.

        Returns
        -------
        Number of the source in :attr:`names`, of the file in :attr:`files`, and row in the file, int64 each.
        """
        return self._buffers.locate(np.asarray(cells))

    def split(self, validation: float = 0.01, *, max_cells: int = 5000) -> tuple[TokenStream, TokenStream]:
        """Hold some cells out, to validate on.

        Which ones is decided by a hash of the stream's seed, the content of each file and the row, whatever files are called and
        whichever order they have. Copies of a file have the same cells held out.

        Parameters
        ----------
        validation
            Share of the cells, or how many if it is a whole number.
        max_cells
            Most cells to hold out.

        Returns
        -------
        The stream without them, and a stream of them in order, without shares and weights. They share their tables with this one.

        Raises
        ------
        OptionError
            If nothing would be held out or left, or the stream is one of a loader.
        """
        if isinstance(self._buffers, LoaderBuffers):
            msg = "A loader brings its cells in its own order, of which none can be held out. Pass a second loader as validation=."
            raise OptionError(msg)
        whole = isinstance(validation, int | np.integer) and not isinstance(validation, bool)
        n = min(int(validation) if whole else round(self.n_obs * validation), max_cells)
        if not 0 < n < self.n_obs:
            msg = (
                f"validation={validation!r} with max_cells={max_cells} would hold out {n:,} of {self.n_obs:,} cells; it must be a share "
                "between 0 and 1, or a number of cells, and leave some on either side."
            )
            raise OptionError(msg)
        training, held = self._buffers.split(n, self._held_seed)
        info(f"{held.n_obs:,} of {self.n_obs:,} cells are held out")
        return self._with(training, self._seed), self._with(held, None)

    def _with(self, buffers: FileBuffers, seed: int | None) -> TokenStream:
        ranks = dict(zip(("rank", "world_size"), self._ranks or (None, None), strict=True))
        other = TokenStream(
            buffers,
            batch_size=self.batch_size,
            buffer_size=self._buffer_size,
            seed=seed,
            labels_key=self.arguments.get("labels_key"),
            **ranks,
        )
        other._held_seed = self._held_seed
        return other

    def with_config(self, config: TokenizerConfig) -> TokenStream:
        """Same cells as other tokens; of files only.

        Parameters
        ----------
        config
            How cells become tokens.
        """
        assert isinstance(self._buffers, FileBuffers)
        return self._with(self._buffers.with_config(config), self._seed)

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
        """Sizes, settings, and hashes of what the files are like; few of their cells are read."""
        return {
            "number of cells": self.n_obs,
            "genes": digest([self.tokens()]),
            "tokens": parts_of(self.tokenizer.config),
            "classes": ", ".join(self.classes),
            "reading": {
                KIND: type(self).__name__,
                "batch_size": self.batch_size,
                "block_size": self._buffers.block_size,
                "buffer_size": self._buffer_size,
                "seed": self._seed,
            },
            **self._buffers.identity(),
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
            Consecutive ones, as each of several processes asks for; all when left out.
        size
            Not used; windows are the stream's buffers.

        Raises
        ------
        OptionError
            If it shuffles, or other rows are asked for.
        """
        if self._seed is not None:
            msg = "This stream shuffles its cells, so results could not be told apart. Make it with shuffle=False."
            raise OptionError(msg)
        cells = range(self.n_obs)
        if rows is not None:
            cells = cells[rows[0] : rows[-1] + 1] if len(rows) else range(0)
            if not np.array_equal(rows, cells):
                msg = (
                    "A stream is read forwards and without gaps: rows= must be consecutive. Leave it out for all cells."
                )
                raise OptionError(msg)
        with closing(self._buffers.read(Share(cells), size=self._buffer_size, seeds=None)) as buffers:
            for _, ragged, _ in self._ahead(_encoded(buffers, self.epoch)):
                yield ragged

    def to_adata(self, vocab: GeneVocab, *, obs_keys: Sequence[str] = ()) -> AnnData:
        """Read all cells into memory, in their order.

        Parameters
        ----------
        vocab
            What the stream was made with.
        obs_keys
            Columns of ``obs`` to take along, as text; cells of files that lack one have no value there.

        Returns
        -------
        Cells by the genes of all files that are tokens, log-normalised over these, with ``obs["source"]``, ``obs["file"]`` and the
        columns.

        Raises
        ------
        MissingKeyError
            If no file has such a column.
        OptionError
            If the stream is one of a loader.
        """
        if isinstance(self._buffers, LoaderBuffers):
            msg = "A loader brings its cells in its own order, of which none can be gathered. Make a stream of files."
            raise OptionError(msg)
        return self._buffers.gather(vocab.tokens, obs_keys)

    def tokens(self) -> NDArray[np.int64]:
        """Ids of all tokens that a batch may hold, sorted."""
        genes = np.union1d(self._buffers.genes(), self.tokenizer.genes)
        return np.union1d(genes, [self.tokenizer.cls_id, self.tokenizer.pad_id])

    def __len__(self) -> int:
        """Batches of this process in an epoch, the same for every process."""
        _, world_size = self._rank()
        return -(-(self.n_obs // world_size) // self.batch_size)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self.batches(*self.position)

    def n_batches_of(self, worker: int) -> int:
        """Batches that a worker of this process has in an epoch.

        Parameters
        ----------
        worker
            Its number; 0 where there are none.

        Raises
        ------
        OptionError
            If there are more workers than buffers of cells, so that this one has none.
        """
        share, size = self._share(worker), self._buffer_size
        n_batches = sum(-(-len(cells) // self.batch_size) for _, cells in share.buffers(size))
        if not n_batches:
            msg = (
                f"num_workers={share.n_workers} workers share {-(-len(share.cells) // size)} buffers of cells, which is fewer. Make "
                "the stream with a smaller buffer_size=, or lower num_workers."
            )
            raise OptionError(msg)
        return n_batches

    def _share(self, worker: int | None = None) -> Share:
        rank, world_size = self._rank()
        if self.n_obs < world_size:
            msg = f"There are {self.n_obs} cells for {world_size} processes; each needs at least one."
            raise DataError(msg)
        worker_info = get_worker_info()
        number, n_workers = (0, 1) if worker_info is None else (worker_info.id, worker_info.num_workers)
        n_cells = self.n_obs // world_size
        cells = range(rank * n_cells, (rank + 1) * n_cells)
        return Share(cells, number if worker is None else worker, n_workers)

    def batches(self, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of one epoch, whichever :meth:`set_epoch` has chosen.

        Parameters
        ----------
        epoch
            Its number.
        start
            How many of the batches of this process have been there before: those that follow are the same as if these had been
            read. Buffers before are not read. In the workers of a DataLoader, which take turns, they are the batches that the
            loader gave first, as long as there are as many workers as there were.

        Raises
        ------
        DataError
            If there are fewer cells than processes, or a file or cell cannot be read.
        """
        share = self._share()
        given, turn = _turns(start, len(self), self._buffer_size // self.batch_size, share.n_workers)
        worker = (share.worker + turn) % share.n_workers  # a DataLoader asks its first worker first
        yield from self.batches_of(worker, epoch, given[worker])

    def batches_of(self, worker: int, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Those of a worker alone; 0 where there are none.

        Parameters
        ----------
        worker
            Its number.
        epoch
            As for :meth:`batches`.
        start
            How many of its own batches have been there before.
        """
        skipped, begun = divmod(start, self._buffer_size // self.batch_size)
        share = replace(self._share(worker), skipped=skipped)
        seeds = None if self._seed is None else (self._seed, epoch)
        with closing(self._buffers.read(share, size=self._buffer_size, seeds=seeds)) as buffers:
            for number, ragged, labels in self._ahead(_encoded(buffers, epoch)):
                # The same in all processes: of each step they get batches of equal size and like length.
                shuffle = None if self._seed is None else np.random.default_rng([self._seed, epoch, 0, number])
                lengths = ragged.lengths
                for rows in islice(self._cut(lengths, shuffle), begun, None):
                    self.n_cells_given += len(rows)
                    self.n_tokens_given += int(lengths[rows].sum())
                    batch = self.tokenizer.pad(ragged, rows)
                    yield batch if labels is None else batch.with_targets(labels=torch.from_numpy(labels[rows]))
                begun = 0

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker knows nothing of torch.distributed, so what the process knows of it travels along.
        return {**vars(self), "_ranks": self._rank() if _is_distributed() else self._ranks}

    def _rank(self) -> tuple[int, int]:
        if self._ranks is not None:
            return self._ranks
        return (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)

    def _ahead(self, buffers: Iterator[_Buffer]) -> Iterator[_Buffer]:
        """Make the next buffer in a thread while the present one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="scgalore-stream") as reader:
            pending = reader.submit(next, buffers, None)
            while True:
                asked = time.perf_counter()
                buffer = pending.result()
                self.waited += time.perf_counter() - asked
                if buffer is None:
                    return
                pending = reader.submit(next, buffers, None)
                yield buffer

    def _cut(self, lengths: NDArray[np.int64], shuffle: np.random.Generator | None) -> Iterator[NDArray[np.int64]]:
        """Cells of each batch of a buffer."""
        order = np.arange(len(lengths))
        if shuffle is not None:
            shuffle.shuffle(order)
            order = order[np.argsort(lengths[order], kind="stable")]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for number in range(len(batches)) if shuffle is None else shuffle.permutation(len(batches)):
            yield batches[number]


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
    yield from part.tokenizer.parts(part.rows, part.cells, draw=epoch, repeats=part.repeats)


def _turns(start: int, n_batches: int, per_buffer: int, n_workers: int) -> tuple[list[int], int]:
    """How many of the first ``start`` batches each worker gave, and whose turn is next: they take turns until they have no more."""
    n_buffers = -(-n_batches // per_buffer)
    left = [len(range(worker, n_buffers, n_workers)) * per_buffer for worker in range(n_workers)]
    if n_buffers:
        left[(n_buffers - 1) % n_workers] -= n_buffers * per_buffer - n_batches
    given = [0] * n_workers
    start = min(start, n_batches)
    while taking := [worker for worker in range(n_workers) if left[worker] > given[worker]]:
        rounds = min(min(left[worker] - given[worker] for worker in taking), start // len(taking))
        if not rounds:
            for worker in taking[:start]:
                given[worker] += 1
            return given, taking[start]
        for worker in taking:
            given[worker] += rounds
        start -= rounds * len(taking)
    return given, 0


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
