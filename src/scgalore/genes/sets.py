"""Gene sets of the package and of GMT files, and matching of their genes to columns of a matrix."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from scgalore.errors import DataError, OptionError
from scgalore.genes.identifiers import ensembl_id, standardise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scgalore._typing import PathLike

__all__ = [
    "COLLECTIONS",
    "GeneColumns",
    "GeneSet",
    "get_gene_set",
    "list_gene_sets",
    "read_gmt",
]

COLLECTIONS: Mapping[str, tuple[str, ...]] = {
    "transcription_factors": ("human_tf_lambert2018",),
    "cell_cycle": ("cell_cycle_s_tirosh", "cell_cycle_g2m_tirosh"),
    "metabolism": (
        "wikipathways_WP534",
        "wikipathways_WP78",
        "reactome_glucose_metabolism",
        "reactome_citric_acid_cycle_tca_cycle",
        "reactome_respiratory_electron_transport",
        "reactome_pentose_phosphate_pathway",
        "reactome_pyruvate_metabolism",
        "reactome_fatty_acid_metabolism",
    ),
    "pluripotency": (
        "reactome_transcriptional_regulation_of_pluripotent_stem_cells",
        "wikipathways_WP3931",
    ),
    "stress": (
        "reactome_cellular_response_to_heat_stress",
        "reactome_unfolded_protein_response_upr",
        "hallmark_unfolded_protein_response",
        "hallmark_hypoxia",
        "hallmark_p53_pathway",
        "hallmark_reactive_oxygen_species_pathway",
    ),
}
"""Sets that are unions of other sets, by name."""


@dataclass(frozen=True)
class GeneSet:
    """A named list of genes with its source.

    Attributes
    ----------
    name
        Short name.
    genes
        Symbols, each once.
    title
        Description of the set.
    source, licence, citation
        Source, licence and citation; empty if unknown.
    """

    name: str
    genes: tuple[str, ...] = field(repr=False)
    title: str = ""
    source: str = field(default="", repr=False)
    licence: str = field(default="", repr=False)
    citation: str = field(default="", repr=False)


def list_gene_sets() -> list[str]:
    """List the gene sets of the package, with human symbols.

    Returns
    -------
    Names for :func:`get_gene_set`, sorted, including the unions in :data:`COLLECTIONS`.
    """
    return sorted({*_shipped(), *COLLECTIONS})


def get_gene_set(name: str) -> GeneSet:
    """Get a gene set of the package.

    Parameters
    ----------
    name
        One of :func:`list_gene_sets`.

    Raises
    ------
    OptionError
        If the set does not exist; the message lists similar names.

    Examples
    --------
    >>> import scgalore as sg
    >>> len(sg.genes.get_gene_set("cell_cycle").genes)
    97
    """
    if name in COLLECTIONS:
        return _union(name, [_shipped()[part] for part in COLLECTIONS[name]])
    if name not in _shipped():
        known = list_gene_sets()
        close = get_close_matches(str(name), known, n=3, cutoff=0.4) or known[:3]
        msg = f"No gene set is named {name!r}; similar names: {', '.join(close)}. See sg.genes.list_gene_sets()."
        raise OptionError(msg)
    return _shipped()[name]


def read_gmt(path: PathLike) -> dict[str, GeneSet]:
    """Read gene sets from a GMT file: one set per line, with name, description and genes separated by tabs.

    Parameters
    ----------
    path
        The file, plain or gzipped (``.gz``).

    Returns
    -------
    The sets by name, in the order of the file.

    Raises
    ------
    DataError
        If the file cannot be read, contains no set, contains a name twice, or a line is malformed.
    """
    file = Path(path)
    try:
        packed = file.read_bytes()
        text = (gzip.decompress(packed) if file.suffix == ".gz" else packed).decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        msg = f"{file} could not be read as a GMT file: {error}."
        raise DataError(msg) from error
    sets: dict[str, GeneSet] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = (cell.strip() for cell in line.split("\t"))
        genes = tuple(dict.fromkeys(filter(None, rest[1:])))
        fault = "repeats the name of a set" if name in sets else "" if name and genes else "is malformed"
        if fault:
            msg = f"{file}, line {number} {fault}: {line[:60]!r}. Expected a name, a description and genes, separated by tabs."
            raise DataError(msg)
        sets[name] = GeneSet(name, genes, title=rest[0], source=file.name)
    if not sets:
        msg = f"{file} contains no gene set. Expected lines with a name, a description and genes, separated by tabs."
        raise DataError(msg)
    return sets


class GeneColumns:
    """Columns of a matrix, found by the names of genes.

    An exact match of a column name has priority. Otherwise names are compared as current symbols, so that OCT4 matches
    POU5F1, and a symbol matches an Ensembl id, with or without version.

    Parameters
    ----------
    names
        Names of the columns.
    species
        Species of the columns: ``"human"``, or ``"mouse"`` to compare them as human orthologs.
    weights
        Criterion to choose between columns of one gene, such as mean expression, ``(n_columns,)``; the largest wins,
        ties are broken by name. ``None`` decides by name.
    """

    def __init__(
        self, names: Sequence[str], species: str = "human", weights: NDArray[np.floating] | None = None
    ) -> None:
        self._species = species
        weight = [0.0] * len(names) if weights is None else weights.astype("float32").tolist()

        def heaviest(columns: list[int]) -> int:
            return min(columns, key=lambda column: (-weight[column], names[column]))

        self._exact = _one_of_each(names, heaviest)
        self._standard = _one_of_each(self._keys(names), heaviest)

    def find(self, genes: Iterable[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Columns of the genes, each once, in the order of the genes; and names without a column.

        Parameters
        ----------
        genes
            Symbols, aliases or Ensembl ids.
        """
        import numpy as np  # keeps the import of this subpackage light for uses without a matrix

        wanted = list(dict.fromkeys(genes))
        found = self.each(wanted)
        columns = dict.fromkeys(found.values())
        absent = tuple(gene for gene in wanted if gene not in found)
        return np.fromiter(columns, dtype=np.int64, count=len(columns)), absent

    def each(self, genes: Sequence[str]) -> dict[str, int]:
        """Column of each gene that has one; two names of one gene have the same column.

        Parameters
        ----------
        genes
            Symbols, aliases or Ensembl ids.
        """
        keys = zip(genes, self._keys(genes), strict=True)
        found = {gene: self._exact.get(gene, self._standard.get(key)) for gene, key in keys}
        return {gene: column for gene, column in found.items() if column is not None}

    def _keys(self, names: Sequence[str]) -> list[str]:
        # An id without a symbol must still be found regardless of its version.
        return [(ensembl_id(name) or name) if "ENSG" in name else name for name in standardise(names, self._species)]


