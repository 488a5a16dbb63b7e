"""What else a human gene is called: Ensembl ids, previous symbols and aliases, from tables that ship with the package.

Names are compared as they are written, case included: a mouse's ``Actb`` is not ``ACTB``. A name that could mean two
genes means none here. The tables load on first use, once.
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

__all__ = ["NameKind", "OtherNames", "ensembl_id", "is_gene", "looks_like_mouse", "other_names", "standardise"]

NameKind = Literal["id", "current", "previous", "alias"]
"""What a name is: an Ensembl id, a current symbol (or a name without an entry), a previous symbol, an alias."""

# Bare, with a version, or behind a symbol as CELLxGENE writes genes that share one. The Y copy of a pseudoautosomal
# gene ("ENSG00000002586.20_PAR_Y") is left out on purpose: its X copy is the gene that every vocabulary means.
_ENSEMBL = re.compile(r"(?:.+_)?(ENSG\d{11})(?:\.\d+)?")

# Title case, clone names and the mitochondrial and MHC prefixes; C10orf11 and its kind are human.
_MOUSE = re.compile(
    r"ENSMUSG\d|mt-[A-Z]|\w+Rik\d*$|D[\dXY]+Ertd|H2-[A-Z]+[a-z\d]|(?!C\d+orf\d)[A-Z][a-z\d]*[a-z][a-z\d]*(?:[-.]|$)"
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
    """Names under which another annotation may hold the gene that a name means.

    Attributes
    ----------
    kind
        What the name itself is.
    steps
        The other names, best first. Those of one step are equally good, so two of them found is an ambiguity.
        ``"_ENSG..."`` stands for whatever name ends so: CELLxGENE tells genes of the same symbol apart in that way.
    """

    kind: NameKind
    steps: tuple[tuple[str, ...], ...]


def ensembl_id(name: str) -> str | None:
    """Human Ensembl gene id in a name, without its version.

    Parameters
    ----------
    name
        For example ``"ENSG00000141510.18"``, or ``"SIGLEC5_ENSG00000105501"``.

    Returns
    -------
    The id, or ``None`` for a name without one.
    """
    # The substring test spares symbols the regular expression, which is most of the time on 30,000 names.
    found = _ENSEMBL.fullmatch(name) if "ENSG" in name else None
    return found[1] if found else None


def looks_like_mouse(name: str) -> bool:
    """Whether a name is written like a mouse or rat symbol, or is a mouse Ensembl id.

    Parameters
    ----------
    name
        Name of one gene. Only the share among many names says something about a data set.
    """
    return _MOUSE.match(name) is not None


def other_names(name: str) -> OtherNames:
    """List what else the gene behind a name may be called.

    Parameters
    ----------
    name
        Symbol or Ensembl id of a human gene.

    Returns
    -------
    The kind of the name, and the other names in the order in which they should be tried.
    """
    tables = _tables()
    gene_id = ensembl_id(name)
    if gene_id is not None:
        symbol = tables.symbol.get(gene_id)
        own = (gene_id,) if gene_id != name else ()
        by_symbol, renames = ((symbol,), tables.previous.get(symbol, ())) if symbol else ((), ())
        return OtherNames("id", tuple(filter(None, (own, by_symbol, (f"_{gene_id}",), renames))))

    kind: NameKind = "previous" if name in tables.replaced else "alias" if name in tables.alias else "current"
    symbol = tables.replaced.get(name) or tables.alias.get(name) or name
    renames = tuple(old for old in tables.previous.get(symbol, ()) if old != name)
    current = (symbol,) if symbol != name else ()
    gene_id = tables.gene_id.get(symbol)
    # An id is surer than an old name. CELLxGENE has RGS5 only as RGS5_ENSG00000143248, for another gene was called so.
    by_id = ((gene_id,), (f"_{gene_id}",)) if gene_id else ()
    return OtherNames(kind, tuple(filter(None, (current, *by_id, renames))))


def standardise(names: Iterable[str]) -> list[str]:
    """Write gene names as current symbols.

    Parameters
    ----------
    names
        Symbols, aliases or Ensembl ids, with or without version.

    Returns
    -------
    One name for each given: the current symbol where there is exactly one, otherwise the name as it was.
    """
    tables = _tables()
    current, symbol = tables.current, tables.symbol

    def of_id(name: str) -> str:
        gene_id = ensembl_id(name)
        return current.get(name, name) if gene_id is None else symbol.get(gene_id, name)

    return [of_id(name) if "ENSG" in name else current.get(name, name) for name in names]


def is_gene(name: str) -> bool:
    """Whether a name is a human gene's: a symbol that it has or had, an alias, or an Ensembl id.

    Parameters
    ----------
    name
        Any text, compared as it is written.
    """
    return ensembl_id(name) is not None or name in _tables().current or name in _symbols()


@cache
def _symbols() -> frozenset[str]:
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


def _rows(name: str) -> Iterable[list[str]]:
    packed = (files("scgalore.genes") / "tables" / name).read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    return (line.split("\t") for line in lines[1:])
