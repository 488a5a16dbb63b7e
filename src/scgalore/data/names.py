"""Names of genes as they are read from ``var``, and what to do where they are not those that a model knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore import _logging as logg
from scgalore._words import few
from scgalore.genes.identifiers import looks_like_mouse, mostly_mouse
from scgalore.genes.prefixes import count_prefixes, shared_prefix

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["advice", "as_names", "other_columns"]

SAMPLE = 1000
"""Names that are tried, since advice needs no exact numbers."""


def as_names(names: Iterable[Any]) -> list[str]:
    """Read names of genes as text, without a prefix that a program has put before all of them, such as ``GRCh38_``.

    Parameters
    ----------
    names
        ``var_names`` or a column of ``var``, categorical or not.
    """
    texts = list(map(str, names))
    prefix = shared_prefix(texts)
    if prefix:
        logg.info(f"    names of genes are read without {prefix!r}, which all of them begin with")
    return _without(prefix, texts)


def other_columns(var: pd.DataFrame, used: str | None) -> dict[str | None, list[str]]:
    """Names that stand elsewhere in ``var``, by the name of their column; ``None`` are ``var_names``.

    Parameters
    ----------
    var
        Annotation of the genes.
    used
        Column that was read, which is left out; ``None`` if ``var_names`` were.
    """
    found: dict[str | None, list[str]] = {} if used is None else {None: _plain(var.index)}
    for number, key in enumerate(var.columns):
        column = var.iloc[:, number].dropna()
        texts = column.dtype == "category" or pd.api.types.is_string_dtype(column) or column.dtype == object
        # What few genes share is no name; a class of genes may read like one.
        if key != used and texts and 2 * column.nunique() > len(var):
            found[str(key)] = _plain(column)
    return found


@dataclass(frozen=True)
class _Way:
    """Another way to read names.

    Attributes
    ----------
    names, species
        Which names, and as those of which species.
    how
        What is different, to follow "would match".
    call
        What reads them so.
    """

    names: Sequence[str]
    species: str
    how: str
    call: str


def advice(
    names: Sequence[str],
    species: str,
    count: Callable[[Sequence[str], str], int],
    columns: Callable[[], dict[str | None, list[str]]] | None = None,
    fallback: str = "",
) -> str:
    """Say what to call so that more genes match.

    Parameters
    ----------
    names
        As they were read.
    species
        As which they were read.
    count
        How many of some names, of a species, the model knows.
    columns
        Reads the names that stand elsewhere, as :func:`other_columns` gives them.
    fallback
        What to say if no other way is better.
    """
    names = _some(names)
    prefixes = count_prefixes(names)
    if len(prefixes) > 1:
        return _several(names, prefixes)
    ways = _ways(names, species, {} if columns is None else columns())
    counts = [count(_some(way.names), way.species) for way in ways]
    best = max(counts, default=0)
    # A panel of few genes has few to match; a name here and there matches by chance.
    if best > max(2 * count(names, species), min(1, len(names) - 1)) and 50 * best >= len(names):
        way = ways[counts.index(best)]
        return f"{best:,} would match {way.how} (of {len(_some(way.names)):,}): {way.call}."
    return _two_species(names) or fallback


def _ways(names: Sequence[str], species: str, columns: dict[str | None, list[str]]) -> list[_Way]:
    """Other ways to read names, those that change least first."""
    other = "mouse" if species == "human" else "human"
    passed, as_other = {species: "", other: f"species={other!r}"}, {species: "", other: f" as {other} genes"}
    ways = [_Way(names, other, as_other[other].strip(), f"pass {passed[other]}")]
    # pandas names the index of a CSV file so.
    for key in sorted(columns, key=lambda key: str(key).startswith("Unnamed")):
        for of in (species, other):
            if key is None:
                call = "leave gene_symbols out" + (f" and pass {passed[of]}" if passed[of] else "")
                ways.append(_Way(columns[key], of, f"from adata.var_names{as_other[of]}", call))
            else:
                call = f"pass gene_symbols={key!r}" + (f", {passed[of]}" if passed[of] else "")
                ways.append(_Way(columns[key], of, f"from adata.var[{key!r}]{as_other[of]}", call))
    changes = {"without blanks around them": ("strip()", [name.strip() for name in names])}
    if not mostly_mouse(names):  # whose genes are not made human ones by their case
        changes["in upper case"] = "upper()", [name.upper() for name in names]
        changes["with a capital"] = "capitalize()", [name.capitalize() for name in names]
    for prefix in (*_beginnings(names), *count_prefixes(names)):
        changes[f"without {prefix!r}"] = f"removeprefix({prefix!r})", [name.removeprefix(prefix) for name in names]
    for how, (method, changed) in changes.items():
        of = "mouse" if mostly_mouse(changed) else "human"
        call = f"adata.var_names = adata.var_names.str.{method}" + (f", and pass {passed[of]}" if passed[of] else "")
        if changed != names:
            ways.append(_Way(changed, of, how, call))
    return ways


def _beginnings(names: Sequence[str]) -> list[str]:
    """Beginnings of the first name that end behind ``_``, ``-``, ``:`` or ``|`` and that all names share."""
    first = names[0] if names else ""
    ends = [i + 1 for i, letter in enumerate(first) if letter in "_-:|" and first[i + 1 : i + 2] not in ("", letter)]
    return [first[:end] for end in ends if all(name.startswith(first[:end]) for name in names)]


def _several(names: Sequence[str], prefixes: Counter[str]) -> str:
    shown = ", ".join(f"{prefix!r} ({100 * n / len(names):.0f} %)" for prefix, n in prefixes.most_common(3))
    first = prefixes.most_common(1)[0][0]
    return (
        f"Names begin with {shown}: genes of several genomes or modalities. Keep the cells and the genes of one: "
        f"adata = adata[:, adata.var_names.str.startswith({first!r})].copy()."
    )


def _two_species(names: Sequence[str]) -> str:
    mouse = [name for name in names if looks_like_mouse(name)]
    human = [name for name in names if not looks_like_mouse(name)]
    if 5 * min(len(mouse), len(human)) < len(names):
        return ""
    return (
        f"{100 * len(mouse) / len(names):.0f} % of the names are those of a mouse ({few(mouse)}) and the others are not "
        f"({few(human)}): if cells of two species are in here, keep the cells and the genes of one."
    )


def _plain(names: Iterable[Any]) -> list[str]:
    texts = list(map(str, names))
    return _without(shared_prefix(texts), texts)


def _without(prefix: str, texts: list[str]) -> list[str]:
    return [text[len(prefix) :] for text in texts] if prefix else texts


def _some(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, len(names) // SAMPLE)]