def _one_of_each(texts: Sequence[str], choose: Callable[[list[int]], int]) -> dict[str, int]:
    """Position of each text; of several, the chosen one."""
    position = {text: i for i, text in enumerate(texts)}
    if len(position) < len(texts):
        several: dict[str, list[int]] = {text: [] for i, text in enumerate(texts) if position[text] != i}
        for i, text in enumerate(texts):
            if text in several:
                several[text].append(i)
        position.update((text, choose(places)) for text, places in several.items())
    return position


def _union(name: str, parts: Sequence[GeneSet]) -> GeneSet:
    def joined(values: Iterable[str]) -> str:
        return "; ".join(dict.fromkeys(values))

    return GeneSet(
        name,
        genes=tuple(sorted({gene for part in parts for gene in part.genes})),
        title="Union of " + ", ".join(part.name for part in parts),
        source=joined(part.source for part in parts),
        licence=joined(part.licence for part in parts),
        citation=joined(part.citation for part in parts),
    )


@cache
def _shipped() -> dict[str, GeneSet]:
    rows = (line.split("\t") for line in _lines("gene_sets.tsv.gz"))
    return {
        name: GeneSet(name, tuple(genes.split(" ")), title, source, licence, citation)
        for name, title, source, licence, citation, genes in rows
    }


def _lines(table: str) -> list[str]:
    packed = (files("scgalore.genes") / "tables" / table).read_bytes()
    return gzip.decompress(packed).decode().splitlines()[1:]
