"""Detect how to read a source: matrix with counts, gene names, and species."""

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
"""Value of ``layer=`` that searches for counts."""

_COUNTS = re.compile(r"(raw[_.]?)?(umi[_.]?)?counts?|raw|umis?", re.IGNORECASE)
_IDS = re.compile(r"ENS[A-Z]*G\d{11}")
_MOUSE_IDS = re.compile(r"ENSMUSG\d{11}")
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id")
_SPECIES = {"homo sapiens": "human", "ncbitaxon:9606": "human", "mus musculus": "mouse", "ncbitaxon:10090": "mouse"}
_ORGANISM = ("organism", "organism_ontology_term_id")  # columns of the CELLxGENE schema


def find_layer(place: Place, reading: Reading, rows: NDArray[np.integer[Any]]) -> tuple[str | None, str]:
    """Choose the matrix with counts: a layer with a suitable name, ``raw.X`` or ``X``, whichever comes first.

    Without counts, a log-normalised matrix is used, ``X`` first. With ``data_type="log1p"``, log-normalised values are
    searched for.

    Parameters
    ----------
    place
        Source.
    reading
        Requested reading options.
    rows
        Increasing rows of cells used for the decision.

    Returns
    -------
    The layer, and how it was found; ``""`` without alternatives.

    Raises
    ------
    DataError
        If no matrix contains expression.
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
    msg = f"{place.name} contains no readable expression: {what}. Pass the layer= with expression."
    raise DataError(msg)


def _held(place: Place, layer: str | None, rows: NDArray[np.integer[Any]]) -> tuple[str, str]:
    """Scale of a matrix, ``""`` if it cannot be read, and the reason."""
    sample = place.matrix(layer).rows(rows)
    matrix = CellMatrix(sample.__getitem__, sample.shape, name=f"{place.called(layer)} of {place.name}")
    values = matrix.summary()
    if values.n_nan or values.n_inf or values.n_negative:
        return "", "contains negative, NaN or infinite values"
    try:
        scale = scale_of(matrix, uns={} if layer == RAW else place.records(), layer=None if layer == RAW else layer)
    except DataError:
        return "neither", "contains neither counts nor log-normalised values"
    return scale.kind, scale.reason


def find_species(
    place: Place, reading: Reading, rows: NDArray[np.integer[Any]] | None, vocab: GeneVocab
) -> tuple[str, str]:
    """Detect the species of the genes: from Ensembl ids, else from the column ``organism`` of ``obs``.

    Parameters
    ----------
    place, reading
        As for :func:`find_layer`; the layer must be known.
    rows
        Selected cells; ``None`` for all.
    vocab
        Vocabulary of the network. If it has mouse genes, genes of the source are not mapped to orthologs.

    Returns
    -------
    The species, human by default, and the evidence.

    Raises
    ------
    DataError
        If the cells are of two species.
    """
    species, why = _species_of(place, reading, rows)
    if species == "mouse" and mostly_mouse(vocab.tokens):
        return "human", ""
    return species, f"{species} genes, inferred from {why}" if why else ""


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
                    f"{place.name} has cells of {few(found)} in obs[{key!r}], which cannot be read together. Select one: "
                    f'where="{key} == {found[0]!r}".'
                )
                raise DataError(msg)
            if species_found & set(_SPECIES.values()):
                (species,) = species_found
                return species, f"obs[{key!r}]"
            if found:
                warning(
                    f"{place.name} has cells of {found[0]!r} in obs[{key!r}]. Only human and mouse are supported, so its genes "
                    "are read as human. Pass species= to confirm this, or omit the file."
                )
    return "human", ""


@dataclass(frozen=True)
class GeneNames:
    """Names of the genes of a source, and their tokens.

    Attributes
    ----------
    names
        Gene names.
    key
        Column of ``var`` with the names; ``None`` for ``var_names``.
    match
        Tokens of the genes.
    note
        How the column was found; ``""`` without alternatives.
    """

    names: list[str]
    key: str | None
    match: GeneMatch
    note: str = ""


def ways_of(place: Place, reading: Reading) -> dict[str | None, list[str]]:
    """Candidate gene names by column of ``var``; ``None`` are ``var_names``.

    If these are numbers or Ensembl ids and no column was given, other columns that may contain names are included.

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
    """Match the genes of a source by the column with the most matches.

    Parameters
    ----------
    ways
        Result of :func:`ways_of`.
    vocab
        Vocabulary of the network.
    species
        Species of the genes.
    columns
        Function that returns other candidate names, for advice.

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
        except DataError:  # not gene names, but others may be
            continue
    if not matches:
        matches[first] = match_genes(names, vocab, species=species, columns=columns)  # raises an error with the reason
    best = max(matches, key=lambda way: matches[way].matched)
    counted = [f"{matches[way].matched if way in matches else 0:,} by {_called(way)}" for way in ways if way != best]
    note = f"gene names from {_called(best)}, of which {matches[best].matched:,} match ({', '.join(counted)})"
    return GeneNames(ways[best], best, matches[best], note)


def _called(key: str | None) -> str:
    return "var_names" if key is None else f"var[{key!r}]"
