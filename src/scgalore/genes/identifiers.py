"""Other names of genes: Ensembl ids, previous symbols, aliases, and human orthologs of mouse genes.

Names are case-sensitive: mouse ``Actb`` is not ``ACTB``, and is mapped to its ortholog only with ``species="mouse"``.
Ambiguous names are not resolved. The tables are part of the package and are loaded on first use.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "NameKind",
    "OtherNames",
    "ensembl_id",
    "is_gene",
    "looks_like_mouse",
    "mostly_mouse",
    "ortholog",
    "other_names",
    "standardise",
    "symbols",
]

NameKind = Literal["id", "current", "previous", "alias"]
"""Kind of a name: an Ensembl id, a current symbol (or an unknown name), a previous symbol, an alias."""

# Bare, with a version, or next to a symbol: CELLxGENE writes genes that share one as SYMBOL_ENSG..., other programs
# write SYMBOL|ENSG... or ENSG..._SYMBOL. The Y copy of a pseudoautosomal gene ("ENSG00000002586.20_PAR_Y") is
# deliberately excluded: vocabularies refer to the X copy.
_ID = r"(?:.*[^A-Za-z0-9])?({}\d{{11}})(?:\.\d+)?(?:[^A-Za-z0-9.](?!PAR_Y).*)?"
_ENSEMBL, _ENSEMBL_MOUSE = re.compile(_ID.format("ENSG")), re.compile(_ID.format("ENSMUSG"))

# Title case, clone names and the mitochondrial and MHC prefixes; names such as C10orf11 are human.
_MOUSE = re.compile(
    r"(?:.*[^A-Za-z0-9])?ENSMUSG\d|mt-[A-Z]|\w+Rik\d*$|D[\dXY]+Ertd|H2-[A-Z]+[a-z\d]|"
    r"(?!C\d+orf\d)[A-Z][a-z\d]*[a-z][a-z\d]*(?:[-.|]|$)"
)


@dataclass(frozen=True)
class _Tables:
    symbol: dict[str, str]  # Ensembl id -> current symbol
    gene_id: dict[str, str]  # current symbol -> Ensembl id
    previous: dict[str, tuple[str, ...]]  # current symbol -> its previous ones
    replaced: dict[str, str]  # previous symbol -> current one
    alias: dict[str, str]  # alias -> current symbol
    current: dict[str, str]  # either of them -> current symbol, a previous one first


@dataclass(frozen=True)
class OtherNames:
    """Other names of a gene in other annotations.

    Attributes
    ----------
    kind
        Kind of the name itself.
    steps
        The other names, best first. Names of one step are equivalent, so finding two of them is ambiguous.
        ``"_ENSG..."`` matches any name with this ending: CELLxGENE distinguishes genes of the same symbol in this way.
    """

    kind: NameKind
    steps: tuple[tuple[str, ...], ...]


def ensembl_id(name: str) -> str | None:
    """Human Ensembl gene id in a name, without its version.

    Parameters
    ----------
    name
        For example ``"ENSG00000141510.18"``, ``"SIGLEC5_ENSG00000105501"`` or ``"TP53|ENSG00000141510"``.

    Returns
    -------
    The id, or ``None`` for a name without one, or with several.
    """
    return _id_in(name, "ENSG", _ENSEMBL)


def _id_in(name: str, start: str, pattern: re.Pattern[str]) -> str | None:
    # The substring test avoids the regular expression, which is slow for 30,000 names.
    found = pattern.fullmatch(name) if start in name and name.count(start) == 1 else None
    return found[1] if found else None


def looks_like_mouse(name: str) -> bool:
    """Whether a name looks like a mouse or rat symbol, or is a mouse Ensembl id.

    Parameters
    ----------
    name
        Name of one gene. Only the fraction among many names is informative about a data set.
    """
    return _MOUSE.match(name) is not None


def mostly_mouse(names: Iterable[str]) -> bool:
    """Whether more than half of the gene names look like mouse genes."""
    # Of upper-case names, only mouse Ensembl ids can be mouse genes; others need no regular expression.
    found = [(not name.isupper() or "ENSMUSG" in name) and looks_like_mouse(name) for name in names]
    return 2 * sum(found) > len(found)


def ortholog(name: str) -> str | None:
    """Symbol of the human ortholog of a mouse gene; the mapping is one-to-one.

    Parameters
    ----------
    name
        Symbol of a mouse gene, or its Ensembl id, with or without version.

    Returns
    -------
    The human symbol, or ``None`` for a gene without an ortholog.

    Examples
    --------
    >>> ortholog("Trp53"), ortholog("ENSMUSG00000059552.14"), ortholog("Gm1992")
    ('TP53', 'TP53', None)
    """
    return _orthologs().get(_id_in(name, "ENSMUSG", _ENSEMBL_MOUSE) or _bare(name))


def other_names(name: str, species: str = "human") -> OtherNames:
    """List other names of a gene.

    Parameters
    ----------
    name
        Symbol or Ensembl id of a gene.
    species
        Species of the gene: ``"human"``, or ``"mouse"`` for the names of its human ortholog.

    Returns
    -------
    The kind of the name, and the other names in the order in which they should be tried.
    """
    if species == "mouse":
        human = ortholog(name)
        steps = () if human is None else ((human,), *other_names(human).steps)
        return OtherNames("id" if "ENSMUSG" in name else "current", steps)
    tables = _tables()
    gene_id = ensembl_id(name)
    if gene_id is not None:
        symbol = tables.symbol.get(gene_id)
        own = (gene_id,) if gene_id != name else ()
        by_symbol, renames = ((symbol,), tables.previous.get(symbol, ())) if symbol else ((), ())
        return OtherNames("id", tuple(filter(None, (own, by_symbol, (f"_{gene_id}",), renames))))

    written, name = name, _bare(name)
    kind: NameKind = "previous" if name in tables.replaced else "alias" if name in tables.alias else "current"
    symbol = tables.replaced.get(name) or tables.alias.get(name) or name
    renames = tuple(old for old in tables.previous.get(symbol, ()) if old != name)
    own, current = (name,) if name != written else (), (symbol,) if symbol != name else ()
    gene_id = tables.gene_id.get(symbol)
    # An id is more reliable than an old name. CELLxGENE has RGS5 only as RGS5_ENSG00000143248, since another gene had
    # this symbol.
    by_id = ((gene_id,), (f"_{gene_id}",)) if gene_id else ()
    return OtherNames(kind, tuple(filter(None, (own, current, *by_id, renames))))


def standardise(names: Iterable[str], species: str = "human") -> list[str]:
    """Convert gene names to current symbols.

    Parameters
    ----------
    names
        Symbols, aliases or Ensembl ids, with or without version.
    species
        Species of the genes: ``"human"``, or ``"mouse"`` to map genes to human orthologs if they have one.

    Returns
    -------
    One name per input: the current human symbol if it is unique, otherwise the unchanged name.
    """
    if species == "mouse":
        names = [ortholog(name) or name for name in names]
    tables = _tables()
    current, symbol = tables.current, tables.symbol

    def of_id(name: str) -> str:
        gene_id = ensembl_id(name)
        return current.get(_bare(name), name) if gene_id is None else symbol.get(gene_id, name)

    return [of_id(name) if "ENSG" in name or "|" in name else current.get(name, name) for name in names]


def _bare(name: str) -> str:
    """Symbol in a name such as ``"TP53|7157"``, where numbers are ids of other databases."""
    parts = [part for part in name.split("|") if part and not part.isdecimal()] if "|" in name else []
    return parts[0] if len(parts) == 1 else name


def is_gene(name: str) -> bool:
    """Whether a name is a human gene: a current or previous symbol, an alias, or an Ensembl id.

    Parameters
    ----------
    name
        Any text; case-sensitive.
    """
    return ensembl_id(name) is not None or name in _tables().current or name in symbols()


@cache
def symbols() -> frozenset[str]:
    """All current symbols of human genes in the package's tables."""
    tables = _tables()
    return frozenset({*tables.gene_id, *tables.current.values()})


@cache
def _tables() -> _Tables:
    symbol = dict(_rows("ensembl_symbols.tsv.gz"))
    previous: dict[str, tuple[str, ...]] = {}
    replaced: dict[str, str] = {}
    alias: dict[str, str] = {}
    for current, old, others in _rows("symbol_aliases.tsv.gz"):
        if old:
            previous[current] = tuple(old.split("|"))
            replaced.update(dict.fromkeys(previous[current], current))
        if others:
            alias.update(dict.fromkeys(others.split("|"), current))
    gene_id = {current: number for number, current in symbol.items()}
    return _Tables(symbol, gene_id, previous, replaced, alias, {**alias, **replaced})


@cache
def _orthologs() -> dict[str, str]:
    """Human symbol of each mouse symbol and each mouse Ensembl id."""
    return {name: human for *names, human in _rows("mouse_orthologs.tsv.gz") for name in names if name}


def _rows(name: str) -> Iterable[list[str]]:
    packed = (files("scgalore.genes") / "tables" / name).read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    return (line.split("\t") for line in lines[1:])
