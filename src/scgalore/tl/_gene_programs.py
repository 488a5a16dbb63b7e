"""Programs of genes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import ProgramKeys
from scgalore._options import COUNT, POSITIVE, Option, choice, whole
from scgalore._rng import seed_from
from scgalore._words import few
from scgalore.data.cells import gene_names
from scgalore.data.expression import LogExpression
from scgalore.data.moments import Moments
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import DataError, OptionError
from scgalore.genes.sets import COLLECTIONS, GeneColumns, get_gene_set, list_gene_sets
from scgalore.model.inference import RunOptions
from scgalore.networks.programs import activities, enrichment
from scgalore.selection.gene_lists import user_sets
from scgalore.tl._shared import as_model, embed_genes, provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.genes.sets import GeneSet
    from scgalore.model import CellModel

KIND = Option("kind", choice("static", "contextual"), "", "static")
RESOLUTION = Option("resolution", POSITIVE, "", 5.0)
N_NEIGHBORS = Option("n_neighbors", whole(2), "", 10)
MIN_GENES = Option("min_genes", COUNT, "", 5)
MIN_CELLS = Option("min_cells", COUNT, "", 10)
NAMED_BELOW = 0.05
"""False discovery rate below which a program is named after a gene set."""


@shared_parameters
def gene_programs(
    data: Data,
    model: PathLike | CellModel = "scgpt",
    *,
    kind: str = "static",
    resolution: float = 5.0,
    n_neighbors: int = 10,
    min_genes: int = 5,
    min_cells: int = 10,
    gene_sets: Mapping[str, Iterable[str] | GeneSet] | PathLike | Iterable[str] | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str = "rna",
    max_length: int | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Cluster genes by their embeddings, test the clusters for enriched gene sets, and score their activity in each cell.

    Genes expressed in at least ``min_cells`` cells are clustered with scanpy: neighbours by cosine, then Leiden
    :cite:p:`Traag2019`. Each program is tested for enrichment in gene sets by the hypergeometric distribution, among
    the genes that were clustered. See :doc:`/genes`.

    Parameters
    ----------
    {data}
    {model}
    kind
        Type of embeddings, as for :func:`scgalore.tl.gene_embeddings`: ``"static"`` or ``"contextual"``.
    resolution
        Resolution of Leiden; a larger one gives more and smaller programs.
    n_neighbors
        Number of neighbours per gene.
    min_genes
        Minimum number of genes of a program; smaller clusters are discarded.
    min_cells
        Minimum number of cells that express a gene.
    gene_sets
        Gene sets to test in addition to those of the package (:func:`scgalore.genes.list_gene_sets`, except unions): a
        dictionary of lists, or the path of a GMT file.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    {mod}
    {max_length}
    {precision}
    {batch_size}
    {batch_tokens}
    {accelerator}
    rng
        Seed or NumPy generator, for sampling genes of long cells and for Leiden.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.var['gene_program' | key_added]` : :class:`pandas.Series` (dtype `category`)
        Program of each gene, from ``"0"``, the largest; missing for genes in no program.
    `adata.obsm['X_gene_programs' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, n_programs)`, dtype `float32`)
        Activity: mean log-normalised expression of the genes of a program, each gene scaled to mean 0 and standard
        deviation 1.
    `adata.uns['gene_programs' | key_added]` : :class:`dict`
        ``programs``, a table with ``n_genes``, the most enriched gene set with its ``fdr`` (empty if none is below
        0.05), and the ten most expressed ``genes``; ``enrichment``, a table with ``program``, ``gene_set``,
        ``n_overlap``, ``n_program``, ``n_set``, ``p`` and ``fdr`` (Benjamini and Hochberg over all programs and sets);
        ``n_genes``, the number of clustered genes; ``params``, ``weights``, ``genes`` and ``version``.

    Raises
    ------
    OptionError
        If an option is unknown or out of range, a set has the name of one of the package, or igraph is not installed.
    DataError
        If the matrix cannot be read, no gene of ``gene_sets`` is in the data, or too few genes remain.
    MissingKeyError
        If ``layer``, ``gene_symbols`` or ``mod`` does not exist.

    See Also
    --------
    scgalore.tl.gene_embeddings : Embed genes.
    scgalore.tl.gene_network : Rank edges from regulators to target genes.
    scgalore.genes.list_gene_sets : List the gene sets of the package.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sg.tl.gene_programs(adata, "scgpt-mini")
    >>> best = adata.uns["gene_programs"]["enrichment"].head()
    """
    keys, seed = ProgramKeys.from_key_added(key_added), seed_from(rng)
    kind, resolution, n_neighbors = KIND.check(kind), RESOLUTION.check(resolution), N_NEIGHBORS.check(n_neighbors)
    min_genes, min_cells = MIN_GENES.check(min_genes), MIN_CELLS.check(min_cells)
    sets, own = _sets(gene_sets)
    if importlib.util.find_spec("igraph") is None:
        msg = "Leiden clustering needs the package igraph. Install it with: pip install igraph"
        raise OptionError(msg)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    options = RunOptions.of(
        precision=precision, batch_size=batch_size, batch_tokens=batch_tokens, accelerator=accelerator
    )
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={}, gene_symbols=gene_symbols)
    refuse_overwrite(keys.slots, reading.reads(), data=data, mod=mod)
    names = gene_names(adata, reading.gene_symbols)
    _refuse_elsewhere_named(own, names, species)
    fitted = as_model(model)
    with logg.step(f"clustering genes by their embeddings by {fitted.provenance['name']}") as step:
        cells = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed)
        expression = LogExpression.from_adata(adata, reading)
        everywhere = np.zeros(adata.n_obs, dtype=np.int64)
        moments = Moments.of(expression, everywhere, 1)
        columns = np.flatnonzero((cells.match.token_ids >= 0) & (moments.n_expressed >= min_cells))
        _refuse_few(columns, n_neighbors, min_cells)
        columns = columns[np.argsort(cells.match.token_ids[columns])]  # clusters depend on the order of the genes
        embeddings, _ = embed_genes(fitted, cells, columns, everywhere, 1, kind=kind, options=options)
        known = np.isfinite(embeddings[0]).all(axis=1)  # a gene may be sampled in no cell
        columns = columns[known]
        clusters = _clusters(embeddings[0][known], resolution, n_neighbors, min_genes, seed)
        n_programs = int(clusters.max()) + 1
        if n_programs == 0:
            msg = f"No cluster has min_genes={min_genes} genes. Pass a smaller number, or a smaller resolution."
            raise DataError(msg)
        programs = np.full(adata.n_vars, -1, dtype=np.int64)
        programs[columns] = clusters
        finder = GeneColumns([names[column] for column in columns], species)
        members = {name: finder.find(genes)[0] for name, genes in sets.items()}
        if absent := [name for name in own if len(members[name]) == 0]:
            logg.warning(
                f"{len(absent):,} of {len(own):,} sets of gene_sets, {few(absent)}, have no gene among the {len(columns):,} that were "
                "clustered, and are in no program: a gene must be in the data and in the model, and expressed by min_cells cells."
            )
        found = enrichment(clusters, n_programs, members)
        activity = activities(
            expression.chunks(), adata.n_obs, programs, n_programs, moments.means[0], np.sqrt(moments.variances[0])
        )
        labels = [str(number) for number in range(n_programs)]
        content = {
            "programs": _described(programs, names, moments.means[0], found, labels),
            "enrichment": found.assign(program=found["program"].astype(str)),
            "n_genes": len(columns),
            "params": {
                **reading.of_tokens(),
                "kind": kind,
                "resolution": resolution,
                "n_neighbors": n_neighbors,
                "min_genes": min_genes,
                "min_cells": min_cells,
                "gene_sets": sorted(sets),
                "max_length": max_length,
                "rng": seed,
            },
            **provenance(fitted, cells),
        }
        logg.info(f"    {n_programs:,} programs of {(clusters >= 0).sum():,} of {len(columns):,} genes")
        Results(
            var={keys.program: (_named(programs, labels), "program of each gene")},
            obsm={keys.activity: (activity, "activity of programs")},
            uns={keys.uns: (content, "programs and gene sets")},
        ).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _sets(gene_sets: Any) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The sets of the package, except unions, together with those of the user; and the latter alone."""
    shipped = {name: get_gene_set(name).genes for name in list_gene_sets() if name not in COLLECTIONS}
    own, _ = user_sets(gene_sets)
    if taken := sorted({*own} & {*shipped}):
        msg = f"gene_sets has a set {taken[0]!r}, which is the name of one that ships. Give it another name."
        raise OptionError(msg)
    return {**shipped, **own}, own


def _refuse_elsewhere_named(own: Mapping[str, tuple[str, ...]], names: Sequence[str], species: str) -> None:
    """Raise an error if no gene of the user's sets is in the data."""
    genes = [gene for members in own.values() for gene in members]
    if own and len(GeneColumns(names, species).find(genes)[0]) == 0:
        msg = (
            f"No gene of the {len(own):,} sets of gene_sets ({few(genes)}) is in the data, whose genes are named {few(names)}. "
            "Pass gene_symbols= if var_names are other identifiers."
        )
        raise DataError(msg)


