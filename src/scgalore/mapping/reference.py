"""Reference: positions, names and labels of its cells, and the calibration of label transfer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scgalore.errors import DataError
from scgalore.mapping.lists import Lists
from scgalore.mapping.space import Space, blocks
from scgalore.mapping.votes import Neighbors, logits_of, votes_of
from scgalore.tasks.calibration import Calibration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Cells", "Column", "Reference", "distinct"]

MOST_LEFT_OUT = 5_000
"""Number of reference cells that are held out and mapped to the others, for calibration."""
SAME = 0.05
"""Two cells of the same name closer than this are the same cell: repeated embeddings differ by 0.0003, in half precision by 0.02, the next cell by 0.5."""
FEWEST_LEFT_OUT = 19
"""Minimum number of held-out cells for estimating a distance that 5 % of them exceed."""


def distinct(sets: Iterable[NDArray[np.int32]]) -> tuple[NDArray[np.int32], ...]:
    """Remove duplicate gene sets."""
    return tuple({genes.tobytes(): genes for genes in sets}.values())


@dataclass(frozen=True, eq=False)
class Column:
    """Labels of all cells.

    Attributes
    ----------
    classes
        Names of the classes.
    codes
        Class of each cell, int32 ``(n_obs,)``, in memory or mapped from a file.
    colors
        Colour of each class, if the reference has colours.
    """

    classes: tuple[str, ...]
    codes: NDArray[np.int32] = field(repr=False)
    colors: tuple[str, ...] | None = field(default=None, repr=False)

    def extended(self, other: Column) -> Column:
        """Return a column with labels of additional cells; new classes come last."""
        classes = tuple(dict.fromkeys(self.classes + other.classes))
        place = np.array([classes.index(name) for name in other.classes], dtype=np.int32)
        codes = np.concatenate([self.codes, place[other.codes]])
        return Column(classes, codes, self.colors if len(classes) == len(self.classes) else None)


@dataclass(frozen=True, eq=False)
class Cells:
    """Annotations of the reference cells, in their order.

    Attributes
    ----------
    names
        UTF-8 bytes, ``(n_obs,)``.
    labels
        Columns of labels, by name.
    batches
        Batch of each cell; ``None`` if each cell is its own batch.
    coordinates
        Coordinates of a plot, such as a UMAP, float32 ``(n_obs, 2)``, or ``None``.
    genes
        Token ids of the measured genes, sorted int32; each distinct set of genes once.
    """

    names: NDArray[np.bytes_] = field(repr=False)
    labels: Mapping[str, Column]
    batches: Column | None = None
    coordinates: Floats | None = field(default=None, repr=False)
    genes: tuple[NDArray[np.int32], ...] = field(default=(), repr=False)

    def extended(self, other: Cells) -> Cells:
        """Return annotations with additional cells, which have the same slots."""
        return Cells(
            np.concatenate([self.names, other.names]),
            {name: column.extended(other.labels[name]) for name, column in self.labels.items()},
            None if self.batches is None or other.batches is None else self.batches.extended(other.batches),
            None
            if self.coordinates is None or other.coordinates is None
            else np.concatenate([self.coordinates, other.coordinates]),
            distinct([*self.genes, *other.genes]),
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """Cells that queries are mapped to; made by :func:`scgalore.tl.build_reference`, read by :func:`scgalore.mapping.read_reference`.

    Attributes
    ----------
    space
        Space in which embeddings are compared.
    lists
        Index of the cells in this space.
    cells
        Names, labels, batches and coordinates of the cells.
    calibrations
        Calibration of label transfer for each column of labels, from held-out cells of the reference.
    accuracies
        Accuracy on these held-out cells, for each column.
    gap
        Median distance of the held-out cells to the weighted mean of their neighbours.
    gap_threshold
        Distance, relative to the median, that 5 % of them exceed; ``None`` for fewer than 19.
    n_neighbors
        Number of neighbours used for voting.
    made
        ``model``, the provenance and identity of the weights; ``tokens``, the tokenizer settings; ``keys``, the
        input keys; ``version`` of scgalore.
    path
        File of the reference; ``None`` in memory.
    model
        Model that the reference was built with, while it is in memory; ``None`` after reading from a file.
    """

    space: Space
    lists: Lists
    cells: Cells
    calibrations: Mapping[str, Calibration] = field(repr=False)
    accuracies: Mapping[str, float]
    gap: float
    gap_threshold: float | None
    n_neighbors: int
    made: Mapping[str, Any]
    path: Path | None = None
    model: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        labels = ", ".join(f"{name} ({len(column.classes)})" for name, column in self.cells.labels.items())
        where = "in memory" if self.path is None else f"in {self.path.name}"
        return f"Reference of {self.n_obs:,} cells {where}, by {self.made['model']['name']}; labels: {labels}"

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.lists.n_obs

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the columns of labels."""
        return tuple(self.cells.labels)

    def names(self, cells: NDArray[np.integer]) -> NDArray[np.str_]:
        """Names of cells by index, such as ``query.obsm["scgpt_mapped_neighbors"]``, in the same shape.

        Parameters
        ----------
        cells
            Indices from 0, in the order in which the cells were read.
        """
        return np.char.decode(self.cells.names[np.asarray(cells)], "utf-8")

    @classmethod
    def of_embedding(
        cls,
        embedding: Floats,
        cells: Cells,
        *,
        n_neighbors: int = 15,
        n_components: int | None = 50,
        made: Mapping[str, Any],
        rng: int = 0,
        empty: Callable[[tuple[int, int], type], Any] = np.empty,
    ) -> Self:
        """Build a reference from embeddings.

        Parameters
        ----------
        embedding
            float32 ``(n_obs, d_model)``; read in blocks, so it may be on disk.
        cells
            Annotations of the cells.
        n_neighbors, n_components, rng
            As for :func:`scgalore.tl.build_reference`.
        made
            As the attribute.
        empty
            Function that allocates the array for the directions of all cells, in memory or on disk.

        Raises
        ------
        DataError
            If cells occur twice, with the same name and embedding, or no cell has neighbours in another batch.
        """
        space = Space.fit(embedding, n_components)
        lists = Lists.around(lambda rows: space(embedding[rows])[0], len(embedding), rng)
        lists = lists.extended(len(embedding), lambda rows: space(embedding[rows]), empty)
        k = min(n_neighbors, len(embedding) - 1)
        return cls(space, lists, cells, {}, {}, 1.0, None, k, made)._measured(rng)

    def extended(
        self,
        embedding: Floats,
        cells: Cells,
        *,
        rng: int = 0,
        empty: Callable[[tuple[int, int], type], Any] = np.empty,
    ) -> Self:
        """Return a reference in memory with additional cells; axes and centres are kept, and calibration is repeated.

        Parameters
        ----------
        embedding, cells, rng, empty
            As for :meth:`of_embedding`.

        Raises
        ------
        DataError
            As for :meth:`of_embedding`.
        """
        lists = self.lists.extended(len(embedding), lambda rows: self.space(embedding[rows]), empty)
        return replace(self, lists=lists, cells=self.cells.extended(cells), path=None)._measured(rng)

    def _measured(self, seed: int) -> Self:
        """Choose the number of lists to search, and map held-out cells to cells of other batches, or to all other cells."""
        self._refuse_copies()
        lists = self.lists.tuned(self.n_neighbors, seed)
        rng = np.random.default_rng(seed)
        some = np.sort(rng.choice(self.n_obs, min(MOST_LEFT_OUT, self.n_obs), replace=False))
        groups = np.arange(self.n_obs) if self.cells.batches is None else self.cells.batches.codes[lists.cells]
        directions = lists.directions[some].astype(np.float32)
        apart = (groups[some], groups)
        found = Neighbors.find(lists, directions, lists.norms[some], self.n_neighbors, apart)
        alone = ~np.isfinite(found.gap)
        if alone.all():
            msg = "No cell of the reference has neighbours in another batch. Omit batch_key=."
            raise DataError(msg)
        kept = ~alone
        found = Neighbors(found.rows[kept], found.distances[kept], found.gap[kept])
        gap = float(np.median(found.gap))
        gap = gap if gap > 0 else 1.0  # duplicates of a few cells
        calibrations: dict[str, Calibration] = {}
        accuracies, threshold = {}, None
        for name, column in self.cells.labels.items():
            logits = logits_of(self._votes(found, column, lists), self.n_neighbors)
            codes = column.codes[lists.cells[some[kept]]].astype(np.int64)
            calibrations[name] = Calibration.fit(logits, codes, found.gap / gap)
            accuracies[name] = float((logits.argmax(axis=1) == codes).mean())
            threshold = calibrations[name].novelty_threshold
        measured: dict[str, Any] = {"calibrations": calibrations, "accuracies": accuracies}
        return replace(self, lists=lists, gap=gap, gap_threshold=threshold, **measured)

    def _refuse_copies(self) -> None:
        """Raise an error for duplicate cells, which would find themselves when held out. Cells of different studies may share names but differ."""
        row_of = np.argsort(self.lists.cells)
        order = np.lexsort((self.lists.norms[row_of], self.cells.names))  # duplicates are adjacent
        n_copies, example = 0, b""
        for part in blocks(self.n_obs - 1):
            one, next_one = order[part], order[part.start + 1 : part.stop + 1]
            alike = self.cells.names[one] == self.cells.names[next_one]
            one, next_one = one[alike], next_one[alike]
            first, second = (self.lists.directions[row_of[cells]].astype(np.float32) for cells in (one, next_one))
            copies = one[np.linalg.norm(first - second, axis=1) < SAME]
            n_copies, example = n_copies + len(copies), self.cells.names[copies[0]] if len(copies) else example
        if n_copies:
            msg = (
                f"{n_copies:,} cells would be in the reference twice, such as {example.decode()!r}: same name and same embedding. "
                "Calibration on held-out cells would be too optimistic. Remove the duplicates; index.names(np.arange(index.n_obs)) lists the "
                "cells of a reference."
            )
            raise DataError(msg)

    def _votes(self, found: Neighbors, column: Column, lists: Lists | None = None) -> Floats:
        lists = self.lists if lists is None else lists
        return votes_of(found, column.codes[lists.cells[found.rows]], len(column.classes))

    def find(self, embedding: Floats) -> Neighbors:
        """Find the neighbours of cells.

        Parameters
        ----------
        embedding
            Embeddings by the model of the reference, float32 ``(n_obs, d_model)``.
        """
        return Neighbors.find(self.lists, *self.space(embedding), self.n_neighbors)

    def probabilities(self, found: Neighbors, name: str) -> Floats:
        """Calibrated probability of each class of a column, float32 ``(n_obs, n_classes)``.

        Parameters
        ----------
        found
            Neighbours of the cells.
        name
            Column of labels.
        """
        from scgalore.tasks.calibration import softmax

        logits = logits_of(self._votes(found, self.cells.labels[name]), self.n_neighbors)
        return softmax(logits, self.calibrations[name].temperature)

    def novelty(self, found: Neighbors) -> Floats:
        """Distance of cells to their neighbours, relative to the median of reference cells, float32 ``(n_obs,)``.

        Parameters
        ----------
        found
            Neighbours of the cells.
        """
        return (found.gap / self.gap).astype(np.float32)

    def placed(self, found: Neighbors) -> Floats:
        """Coordinates in the plot of the reference, weighted means of those of the neighbours, float32 ``(n_obs, 2)``.

        Parameters
        ----------
        found
            Neighbours of the cells.
        """
        assert self.cells.coordinates is not None
        at = self.cells.coordinates[self.lists.cells[found.rows]]
        return np.einsum("nk,nkd->nd", found.weights, at).astype(np.float32)
