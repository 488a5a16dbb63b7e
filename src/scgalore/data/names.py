"""Gene names from ``var``, and advice if they do not match a vocabulary."""

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
"""Maximum number of names to try for advice, which needs no exact numbers."""


def as_names(names: Iterable[Any]) -> list[str]:
    """Read gene names as text, without a common prefix added by software, such as ``GRCh38_``.

    Parameters
    ----------
    names
        ``var_names`` or a column of ``var``, categorical or not.
    """
    texts = list(map(str, names))
    prefix = shared_prefix(texts)
    if prefix:
        logg.info(f"    gene names are read without their common prefix {prefix!r}")
    return _without(prefix, texts)


def other_columns(var: pd.DataFrame, used: str | None) -> dict[str | None, list[str]]:
    """Other candidate names in ``var``, by column; ``None`` are ``var_names``.

    Parameters
    ----------
    var
        Annotation of the genes.
    used
        Column already used, which is omitted; ``None`` for ``var_names``.
    """
    found: dict[str | None, list[str]] = {} if used is None else {None: _plain(var.index)}
    for number, key in enumerate(var.columns):
        column = var.iloc[:, number].dropna()
        texts = column.dtype == "category" or pd.api.types.is_string_dtype(column) or column.dtype == object
        # Columns with few distinct values are classes of genes, not names.
        if key != used and texts and 2 * column.nunique() > len(var):
            found[str(key)] = _plain(column)
    return found


@dataclass(frozen=True)
class _Way:
    """Another way to read names.

    Attributes
    ----------
    names, species
        Names, and their species.
    how
        Difference, as a text to follow "would match".
    call
        Call that reads them in this way.
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
    """Advice on how to match more genes.

    Parameters
    ----------
    names
        Gene names as read.
    species
        Species they were read as.
    count
        Counts how many of the given names of a species are in the model's vocabulary.
    columns
        Returns the names in other columns, as :func:`other_columns` does.
    fallback
        Advice if no other way matches more genes.
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
    """Other ways to read names, those with the smallest change first."""
    other = "mouse" if species == "human" else "human"
    passed, as_other = {species: "", other: f"species={other!r}"}, {species: "", other: f" as {other} genes"}
    ways = [_Way(names, other, as_other[other].strip(), f"pass {passed[other]}")]
    # pandas names the index of a CSV file so.
    for key in sorted(columns, key=lambda key: str(key).startswith("Unnamed")):
        for of in (species, other):
            if key is None:
                call = "omit gene_symbols=" + (f" and pass {passed[of]}" if passed[of] else "")
                ways.append(_Way(columns[key], of, f"from adata.var_names{as_other[of]}", call))
            else:
                call = f"pass gene_symbols={key!r}" + (f", {passed[of]}" if passed[of] else "")
                ways.append(_Way(columns[key], of, f"from adata.var[{key!r}]{as_other[of]}", call))
    changes = {"without surrounding spaces": ("strip()", [name.strip() for name in names])}
    if not mostly_mouse(names):  # changing the case does not convert mouse to human genes
        changes["in upper case"] = "upper()", [name.upper() for name in names]
        changes["capitalised"] = "capitalize()", [name.capitalize() for name in names]
    for prefix in (*_beginnings(names), *count_prefixes(names)):
        changes[f"without {prefix!r}"] = f"removeprefix({prefix!r})", [name.removeprefix(prefix) for name in names]
    for how, (method, changed) in changes.items():
        of = "mouse" if mostly_mouse(changed) else "human"
        call = f"adata.var_names = adata.var_names.str.{method}" + (f", and pass {passed[of]}" if passed[of] else "")
        if changed != names:
            ways.append(_Way(changed, of, how, call))
    return ways


def _beginnings(names: Sequence[str]) -> list[str]:
    """Common prefixes of all names that end with ``_``, ``-``, ``:`` or ``|``."""
    first = names[0] if names else ""
    ends = [i + 1 for i, letter in enumerate(first) if letter in "_-:|" and first[i + 1 : i + 2] not in ("", letter)]
    return [first[:end] for end in ends if all(name.startswith(first[:end]) for name in names)]


def _several(names: Sequence[str], prefixes: Counter[str]) -> str:
    shown = ", ".join(f"{prefix!r} ({100 * n / len(names):.0f} %)" for prefix, n in prefixes.most_common(3))
    first = prefixes.most_common(1)[0][0]
    return (
        f"Names start with {shown}: genes of several genomes or modalities. Keep the cells and genes of one: "
        f"adata = adata[:, adata.var_names.str.startswith({first!r})].copy()."
    )


def _two_species(names: Sequence[str]) -> str:
    mouse = [name for name in names if looks_like_mouse(name)]
    human = [name for name in names if not looks_like_mouse(name)]
    if 5 * min(len(mouse), len(human)) < len(names):
        return ""
    return (
        f"{100 * len(mouse) / len(names):.0f} % of the names look like mouse genes ({few(mouse)}) and the others do not "
        f"({few(human)}): if these are cells of two species, keep the cells and genes of one."
    )


def _plain(names: Iterable[Any]) -> list[str]:
    texts = list(map(str, names))
    return _without(shared_prefix(texts), texts)


def _without(prefix: str, texts: list[str]) -> list[str]:
    return [text[len(prefix) :] for text in texts] if prefix else texts


def _some(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, len(names) // SAMPLE)]