def _refuse_few(columns: NDArray[np.int64], n_neighbors: int, min_cells: int) -> None:
    """Raise an error if there are too few genes for ``n_neighbors``."""
    if len(columns) <= n_neighbors:
        msg = (
            f"{len(columns):,} genes that the model knows are expressed by min_cells={min_cells} cells; expected more than "
            f"n_neighbors={n_neighbors}. Pass smaller numbers, or more genes."
        )
        raise DataError(msg)


def _clusters(
    x: NDArray[np.float32], resolution: float, n_neighbors: int, min_genes: int, seed: int
) -> NDArray[np.int64]:
    """Cluster of each gene, 0 for the largest; -1 for genes of small clusters."""
    import scanpy as sc
    from anndata import AnnData

    genes = AnnData(x)
    # Exact neighbours: scanpy's own choice for many points is an approximation with a random start.
    sc.pp.neighbors(
        genes, n_neighbors=n_neighbors, use_rep="X", metric="cosine", transformer="sklearn", random_state=seed
    )
    sc.tl.leiden(genes, resolution=resolution, flavor="igraph", n_iterations=2, random_state=seed, directed=False)
    codes = genes.obs["leiden"].cat.codes.to_numpy().astype(np.int64)
    sizes = np.bincount(codes)
    order = np.argsort(-sizes, kind="stable")
    number = np.full(len(sizes), -1)
    kept = order[sizes[order] >= min_genes]
    number[kept] = np.arange(len(kept))
    return number[codes]


def _named(programs: NDArray[np.int64], labels: list[str]) -> pd.Categorical:
    return pd.Categorical([labels[number] if number >= 0 else None for number in programs], categories=labels)


def _described(
    programs: NDArray[np.int64],
    names: Sequence[str],
    means: NDArray[np.float64],
    found: pd.DataFrame,
    labels: list[str],
) -> pd.DataFrame:
    """One row per program: its size, the most enriched gene set, and its most expressed genes."""
    best = found.drop_duplicates("program").set_index("program")
    rows = []
    for number in range(len(labels)):
        genes = np.flatnonzero(programs == number)
        first = genes[np.argsort(-means[genes], kind="stable")][:10]
        fdr = float(best["fdr"].get(number, 1.0))
        gene_set = str(best["gene_set"].get(number, "")) if fdr < NAMED_BELOW else ""
        rows.append((len(genes), gene_set, fdr, ", ".join(names[gene] for gene in first)))
    return pd.DataFrame(rows, index=labels, columns=["n_genes", "gene_set", "fdr", "genes"])
