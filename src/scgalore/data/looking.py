"""Inspection of a source: selected cells, reading options, and tokens of its genes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from scgalore._logging import info, warning
from scgalore._words import few
from scgalore.data.finding import AUTO, find_genes, find_layer, find_species, ways_of
from scgalore.data.match import advice_for
from scgalore.data.names import other_columns
from scgalore.data.seen import Seen, sums_of
from scgalore.data.sources import OpenSource
from scgalore.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scgalore.data.finding import GeneNames
    from scgalore.data.query import Query
    from scgalore.data.reading import Reading
    from scgalore.data.sources import Place, Source
    from scgalore.data.vocab import GeneVocab

__all__ = ["SAMPLED", "Kept", "Look", "Wanted"]

SAMPLED = 256
"""Number of cells of a file that are inspected before reading."""


@dataclass(frozen=True)
class Wanted:
    """Requested cells of one source.

    Attributes
    ----------
    source
        The file or object, with the requested reading; its layer may be ``"auto"``.
    group
        Index of its named group.
    query
        Query that selects its cells; ``None`` for all.
    find_species
        Whether to detect the species from its genes.
    """

    source: Source
    group: int = 0
    query: Query | None = None
    find_species: bool = False


@dataclass(frozen=True)
class Kept:
    """Selected cells of one source.

    Attributes
    ----------
    source
        The file or object, with a fully determined reading.
    n_obs
        Number of its cells.
    rows
        Increasing rows of selected cells; ``None`` for all.
    table
        Index of its table of token ids.
    group
        Index of its named group.
    """

    source: Source
    n_obs: int
    rows: NDArray[np.integer[Any]] | None = field(repr=False)
    table: int
    group: int

    @property
    def n_kept(self) -> int:
        """Number of selected cells."""
        return self.n_obs if self.rows is None else len(self.rows)

    @cached_property
    def key(self) -> int:
        """Key for the random numbers of its rows, which depends on its content and not on its path."""
        assert self.source.fingerprint is not None
        return int(self.source.fingerprint.content, 16)

    def only(self, chosen: NDArray[np.bool_]) -> Kept:
        """Return the source with a subset of the selected cells."""
        if chosen.all():
            return self
        rows = np.flatnonzero(chosen).astype(np.int32) if self.rows is None else self.rows[chosen]
        return replace(self, rows=rows)


class Look:
    """Inspects sources one after the other.

    Parameters
    ----------
    vocab
        Vocabulary of the model.

    Attributes
    ----------
    tables
        Token id plus 1 of each column, 0 for columns without a token, in the smallest integer type; files with the
        same genes share a table.
    """

    def __init__(self, vocab: GeneVocab) -> None:
        self.tables: list[NDArray[np.unsignedinteger[Any]]] = []
        self._vocab = vocab
        # Index of the table, column of the names and how it was found; not the names, of which there may be millions.
        self._known: dict[bytes, tuple[int, str | None, str]] = {}

    def at(self, place: Place, wanted: Wanted) -> Kept | None:
        """Select the cells of a source, and determine how to read it.

        Parameters
        ----------
        place
            The open source.
        wanted
            Requested cells.

        Returns
        -------
        Selected cells; ``None`` if there are none.

        Raises
        ------
        DataError, MissingKeyError
            If the source cannot be read as requested.
        """
        (n_obs, n_vars), said = place.shape, []
        if not (n_obs and n_vars):
            msg = f"{place.name} is empty: {n_obs} cells x {n_vars} genes. Omit it."
            raise DataError(msg)
        rows = None
        if wanted.query is not None:
            rows = _chosen(place, wanted.query)
            said.append(f"{len(rows):,} of {n_obs:,} cells kept")
            if not len(rows):
                return None
        sample = np.arange(min(SAMPLED, n_obs)) if rows is None else rows[:SAMPLED]
        reading = wanted.source.reading
        if reading.layer == AUTO:
            layer, note = find_layer(place, reading, sample)
            reading, said = replace(reading, layer=layer), [*said, note]
        opened = OpenSource(place, reading)
        if wanted.find_species:
            species, note = find_species(place, reading, rows, self._vocab)
            reading, said = replace(reading, species=species), [*said, note]
        ways = ways_of(place, reading)
        digest = blake2b(digest_size=16)
        for way, names in ways.items():
            digest.update("\n".join([str(way), *names, ""]).encode())
        known = digest.digest() + reading.species.encode()
        if known not in self._known:
            genes = self._match(opened, place, ways, sample, reading)
            self._known[known] = len(self.tables) - 1, genes.key, genes.note
            said.append(genes.match.summary())
        table, key, note = self._known[known]
        reading, said = replace(reading, gene_symbols=key), [*said, note]
        if any(said):
            info(f"{place.name}: {'; '.join(filter(None, said))}")
        source = replace(wanted.source, reading=reading, fingerprint=opened.fingerprint)
        return Kept(source, n_obs, rows, table, wanted.group)

    def _match(
        self,
        opened: OpenSource,
        place: Place,
        ways: dict[str | None, list[str]],
        sample: NDArray[np.integer[Any]],
        reading: Reading,
    ) -> GeneNames:
        where = f"{place.name}: "
        columns = partial(_others, place, reading)
        try:
            found = find_genes(ways, self._vocab, species=reading.species, columns=columns)
        except DataError as error:
            msg = f"{where}{error}"
            raise DataError(msg) from error
        # The whole file is not read yet; the fraction of matched genes is estimated from its first cells.
        rows = opened.rows(sample)
        advice = partial(advice_for, found.names, self._vocab, species=reading.species, columns=columns)
        seen = Seen.of(*sums_of(rows, found.match.token_ids).T)
        seen.check(found.match, reading.min_matched, advice, where=f"{where}in its first {rows.shape[0]:,} cells: ")
        self.tables.append((found.match.token_ids + 1).astype(np.min_scalar_type(len(self._vocab))))
        return found


def _others(place: Place, reading: Reading) -> dict[str | None, list[str]]:
    return other_columns(place.var(reading.layer).frame(), reading.gene_symbols)


def _chosen(place: Place, query: Query) -> NDArray[np.integer[Any]]:
    """Rows selected by a query."""
    columns = {key: place.obs.column(key) for key in query.columns}
    chosen = query.rows(columns)
    if not chosen.any():
        held = "; ".join(
            f"{key!r}: {few(map(str, column.dropna().unique()[:6]), 5)}" for key, column in columns.items()
        )
        warning(
            f"{place.name}: where={query.text!r} selects 0 of {len(chosen):,} cells, so it is skipped. Values of its columns: {held}."
        )
    return np.flatnonzero(chosen).astype(np.int32 if len(chosen) < 2**31 else np.int64)
