"""Cells in the order of an epoch, a buffer at a time, from blocks of rows of many files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._logging import info
from scgalore.data.labels import class_codes, class_names, classes_of, in_order, refuse_measurement
from scgalore.data.match import advice_for, match_genes
from scgalore.data.matrix import CellMatrix
from scgalore.data.ragged import starts
from scgalore.data.scale import log_base_of
from scgalore.data.seen import Seen, sums_of
from scgalore.data.sources import OpenSources
from scgalore.data.texts import same_label, texts_of
from scgalore.data.tokenizer import Tokenizer
from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    import pandas as pd
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore.data.sources import OpenSource, Source
    from scgalore.data.tokens import TokenizerConfig
    from scgalore.data.vocab import GeneVocab

__all__ = ["FileBuffers", "Part", "Share", "refuse_unknown"]


SAMPLED = 256
"""Cells of a file that are looked at before it is read."""


@dataclass(frozen=True)
class Part:
    """Cells of a buffer that come from one source.

    Attributes
    ----------
    rows
        Expression, float32, in canonical form.
    cells
        Number of each cell among those of all sources, int64.
    labels
        Class codes, int64, or ``None``.
    tokenizer
        Makes their tokens.
    name
        What to call the source in messages.
    first
        Number of the source's first cell; ``cells - first`` are rows of the source.
    allow_unseen
        Whether cells may express no gene of the vocabulary.
    """

    rows: sp.csr_matrix
    cells: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    tokenizer: Tokenizer
    name: str
    first: int = 0
    allow_unseen: bool = False

    def check(self) -> None:
        """Refuse negative, NaN and infinite values; the message names the rows."""
        values = self.rows.data
        if np.isfinite(values).all() and values.min(initial=0) >= 0:
            return
        wrong = np.repeat(self.cells, np.diff(self.rows.indptr))[~(np.isfinite(values) & (values >= 0))]
        msg = (
            f"{self.name} holds negative, NaN or infinite values in {self.called(np.unique(wrong))}; expected counts or "
            "log-normalised expression. Pass the layer= that holds them."
        )
        raise DataError(msg)

    def called(self, cells: NDArray[np.int64]) -> str:
        """Name some of these cells by their rows in the source."""
        shown = ", ".join(map(str, (cells[:5] - self.first).tolist()))
        return f"{len(cells):,} of the rows read (for example {shown})"


@dataclass(frozen=True)
class Share:
    """Which part of an epoch is wanted.

    Attributes
    ----------
    rank, world_size
        The process and how many there are; each gets as many cells as the others.
    worker, n_workers
        The worker of the process; each gets every ``n_workers``-th buffer.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    n_workers: int = 1


