"""Token batches from many files, with memory that does not depend on their number."""

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

_Buffer: TypeAlias = "tuple[int, RaggedTokens, NDArray[np.int64] | None]"  # number, tokens and class codes


class TokenStream(IterableDataset[TokenBatch]):
    """Batches of tokens, read while they are used. Created by :func:`scgalore.data.stream`.

    An epoch depends only on the seed and its number. Without shares and weights, it contains each cell once. All
    processes get the same number of cells and batches; the remaining cells, fewer than the number of processes, are the
    last in the order of the epoch and are not read. The workers of a DataLoader share the buffers of their process, so
    the number of workers changes the order of the batches but not the batches. Files are opened one at a time where
    they are read, and closed when the iteration ends or is abandoned. Reading a file that has changed since the stream
    was created, is truncated or is missing raises an error.

    Parameters
    ----------
    buffers
        The cells.
    batch_size
        Number of cells per batch.
    buffer_size
        Number of cells per buffer.
    seed
        Seed of the shuffling; ``None`` keeps the order of the cells.
    rank, world_size
        Rank of this process and number of processes; ``None`` uses :mod:`torch.distributed`.
    labels_key
        Column with the class labels.
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
        #: Arguments of the task that the stream was created with, for training.
        self.arguments = {} if labels_key is None else {"labels_key": labels_key}
        self._buffers, self._seed = buffers, seed
        self._held_seed = seed or 0
        self.batch_size = batch_size
        self._buffer_size = buffer_size // batch_size * batch_size
        self._ranks = None if rank is None or world_size is None else (rank, world_size)
        # In shared memory, so that persistent workers learn of the next epoch: its number and its first batch.
        self._position = torch.zeros(2, dtype=torch.int64).share_memory_()
        #: Seconds this process has waited for cells to be read.
        self.waited = 0.0
        #: Cells and tokens (without padding) this process has received so far; those of DataLoader workers are not counted.
        self.n_cells_given = self.n_tokens_given = 0

    def __repr__(self) -> str:
        return (
            f"TokenStream({self.n_obs:,} cells, batch_size={self.batch_size}, block_size={self._buffers.block_size}, "
            f"buffer_size={self._buffer_size}, seed={self._seed})"
        )

    @property
    def n_obs(self) -> int:
        """Number of cells in all sources after ``where`` and splitting; also the number of draws per epoch."""
        return self._buffers.n_obs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their codes; empty without labels."""
        return self._buffers.classes

    @property
    def class_counts(self) -> NDArray[np.int64] | None:
        """Number of cells of each class, int64 ``(n_classes,)``; ``None`` for a loader, whose labels are not known in advance."""
        return self._buffers.class_counts

    @property
    def epoch(self) -> int:
        """Epoch of the next iteration."""
        return int(self._position[0])

    @property
    def position(self) -> tuple[int, int]:
        """Epoch of the next iteration and its first batch."""
        epoch, start = self._position.tolist()
        return epoch, start

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch of the next iteration, which determines its order of cells and random draws.

        Parameters
        ----------
        epoch
            Number of the epoch.
        start
            Number of the first batch, as for :meth:`batches`.
        """
        self._position[0], self._position[1] = epoch, start

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources; their files if they have no names."""
        return self._buffers.names

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the cells of an epoch from each source; expected value if cells are drawn with replacement."""
        return self._buffers.shares

    @property
    def files(self) -> tuple[str, ...]:
        """Files in the order of reading: paths, or descriptions of objects."""
        return self._buffers.files

    def locate(
        self, cells: NDArray[np.int64] | torch.Tensor
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Find the source, file and row of cells.

        Parameters
        ----------
        cells
            ``cells`` of batches: positions among the cells of all files, including those that are not selected.

        Returns
        -------
        Index of the source in :attr:`names`, index of the file in :attr:`files`, and row in the file, int64 each.
        """
        return self._buffers.locate(np.asarray(cells))

    def split(self, validation: float = 0.01, *, max_cells: int = 5000) -> tuple[TokenStream, TokenStream]:
        """Hold out some cells for validation.

        Cells are selected by a hash of the stream's seed, the content of the file and the row, independently of the
        names and the order of the files. The same cells are held out in copies of a file.

        Parameters
        ----------
        validation
            Fraction of the cells (float) or number of cells (int).
        max_cells
            Maximum number of cells to hold out.

        Returns
        -------
        The stream without these cells, and a stream of these cells in order, without shares and weights. Both share
        their tables with this stream.

        Raises
        ------
        OptionError
            If no cells would be held out or left, or the stream reads a loader.
        """
        if isinstance(self._buffers, LoaderBuffers):
            msg = "Cells of a loader cannot be held out. Pass a second loader as validation=."
            raise OptionError(msg)
        whole = isinstance(validation, int | np.integer) and not isinstance(validation, bool)
        n = min(int(validation) if whole else round(self.n_obs * validation), max_cells)
        if not 0 < n < self.n_obs:
            msg = (
                f"validation={validation!r} with max_cells={max_cells} would hold out {n:,} of {self.n_obs:,} cells; expected a fraction "
                "between 0 and 1 or a number of cells that leaves cells in both parts."
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
        """Same cells with other options of the tokenizer; only for files.

        Parameters
        ----------
        config
            Options of the tokenizer.
        """
        assert isinstance(self._buffers, FileBuffers)
        return self._with(self._buffers.with_config(config), self._seed)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the first source; all sources use the same options."""
        return self._buffers.tokenizer

    @property
    def n_matched(self) -> int:
        """Number of genes in the files with a token."""
        return len(self._buffers.genes())

    @property
    def lengths(self) -> None:
        """``None``, since lengths are not known before the cells are read."""

    @property
    def ranked(self) -> None:
        """``None``, since a stream has no ranking of genes."""

    @property
    def limits(self) -> Mapping[str, str]:
        """Options on batches and lengths, which are set when the stream is created."""
        own = "a stream makes its own batches. Set it when creating the stream."
        return {
            "batch_size": own,
            "batch_tokens": own,
            "max_length": own,
            "curriculum": "a curriculum needs cells in one AnnData; a stream makes its own batches.",
        }

    def identity(self) -> dict[str, Any]:
        """Sizes, settings, and fingerprints of the files; few cells are read."""
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
        """Batches of the stream, in a different order in each pass."""
        return StreamedBatches(self, rows, n_batches=plan.n_batches)

    def validation_batches(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> Batches:
        """Batches of the first epoch of the stream, the same at each iteration and different for each process."""
        return StreamedBatches(self, rows, epoch=0)

    def largest_batch(self, rows: NDArray[np.int64] | None, plan: BatchPlan) -> tuple[int, int]:
        """Maximum numbers of cells per batch and of tokens per cell."""
        return self.batch_size, self.tokenizer.config.max_length

    def windows(self, rows: NDArray[np.int64] | None = None, *, size: int = 0) -> Iterator[RaggedTokens]:
        """Tokens of all cells in order, one buffer at a time; the stream must not shuffle.

        Parameters
        ----------
        rows
            Consecutive rows, such as those of one of several processes; ``None`` for all.
        size
            Ignored; windows are the buffers of the stream.

        Raises
        ------
        OptionError
            If the stream shuffles, or ``rows`` are not consecutive.
        """
        if self._seed is not None:
            msg = "This stream shuffles its cells, so results could not be assigned to cells. Create it with shuffle=False."
            raise OptionError(msg)
        cells = range(self.n_obs)
        if rows is not None:
            cells = cells[rows[0] : rows[-1] + 1] if len(rows) else range(0)
            if not np.array_equal(rows, cells):
                msg = "rows= of a stream must be consecutive. Omit it to read all cells."
                raise OptionError(msg)
        with closing(self._buffers.read(Share(cells), size=self._buffer_size, seeds=None)) as buffers:
            for _, ragged, _ in self._ahead(_encoded(buffers, self.epoch)):
                yield ragged

    def to_adata(self, vocab: GeneVocab, *, obs_keys: Sequence[str] = ()) -> AnnData:
        """Read all cells into memory in order.

        Parameters
        ----------
        vocab
            Vocabulary that the stream was created with.
        obs_keys
            Columns of ``obs`` to include, as strings; values are missing for files without the column.

        Returns
        -------
        Cells by all genes with a token, log-normalised over these genes, with ``obs["source"]``, ``obs["file"]`` and
        the requested columns.

        Raises
        ------
        MissingKeyError
            If no file has the column.
        OptionError
            If the stream reads a loader.
        """
        if isinstance(self._buffers, LoaderBuffers):
            msg = "Cells of a loader cannot be collected. Create a stream of files."
            raise OptionError(msg)
        return self._buffers.gather(vocab.tokens, obs_keys)

    def tokens(self) -> NDArray[np.int64]:
        """Ids of all tokens that a batch can contain, sorted."""
        genes = np.union1d(self._buffers.genes(), self.tokenizer.genes)
        return np.union1d(genes, [self.tokenizer.cls_id, self.tokenizer.pad_id])

    def __len__(self) -> int:
        """Number of batches of this process in an epoch, the same for every process."""
        _, world_size = self._rank()
        return -(-(self.n_obs // world_size) // self.batch_size)

    def __iter__(self) -> Iterator[TokenBatch]:
        return self.batches(*self.position)

    def n_batches_of(self, worker: int) -> int:
        """Number of batches of a worker of this process in an epoch.

        Parameters
        ----------
        worker
            Number of the worker; 0 without workers.

        Raises
        ------
        OptionError
            If there are more workers than buffers.
        """
        share, size = self._share(worker), self._buffer_size
        n_batches = sum(-(-len(cells) // self.batch_size) for _, cells in share.buffers(size))
        if not n_batches:
            msg = (
                f"num_workers={share.n_workers} is more than the {-(-len(share.cells) // size)} buffers of cells. Create "
                "the stream with a smaller buffer_size=, or use fewer workers."
            )
            raise OptionError(msg)
        return n_batches

    def _share(self, worker: int | None = None) -> Share:
        rank, world_size = self._rank()
        if self.n_obs < world_size:
            msg = f"There are {self.n_obs} cells for {world_size} processes; each process needs at least one."
            raise DataError(msg)
        worker_info = get_worker_info()
        number, n_workers = (0, 1) if worker_info is None else (worker_info.id, worker_info.num_workers)
        n_cells = self.n_obs // world_size
        cells = range(rank * n_cells, (rank + 1) * n_cells)
        return Share(cells, number if worker is None else worker, n_workers)

    def batches(self, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of one epoch, independent of :meth:`set_epoch`.

        Parameters
        ----------
        epoch
            Number of the epoch.
        start
            Number of batches of this process to skip: the following batches are the same as if these had been read, but
            their buffers are not read. In the workers of a DataLoader, which take turns, these are the first batches of
            the loader, provided the number of workers is unchanged.

        Raises
        ------
        DataError
            If there are fewer cells than processes, or a file or cell cannot be read.
        """
        share = self._share()
        given, turn = _turns(start, len(self), self._buffer_size // self.batch_size, share.n_workers)
        worker = (share.worker + turn) % share.n_workers  # a DataLoader always asks its first worker first
        yield from self.batches_of(worker, epoch, given[worker])

    def batches_of(self, worker: int, epoch: int, start: int = 0) -> Iterator[TokenBatch]:
        """Batches of one worker.

        Parameters
        ----------
        worker
            Number of the worker; 0 without workers.
        epoch
            As for :meth:`batches`.
        start
            Number of batches of the worker to skip.
        """
        skipped, begun = divmod(start, self._buffer_size // self.batch_size)
        share = replace(self._share(worker), skipped=skipped)
        seeds = None if self._seed is None else (self._seed, epoch)
        with closing(self._buffers.read(share, size=self._buffer_size, seeds=seeds)) as buffers:
            for number, ragged, labels in self._ahead(_encoded(buffers, epoch)):
                # The same in all processes, so that their batches in a step have equal sizes and similar lengths.
                shuffle = None if self._seed is None else np.random.default_rng([self._seed, epoch, 0, number])
                lengths = ragged.lengths
                for rows in islice(self._cut(lengths, shuffle), begun, None):
                    self.n_cells_given += len(rows)
                    self.n_tokens_given += int(lengths[rows].sum())
                    batch = self.tokenizer.pad(ragged, rows)
                    yield batch if labels is None else batch.with_targets(labels=torch.from_numpy(labels[rows]))
                begun = 0

    def __getstate__(self) -> dict[str, Any]:
        # torch.distributed is not initialised in a spawned worker, so rank and world size are pickled.
        return {**vars(self), "_ranks": self._rank() if _is_distributed() else self._ranks}

    def _rank(self) -> tuple[int, int]:
        if self._ranks is not None:
            return self._ranks
        return (distributed.get_rank(), distributed.get_world_size()) if _is_distributed() else (0, 1)

    def _ahead(self, buffers: Iterator[_Buffer]) -> Iterator[_Buffer]:
        """Read the next buffer in a thread while the current one is used."""
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
            f"{part.name} has cells that express no gene of the model's vocabulary: {part.called(part.cells[empty])}. "
            "Remove them, or pass min_matched=0 to keep them."
        )
        raise DataError(msg)
    yield from part.tokenizer.parts(part.rows, part.cells, draw=epoch, repeats=part.repeats)


def _turns(start: int, n_batches: int, per_buffer: int, n_workers: int) -> tuple[list[int], int]:
    """Number of batches of each worker among the first ``start``, and the worker whose turn is next."""
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
