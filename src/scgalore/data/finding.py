"""How a source is to be read where that was not said: which matrix holds counts, what its genes are called, and whose they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scgalore._logging import warning
from scgalore._words import few
from scgalore.data.match import match_genes
from scgalore.data.matrix import CellMatrix
from scgalore.data.names import as_names, other_columns
from scgalore.data.scale import scale_of
from scgalore.data.sources import RAW
from scgalore.errors import DataError
from scgalore.genes.identifiers import mostly_mouse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from scgalore.data.match import GeneMatch
    from scgalore.data.reading import Reading
    from scgalore.data.sources import Place
    from scgalore.data.vocab import GeneVocab

__all__ = ["AUTO", "GeneNames", "find_genes", "find_layer", "find_species", "ways_of"]

AUTO = "auto"
"""Value of ``layer=`` for the counts, wherever they are."""

_COUNTS = re.compile(r"(raw[_.]?)?(umi[_.]?)?counts?|raw|umis?", re.IGNORECASE)
_IDS = re.compile(r"ENS[A-Z]*G\d{11}")
_MOUSE_IDS = re.compile(r"ENSMUSG\d{11}")
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id")
_SPECIES = {"homo sapiens": "human", "ncbitaxon:9606": "human", "mus musculus": "mouse", "ncbitaxon:10090": "mouse"}
_ORGANISM = ("organism", "organism_ontology_term_id")  # the columns that CELLxGENE prescribes


def find_layer(place: Place, reading: Reading, rows: NDArray[np.integer[Any]]) -> tuple[str | None, str]:
    """Choose the matrix that holds counts: a layer of such a name, ``raw.X`` or ``X``, whichever comes first.

    Where there are none, the one that holds logarithms of them is taken, ``X`` first. With ``data_type="log1p"``, these are
    looked for.

    Parameters
    ----------
    place
        What is read.
    reading
        What was asked for.
    rows
        Some cells, rising, by which to decide.

    Returns
    -------
    The layer, and how it was found; ``""`` where there is nothing to choose from.

    Raises
    ------
    DataError
        If no matrix holds expression.
    """
    named = sorted(
        (layer for layer in place.layers if _COUNTS.fullmatch(layer)),
        key=lambda layer: (layer.lower() != "counts", layer),
    )
    raw = [RAW] if place.has_raw and RAW not in place.layers else []
    x = [None] if place.has_x else []
    places: list[str | None] = [*named, *raw, *x]
    if len(places) < 2:
        return (places[0] if places else None), ""
    wanted = reading.data_type or "counts"
    found: dict[str | None, str] = {}
    reasons: dict[str | None, str] = {}
    for layer in places if wanted == "counts" else places[::-1]:
        found[layer], reasons[layer] = _held(place, layer, rows)
        if found[layer] == wanted:
            what = {"counts": "counts", "log1p": "logarithms of counts"}[wanted]
            return layer, f"{what} in {place.called(layer)}, since {reasons[layer]}"
    for layer in [*x, *raw, *named]:
        if found[layer]:
            return (
                layer,
                f"no {'counts' if wanted == 'counts' else 'logarithms'} found, so {place.called(layer)} is read",
            )
    what = "; ".join(f"{place.called(layer)} {reasons[layer]}" for layer in places)
    msg = f"{place.name} holds no expression that could be read: {what}. Pass the layer= that does."
    raise DataError(msg)


def _held(place: Place, layer: str | None, rows: NDArray[np.integer[Any]]) -> tuple[str, str]:
    """What a matrix holds, ``""`` for what no cell can be read from, and why."""
    sample = place.matrix(layer).rows(rows)
    matrix = CellMatrix(sample.__getitem__, sample.shape, name=f"{place.called(layer)} of {place.name}")
    values = matrix.summary()
    if values.n_nan or values.n_inf or values.n_negative:
        return "", "holds negative, NaN or infinite values"
    try:
        scale = scale_of(matrix, uns={} if layer == RAW else place.records(), layer=None if layer == RAW else layer)
    except DataError:
        return "neither", "holds neither counts nor logarithms of them"
    return scale.kind, scale.reason


def find_species(
    place: Place, reading: Reading, rows: NDArray[np.integer[Any]] | None, vocab: GeneVocab
) -> tuple[str, str]:
    """Find out whose genes they are: by Ensembl ids, else by the column ``organism`` of ``obs``.

    Parameters
    ----------
    place, reading
        As for :func:`find_layer`; the layer must be known.
    rows
        Cells that are read; all when ``None``.
    vocab
        Tokens of the network. If these are genes of a mouse, those of the source need no orthologs and are read as they are.

    Returns
    -------
    The species, human where nothing is said, and what says so.

    Raises
    ------
    DataError
        If the cells are of two species.
    """
    species, why = _species_of(place, reading, rows)
    if species == "mouse" and mostly_mouse(vocab.tokens):
        return "human", ""
    return species, f"genes of a {species}, by {why}" if why else ""


def _species_of(place: Place, reading: Reading, rows: NDArray[np.integer[Any]] | None) -> tuple[str, str]:
    var = place.var(reading.layer)
    for key in (None, *(key for key in _ID_COLUMNS if key in var.columns)):
        names = (var.index() if key is None else var.column(key)).astype(str).tolist()
        ids = [name for name in names if _IDS.match(name)]
        if 2 * len(ids) > len(names):
            of_mouse = sum(_MOUSE_IDS.match(name) is not None for name in ids)
            return ("mouse" if 2 * of_mouse > len(ids) else "human"), f"the Ensembl ids in {_called(key)}"
    for key in _ORGANISM:
        if key in place.obs.columns:
            column = place.obs.column(key)
            found = [str(one) for one in (column if rows is None else column.iloc[rows]).dropna().unique()]
            species_found = {_SPECIES.get(one.lower(), one) for one in found}
            if len(species_found) > 1:
                msg = (
                    f"{place.name} has cells of {few(found)} in obs[{key!r}], whose genes cannot be read alike. Choose one: "
                    f'where="{key} == {found[0]!r}".'
                )
                raise DataError(msg)
            if species_found & set(_SPECIES.values()):
                (species,) = species_found
                return species, f"obs[{key!r}]"
            if found:
                warning(
                    f"{place.name} has cells of {found[0]!r} in obs[{key!r}]. Only genes of human and mouse are known, so its genes "
                    "are read as human. Pass species= to say that this is meant, or leave the file out."
                )
    return "human", ""


@dataclass(frozen=True)
class GeneNames:
    """Names of the genes of a source, and their tokens.

    Attributes
    ----------
    names
        As they were read.
    key
        Column of ``var`` that they were read from; ``None`` for ``var_names``.
    match
        Their tokens.
    note
        How the column was found; ``""`` where there was nothing to choose from.
    """

    names: list[str]
    key: str | None
    match: GeneMatch
    note: str = ""


def ways_of(place: Place, reading: Reading) -> dict[str | None, list[str]]:
    """Names that genes may be read by, by their column of ``var``; ``None`` are ``var_names``.

    Where these are numbers or Ensembl ids and no column was named, the other columns that may hold names are ways too.

    Parameters
    ----------
    place, reading
        As for :func:`find_species`.
    """
    var, key = place.var(reading.layer), reading.gene_symbols
    names = as_names(var.index() if key is None else var.column(key))
    ways: dict[str | None, list[str]] = {key: names}
    if key is None and 2 * sum(name.isdecimal() or bool(_IDS.match(name)) for name in names) > len(names):
        ways |= other_columns(var.frame(), None)
    return ways


def find_genes(
    ways: Mapping[str | None, list[str]],
    vocab: GeneVocab,
    *,
    species: str,
    columns: Callable[[], dict[str | None, list[str]]],
) -> GeneNames:
    """Match the genes of a source in the way that matches most of them.

    Parameters
    ----------
    ways
        From :func:`ways_of`.
    vocab
        Tokens of the network.
    species
        Whose genes they are.
    columns
        Reads the names that stand elsewhere, for advice.

    Raises
    ------
    DataError
        If no gene matches.
    """
    (first, names), *others = ways.items()
    if not others:
        return GeneNames(names, first, match_genes(names, vocab, species=species, columns=columns))
    matches = {}
    for way, of_way in ways.items():
        try:
            matches[way] = match_genes(of_way, vocab, species=species)
        except DataError:  # these are no names, as the others may be
            continue
    if not matches:
        matches[first] = match_genes(names, vocab, species=species, columns=columns)  # says why
    best = max(matches, key=lambda way: matches[way].matched)
    counted = [f"{matches[way].matched if way in matches else 0:,} by {_called(way)}" for way in ways if way != best]
    note = f"names of genes from {_called(best)}, by which {matches[best].matched:,} match ({', '.join(counted)})"
    return GeneNames(ways[best], best, matches[best], note)


def _called(key: str | None) -> str:
    return "var_names" if key is None else f"var[{key!r}]"