class FileBuffers:
    """Blocks of rows, drawn over all sources.

    Parameters
    ----------
    sources
        Files and objects; each is opened once, to check it.
    vocab
        Tokens of the network.
    config
        How cells become tokens.
    block_size
        Rows of a block.
    labelled
        Whether the sources have labels to read.
    classes
        Names of the classes; taken from the sources when left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        vocab: GeneVocab,
        config: TokenizerConfig,
        *,
        block_size: int,
        labelled: bool,
        classes: Sequence[object] | None,
    ) -> None:
        self._sources, self._config = sources, config
        self._vocab = vocab
        self._tables: list[NDArray[np.int32]] = []  # token ids of the columns, one table for each list of genes
        self._table_of: list[int] = []  # of each source
        self._bases: list[float | None] = []  # of each source: base of its logarithms, where tokens depend on it
        found: list[tuple[str, ...]] = []
        sizes: list[int] = []
        numbers: dict[bytes, int] = {}
        known = None if classes is None else class_names(classes)
        counted: list[pd.Series] = []
        for source in sources:
            opened = source.open()
            try:
                sizes.append(_n_obs(opened))
                self._table_of.append(self._match(opened, source, vocab, numbers))
                self._bases.append(self._log_base(opened, source))
                if labelled and opened.labels is not None:
                    found.append(_classes(opened.labels, source.name, known))
                    counted.append(opened.labels.value_counts())
            finally:
                opened.close()
        self.classes = () if not labelled else _common(found) if known is None else known
        #: Cells of each class, int64.
        self.class_counts = np.zeros(len(self.classes), dtype=np.int64)
        for counts in counted:
            np.add.at(self.class_counts, class_codes(counts.index.to_series(), self.classes), counts.to_numpy(np.int64))
        self._labelled = labelled
        #: Makes the tokens of the first source; all pad alike.
        self.tokenizer = self._tokenizer(0)
        self._first = starts(np.array(sizes))
        self.block_size = block_size

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return int(self._first[-1])

    def genes(self) -> NDArray[np.int64]:
        """Token ids of all genes, sorted."""
        ids = np.unique(np.concatenate(self._tables)).astype(np.int64)
        return ids[ids >= 0]

    def read(
        self, share: Share, *, size: int, order: np.random.Generator | None
    ) -> Generator[tuple[int, list[Part]], None, None]:
        """Read the buffers of a share, with their numbers.

        Parameters
        ----------
        share
            Whose buffers.
        size
            Cells in a buffer.
        order
            Shuffles the blocks; they come in order when left out.
        """
        blocks = self._blocks()
        if order is not None:
            blocks = order.permutation(blocks)
        ends = np.cumsum(blocks[:, 1] - blocks[:, 0])
        n_cells = self.n_obs // share.world_size
        first = share.rank * n_cells
        tokenizer_of = lru_cache(maxsize=8)(self._tokenizer)
        with OpenSources(self._sources) as opened:
            for number in range(share.worker, -(-n_cells // size), share.n_workers):
                start = first + number * size
                cells = _cells_at(blocks, ends, start, min(start + size, first + n_cells))
                bounds = np.searchsorted(cells, self._first)
                yield (
                    number,
                    [
                        self._part(source, cells[bounds[source] : bounds[source + 1]], opened, tokenizer_of)
                        for source in np.flatnonzero(np.diff(bounds)).tolist()
                    ],
                )

    def _blocks(self) -> NDArray[np.int64]:
        """First cell of each block, and the one behind its last."""
        size = self.block_size
        first = np.concatenate([np.arange(*bounds, size) for bounds in pairwise(self._first.tolist())])
        ends = np.repeat(self._first[1:], -(-np.diff(self._first) // size))
        return np.stack([first, np.minimum(first + size, ends)], axis=1)

    def _part(self, source: int, cells: NDArray[np.int64], opened: OpenSources, tokenizer_of: Any) -> Part:
        first = int(self._first[source])
        data = opened[source]
        labels = None
        if self._labelled and data.labels is not None:
            labels = class_codes(data.labels.iloc[cells - first], self.classes)
        part = Part(
            rows=data.matrix.rows(cells - first),
            cells=cells,
            labels=labels,
            tokenizer=tokenizer_of(source),
            name=self._sources[source].name,
            first=first,
            allow_unseen=self._sources[source].reading.min_matched == 0,
        )
        part.check()
        return part

    def _tokenizer(self, source: int) -> Tokenizer:
        table, log_base = self._tables[self._table_of[source]], self._bases[source]
        return Tokenizer.of_vocab(table, self._vocab, self._config, log_base=log_base)

    def _log_base(self, opened: OpenSource, source: Source) -> float | None:
        if not self._config.classes:
            return None
        rows = opened.matrix.rows(np.arange(min(SAMPLED, opened.matrix.n_obs)))
        reading = source.reading
        return log_base_of(
            CellMatrix.from_rows(rows, opened.matrix.name), layer=reading.layer, data_type=reading.data_type
        )

    def _match(self, opened: OpenSource, source: Source, vocab: GeneVocab, numbers: dict[bytes, int]) -> int:
        """Number of the table for a source's list of genes; files with the same list share one."""
        genes, reading, where = opened.genes(), source.reading, f"{source.name}: "
        digest = blake2b("\n".join(genes).encode(), digest_size=16).digest()
        if digest not in numbers:
            try:
                match = match_genes(genes, vocab, species=reading.species, columns=opened.columns)
            except DataError as error:
                msg = f"{where}{error}"
                raise DataError(msg) from error
            info(f"{where}{match.summary()}")
            # The whole file is not read before its turn; what share the matched genes have, its first cells tell.
            rows = opened.matrix.rows(np.arange(min(SAMPLED, opened.matrix.n_obs)))
            advice = partial(advice_for, genes, vocab, species=reading.species, columns=opened.columns)
            seen = Seen.of(*sums_of(rows, match.token_ids).T)
            seen.check(match, reading.min_matched, advice, where=f"{where}in its first {rows.shape[0]:,} cells: ")
            numbers[digest] = len(self._tables)
            self._tables.append(match.token_ids.astype(np.int32))
        return numbers[digest]


def _cells_at(blocks: NDArray[np.int64], ends: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Sorted numbers of the cells at positions ``start`` to ``stop`` of the blocks laid end to end."""
    low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left")
    cells = np.concatenate([np.arange(*block) for block in blocks[low : high + 1]])
    skipped = start - (ends[low - 1] if low else 0)
    return np.sort(cells[skipped : skipped + stop - start])


def _n_obs(opened: OpenSource) -> int:
    matrix = opened.matrix
    if not (matrix.n_obs and matrix.n_vars):
        msg = f"{matrix.name} is empty: {matrix.n_obs} cells x {matrix.n_vars} genes. Leave it out."
        raise DataError(msg)
    return matrix.n_obs


def _classes(labels: pd.Series, name: str, known: Sequence[str] | None) -> tuple[str, ...]:
    where = f"obs[{str(labels.name)!r}] of {name}"
    found = classes_of(labels, where)
    refuse_measurement(labels, where, n_classes=len(found))
    if known is not None:
        refuse_unknown(found, known, name)
    return found


def refuse_unknown(found: Iterable[str], known: Sequence[str], name: str) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a source has other labels than the known classes."""
    unknown = sorted(label for label in set(found) if same_label(label, known) is None)
    if unknown:
        msg = f"{name} has the labels {unknown[:5]}, which are none of the {len(known)} classes: {list(known)[:10]}."
        raise DataError(msg)


def _common(found: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Classes of all sources: in their order where they agree, otherwise sorted, numbers as numbers."""
    # One source may have spelled as text what is a number in another.
    classes = found[0] if len(set(found)) == 1 else in_order(texts_of([name for names in found for name in names]))
    if len(classes) < 2:
        msg = f"All sources together hold one class only, {classes[0]!r}; there is nothing to tell apart."
        raise DataError(msg)
    return classes
