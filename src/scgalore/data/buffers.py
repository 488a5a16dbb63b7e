"""Buffers of cells in the order of an epoch, from blocks of rows of many files."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData, concat
from scipy.sparse import csr_matrix

from scgalore._logging import warning
from scgalore._words import few
from scgalore.data.coded import CodedColumn
from scgalore.data.drawing import Blocks, Weighting, drawn, once
from scgalore.data.expression import LogExpression
from scgalore.data.hashing import digest, uniforms
from scgalore.data.labels import class_names
from scgalore.data.looking import SAMPLED, Look
from scgalore.data.matrix import CellMatrix
from scgalore.data.ragged import starts
from scgalore.data.scale import log_base_of, scale_of
from scgalore.data.sources import OpenSources
from scgalore.data.texts import texts_of
from scgalore.data.tokenizer import Tokenizer
from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.drawing import Visits
    from scgalore.data.looking import Kept, Wanted
    from scgalore.data.sources import OpenSource, Place
    from scgalore.data.tables import Table
    from scgalore.data.tokens import TokenizerConfig
    from scgalore.data.vocab import GeneVocab
    from scgalore.data.weighing import Weighing

__all__ = ["FileBuffers", "Part", "Share"]


@dataclass(frozen=True)
class Part:
    """Cells of a buffer from one source.

    Attributes
    ----------
    rows
        Expression, float32, in canonical form.
    cells
        Index of each cell among those of all sources, int64.
    labels
        Class codes, int64, or ``None``.
    tokenizer
        Tokenizer of the source.
    name
        Name of the source in messages.
    first
        Index of the source's first cell; ``cells - first`` are rows of the source.
    allow_unseen
        Whether cells may express no gene of the vocabulary.
    repeats
        Index of each draw of a cell in an epoch, int64; ``None`` if each cell occurs once.
    """

    rows: sp.csr_matrix
    cells: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    tokenizer: Tokenizer
    name: str
    first: int = 0
    allow_unseen: bool = False
    repeats: NDArray[np.int64] | None = None

    def check(self) -> None:
        """Raise an error for negative, NaN and infinite values, with their rows."""
        values = self.rows.data
        if np.isfinite(values).all() and values.min(initial=0) >= 0:
            return
        wrong = np.repeat(self.cells, np.diff(self.rows.indptr))[~(np.isfinite(values) & (values >= 0))]
        msg = (
            f"{self.name} contains negative, NaN or infinite values in {self.called(np.unique(wrong))}; expected counts or "
            "log-normalised expression. Pass the layer= with these."
        )
        raise DataError(msg)

    def called(self, cells: NDArray[np.int64]) -> str:
        """Describe cells by their rows in the source."""
        shown = ", ".join(map(str, (cells[:5] - self.first).tolist()))
        return f"{len(cells):,} of the rows read (for example {shown})"


@dataclass(frozen=True)
class Share:
    """Part of an epoch.

    Attributes
    ----------
    cells
        Cells of the process, by position in the order of the epoch.
    worker, n_workers
        Index of the worker of the process; each gets every ``n_workers``-th buffer.
    skipped
        Number of its first buffers to skip.
    """

    cells: range
    worker: int = 0
    n_workers: int = 1
    skipped: int = 0

    def buffers(self, size: int) -> Iterator[tuple[int, range]]:
        """Indices and positions of the buffers of ``size`` cells."""
        numbers = range(self.worker, -(-len(self.cells) // size), self.n_workers)[self.skipped :]
        return ((number, self.cells[number * size : (number + 1) * size]) for number in numbers)


class FileBuffers:
    """Blocks of rows, sampled from all sources.

    Parameters
    ----------
    wanted
        Files and objects; each is opened once to check it and to determine how to read it.
    vocab
        Vocabulary of the network.
    config
        Tokenizer settings.
    names
        Names of the groups of sources.
    block_size
        Number of rows per block.
    labels_key
        Column of ``obs`` with class labels, or ``None``.
    classes
        Names of the classes; by default those of the sources.
    weighing
        Weights for sampling with replacement; ``None`` if each cell occurs once.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        vocab: GeneVocab,
        config: TokenizerConfig,
        *,
        names: tuple[str, ...],
        block_size: int,
        labels_key: str | None,
        classes: Sequence[object] | None,
        weighing: Weighing | None = None,
    ) -> None:
        self._config = config
        self.names, self.block_size, self._weighing = names, block_size, weighing
        labels = (
            None if labels_key is None else CodedColumn(labels_key, None if classes is None else class_names(classes))
        )
        values = None if weighing is None or weighing.key is None else CodedColumn(weighing.key)
        self._vocab = vocab
        self._bases: list[float | None] = []  # base of the logarithms of each source, if tokens depend on it
        look, kept = Look(vocab), []
        for one in wanted:
            place = one.source.place()
            try:
                found = look.at(place, one)
                if found is not None:
                    kept.append(found)
                    self._bases.append(self._log_base(place, found))
                    for column in (labels, values):
                        if column is not None:
                            column.read(place.obs, found.rows)
            finally:
                place.close()
        for column in (labels, values):
            if column is not None:
                column.require()
        if not kept:
            query = wanted[0].query
            msg = f"where={query.text if query else None!r} selects no cell of any source."
            raise DataError(msg)
        self._tables = look.tables
        self.classes = () if labels is None else labels.names
        if labels is not None and len(self.classes) < 2:
            msg = f"All sources together have only one class, {self.classes[0]!r}; expected at least two."
            raise DataError(msg)
        self._labels = None if labels is None else labels.codes()
        self._values = None if values is None else values.codes()
        self._value_names = () if values is None else values.names
        self._keep(kept)
        #: Tokenizer of the first source; padding is the same for all.
        self.tokenizer = self._tokenizer(self._kept[0].table, self._bases[0])

    def _keep(self, kept: Sequence[Kept]) -> None:
        """Count cells, and divide them into blocks."""
        self._kept = tuple(kept)
        sizes = np.array([one.n_kept for one in kept])
        self._first = starts(sizes)  # position of the first selected cell
        self._offset = starts(
            np.array([one.n_obs for one in kept])
        )  # index of the first cell, including unselected ones
        #: Number of cells of each class, int64.
        self.class_counts = np.zeros(len(self.classes), dtype=np.int64)
        for codes in self._labels or ():
            self.class_counts += np.bincount(codes, minlength=len(self.classes))
        self._weighting: Weighting | None = None
        if self._weighing is not None:
            groups = [one.group for one in kept]
            weights = self._weighing.of_cells(self.names, groups, sizes.tolist(), self._value_names, self._values)
            self._weighting = Weighting(weights, groups, self._values, self._first, self._blocks)

    @property
    def _blocks(self) -> Blocks:
        return Blocks.of(
            self._first, self.block_size
        )  # recomputed, since stored attributes are sent to worker processes

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._first[-1])

    @property
    def shares(self) -> dict[str, float]:
        """Actual or expected fraction of the cells of an epoch from each group."""
        blocks = self._blocks
        source = np.searchsorted(self._first, blocks.first, side="right") - 1
        sizes = blocks.stop - blocks.first if self._weighting is None else self._weighting.of_blocks
        group = np.array([one.group for one in self._kept])[source]
        sums = np.bincount(group, sizes, minlength=len(self.names))
        return dict(zip(self.names, (sums / sums.sum()).tolist(), strict=True))

    def locate(self, cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Find the source of cells.

        Parameters
        ----------
        cells
            Indices among the cells of all files.

        Returns
        -------
        Index of the group, index of the file, and row in the file, int64 each.
        """
        file = np.searchsorted(self._offset, cells, side="right") - 1
        return np.array([one.group for one in self._kept])[file], file, cells - self._offset[file]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files in messages, in the order of :meth:`locate`."""
        return tuple(one.source.name for one in self._kept)

    def identity(self) -> dict[str, Any]:
        """Hashes of the files, of the selected cells and of their weights."""
        sources = [one.source for one in self._kept]
        each = [(source.name, source.fingerprint.lasting) for source in sources if source.fingerprint is not None]
        lasting = [found for _, found in each]
        rows = [np.array([one.n_obs]) if one.rows is None else one.rows for one in self._kept]
        return {
            "files": digest([np.frombuffer(repr(lasting).encode(), dtype=np.uint8)]),
            "files by name": [[name, f"{content} {size}"] for name, (content, size) in each],
            "rows of the files": digest(rows),
            "shares or weights": "none" if self._weighting is None else digest([self._weighting.of_blocks]),
        }

    def genes(self) -> NDArray[np.int64]:
        """Token ids of all genes, sorted."""
        found = np.unique(np.concatenate([np.unique(table) for table in self._tables]))
        return found[found > 0].astype(np.int64) - 1

    def split(self, n: int, seed: int) -> tuple[FileBuffers, FileBuffers]:
        """Split into remaining and held-out cells, which share tables and files; held-out cells occur once each.

        Parameters
        ----------
        n
            Number of cells to hold out. They are chosen by a hash of the seed, the content of the file and the row, so
            that names and order of the files do not matter; all copies of a cell are held out.
        seed
            Random seed.
        """
        draws = [
            uniforms(seed, "holdout", one.key, np.arange(one.n_obs) if one.rows is None else one.rows)
            for one in self._kept
        ]
        limit = np.partition(np.concatenate(draws), n - 1)[n - 1]
        held = [draw <= limit for draw in draws]
        return self._only([~one for one in held], self._weighing), self._only(held, None)

    def _only(self, chosen: Sequence[NDArray[np.bool_]], weighing: Weighing | None) -> FileBuffers:
        some = copy(self)
        some._weighing = weighing
        for name in ("_labels", "_values"):
            codes = getattr(self, name)
            if codes is not None:
                setattr(some, name, [of_file[which] for of_file, which in zip(codes, chosen, strict=True)])
        # Files without remaining cells are kept, so that cells keep their indices.
        some._keep([one.only(which) for one, which in zip(self._kept, chosen, strict=True)])
        return some

    def read(
        self, share: Share, *, size: int, seeds: Sequence[int] | None
    ) -> Generator[tuple[int, list[Part]], None, None]:
        """Read the buffers of a part of an epoch, with their indices.

        Parameters
        ----------
        share
            Part of the epoch.
        size
            Number of cells per buffer.
        seeds
            Seed and epoch, which determine the order of the blocks; ``None`` for no shuffling.
        """
        visits = self._visits(seeds)
        tokenizer_of = lru_cache(maxsize=8)(self._tokenizer)
        with OpenSources([one.source for one in self._kept]) as opened:
            for number, places in share.buffers(size):
                positions, repeats = visits.between(places.start, places.stop)
                bounds = np.searchsorted(positions, self._first)
                spans = [
                    (file, slice(bounds[file], bounds[file + 1])) for file in np.flatnonzero(np.diff(bounds)).tolist()
                ]
                yield (
                    number,
                    [
                        self._part(file, positions[span] - self._first[file], repeats[span], opened[file], tokenizer_of)
                        for file, span in spans
                    ],
                )

    def with_config(self, config: TokenizerConfig) -> FileBuffers:
        """Return the same cells with other tokenizer settings."""
        other = copy(self)
        other._config = config
        other.tokenizer = other._tokenizer(self._kept[0].table, self._bases[0])
        return other

    def gather(self, tokens: Sequence[str], obs_keys: Sequence[str] = ()) -> AnnData:
        """Read all cells into memory, log-normalised; see :meth:`scgalore.data.TokenStream.to_adata`."""
        stems = [Path(name).stem if name.endswith((".h5ad", ".zarr")) else name for name in self.names]
        called = stems if len(set(stems)) == len(stems) else self.names
        ids = self.genes()
        place_of = np.full(len(tokens), -1)
        place_of[ids] = np.arange(len(ids))
        gathered: list[AnnData] = []
        for kept in self._kept:
            if not kept.n_kept:
                continue
            table = self._token_ids(kept.table)
            known = np.flatnonzero(table >= 0)
            rows = np.arange(kept.n_obs) if kept.rows is None else kept.rows.astype(np.int64)
            opened = kept.source.open()
            try:
                x = opened.rows(rows)[:, known]
                names = opened.obs.index().iloc[rows].astype(str).to_numpy()
                columns = {key: _texts(opened.obs, key, rows) for key in obs_keys}
            finally:
                opened.close()
            moved = csr_matrix((x.data, place_of[table[known]][x.indices], x.indptr), shape=(len(rows), len(ids)))
            cells = AnnData(moved, var=pd.DataFrame(index=[tokens[i] for i in ids]))
            matrix = CellMatrix.from_adata(cells)
            scale = scale_of(matrix, data_type=kept.source.reading.data_type)
            cells.X = LogExpression(matrix, scale, math.e).rows(np.arange(len(rows)))
            cells.obs_names = names
            for key, values in {"source": called[kept.group], "file": kept.source.name, **columns}.items():
                cells.obs[key] = values
            gathered.append(cells)
        _report_lacking(gathered, obs_keys)
        whole = concat(gathered, axis="obs")
        whole.obs_names_make_unique()
        for key in whole.obs:
            whole.obs[key] = whole.obs[key].astype("category")
        return whole

    def _visits(self, seeds: Sequence[int] | None) -> Visits:
        if self._weighting is None or seeds is None:
            return once(self._blocks, seeds)
        return drawn(self._blocks, self._weighting, seeds, size=self.block_size)

    def _part(
        self, file: int, places: NDArray[np.int64], repeats: NDArray[np.int64], opened: OpenSource, tokenizer_of: Any
    ) -> Part:
        kept, first = self._kept[file], int(self._offset[file])
        rows = places if kept.rows is None else kept.rows[places].astype(np.int64)
        part = Part(
            rows=opened.rows(rows),
            cells=first + rows,
            labels=None if self._labels is None else self._labels[file][places].astype(np.int64),
            tokenizer=tokenizer_of(kept.table, self._bases[file]),
            name=kept.source.name,
            first=first,
            allow_unseen=kept.source.reading.min_matched == 0,
            repeats=None if self._weighting is None else repeats,
        )
        part.check()
        return part

    def _tokenizer(self, table: int, log_base: float | None) -> Tokenizer:
        return Tokenizer.of_vocab(self._token_ids(table), self._vocab, self._config, log_base=log_base)

    def _log_base(self, place: Place, kept: Kept) -> float | None:
        if not self._config.classes:
            return None
        reading = kept.source.reading
        sample = np.arange(min(SAMPLED, kept.n_obs)) if kept.rows is None else kept.rows[:SAMPLED].astype(np.int64)
        matrix = place.matrix(reading.layer)
        rows = CellMatrix.from_rows(matrix.rows(sample), matrix.name)
        return log_base_of(rows, layer=reading.layer, data_type=reading.data_type)

    def _token_ids(self, table: int) -> NDArray[np.int64]:
        return self._tables[table].astype(np.int64) - 1


def _texts(obs: Table, key: str, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """Labels of cells; ``None`` for missing labels, or if the table does not have the column."""
    return texts_of(obs.column(key).iloc[rows]) if key in obs.columns else np.full(len(rows), None)


def _report_lacking(files: Sequence[AnnData], keys: Sequence[str]) -> None:
    """Log the files without values in a column; raise an error if no file has values."""
    for key in keys:
        without = [cells.obs["file"].iloc[0] for cells in files if cells.obs[key].isna().all()]
        if len(without) == len(files):
            msg = f"None of the {len(files)} files has a value in obs[{key!r}]: {few(without)}."
            raise MissingKeyError(msg)
        if without:
            warning(f"{len(without)} of {len(files)} files have no value in obs[{key!r}]: {few(without)}")
