"""A first look at a source: which of its cells are read, how, and which token each of its genes is."""

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
"""Cells of a file that are looked at before it is read."""


@dataclass(frozen=True)
class Wanted:
    """What is to be read of one source.

    Attributes
    ----------
    source
        The file or object, with the reading that was asked for; its layer may be ``"auto"``.
    group
        Number of the named group that it belongs to.
    query
        Which of its cells; all when ``None``.
    find_species
        Whether its genes tell whose they are.
    """

    source: Source
    group: int = 0
    query: Query | None = None
    find_species: bool = False


@dataclass(frozen=True)
class Kept:
    """What is read of one source.

    Attributes
    ----------
    source
        The file or object, with a reading that leaves nothing open.
    n_obs
        Cells that it has.
    rows
        Those that are read, rising; ``None`` for all.
    table
        Number of its table of token ids.
    group
        Number of its named group.
    """

    source: Source
    n_obs: int
    rows: NDArray[np.integer[Any]] | None = field(repr=False)
    table: int
    group: int

    @property
    def n_kept(self) -> int:
        """Cells that are read."""
        return self.n_obs if self.rows is None else len(self.rows)

    @cached_property
    def key(self) -> int:
        """Key of the random numbers of its rows, which depends on its content and not on its path."""
        assert self.source.fingerprint is not None
        return int(self.source.fingerprint.content, 16)

    def only(self, chosen: NDArray[np.bool_]) -> Kept:
        """Same with some of the cells that are read."""
        if chosen.all():
            return self
        rows = np.flatnonzero(chosen).astype(np.int32) if self.rows is None else self.rows[chosen]
        return replace(self, rows=rows)


class Look:
    """Looks at one source after the other.

    Parameters
    ----------
    vocab
        Tokens of the network.

    Attributes
    ----------
    tables
        Token id of each column and 1 more, so that 0 stands for none, in the fewest bytes; one table for each list of genes, which
        files with the same list share.
    """

    def __init__(self, vocab: GeneVocab) -> None:
        self.tables: list[NDArray[np.unsignedinteger[Any]]] = []
        self._vocab = vocab
        # Number of the table, column of the names and how it was found; no names, of which there may be millions in all.
        self._known: dict[bytes, tuple[int, str | None, str]] = {}

    def at(self, place: Place, wanted: Wanted) -> Kept | None:
        """Choose the cells of a source, and find out how it is to be read.

        Parameters
        ----------
        place
            The source, open.
        wanted
            What was asked for.

        Returns
        -------
        What is read of it; ``None`` if none of its cells are meant.

        Raises
        ------
        DataError, MissingKeyError
            If it cannot be read as was asked.
        """
        (n_obs, n_vars), said = place.shape, []
        if not (n_obs and n_vars):
            msg = f"{place.name} is empty: {n_obs} cells x {n_vars} genes. Leave it out."
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
        # The whole file is not read before its turn; what share the matched genes have, its first cells tell.
        rows = opened.rows(sample)
        advice = partial(advice_for, found.names, self._vocab, species=reading.species, columns=columns)
        seen = Seen.of(*sums_of(rows, found.match.token_ids).T)
        seen.check(found.match, reading.min_matched, advice, where=f"{where}in its first {rows.shape[0]:,} cells: ")
        self.tables.append((found.match.token_ids + 1).astype(np.min_scalar_type(len(self._vocab))))
        return found


def _others(place: Place, reading: Reading) -> dict[str | None, list[str]]:
    return other_columns(place.var(reading.layer).frame(), reading.gene_symbols)


def _chosen(place: Place, query: Query) -> NDArray[np.integer[Any]]:
    """Rows that a query means."""
    columns = {key: place.obs.column(key) for key in query.columns}
    chosen = query.rows(columns)
    if not chosen.any():
        held = "; ".join(
            f"{key!r}: {few(map(str, column.dropna().unique()[:6]), 5)}" for key, column in columns.items()
        )
        warning(
            f"{place.name}: 0 of {len(chosen):,} cells are meant by where={query.text!r}, so it is left out. Its columns hold {held}."
        )
    return np.flatnonzero(chosen).astype(np.int32 if len(chosen) < 2**31 else np.int64)
