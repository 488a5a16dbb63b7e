"""Select genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import GeneKeys
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import OptionError
from scgalore.genes.ranking import get_strategy
from scgalore.perturb.splits.own import own_split
from scgalore.selection.ranking import rank_adata, training_cells

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scgalore._typing import Control, Data, PathLike
    from scgalore.genes.sets import GeneSet
    from scgalore.selection.ranking import Ranking


@shared_parameters
def select_genes(
    data: Data,
    n_genes: int = 3000,
    gene_strategy: str = "biological",
    *,
    layer: str | None = None,
    data_type: str | None = None,
    depth_key: str | None = None,
    batch_key: str | None = None,
    pert_key: str | None = None,
    control: Control = None,
    separator: str | None = None,
    pert_kind: str = "gene",
    dose_key: str | None = None,
    context_key: str | None = None,
    split_key: str | None = None,
    must_include: Iterable[str] | None = None,
    gene_sets: Mapping[str, Iterable[str] | GeneSet] | PathLike | Iterable[str] | None = None,
    species: str = "human",
    gene_symbols: str | None = None,
    mod: str = "rna",
    key_added: str = "selected",
    copy: bool = False,
) -> Data | None:
    """Rank all expressed genes and select the best.

    Genes from several sources are interleaved into one ranking: variable genes, genes that respond to perturbations,
    and gene lists such as transcription factors, which are ordered by expression. The ranking does not depend on
    ``n_genes``: the best 500 are among the best 1,200. :doc:`/concepts/gene-selection` lists the sources and their
    proportions.

    Parameters
    ----------
    {data}
    n_genes
        Number of genes to select. If fewer are expressed, all of them are selected and a warning is logged.
    gene_strategy
        ``"biological"``: variable genes, transcription factors, cell cycle, metabolism, pluripotency and stress.
        ``"hvg"``: variable genes. ``"perturbation"``: perturbed genes first, then those that respond to perturbations,
        transcription factors, cell cycle, stress and variable genes. ``"expressed"``: by mean expression.
    {layer}
    {data_type}
    {depth_key}
    batch_key
        Column of ``adata.obs`` with the batch of each cell. Variable genes are ranked within batches before ranks are
        combined.
    {pert_key}
    {control}
    {separator}
    {pert_kind}
    {dose_key}
    {context_key}
    split_key
        Column of ``adata.obs`` with the split of each cell: only ``"train"`` cells are used. ``None`` uses all cells,
        or with ``pert_key`` the column ``"split"`` if :func:`scgalore.pp.split_perturbations` has written it for that
        key.
    must_include
        Genes to always include, if present.
    gene_sets
        Additional gene lists to interleave: a dictionary of lists, the path of a GMT file, or names of
        :func:`scgalore.genes.list_gene_sets`.
    {species}
    {gene_symbols}
    {mod}
    key_added
        Key of the results in ``adata.var``, and in ``adata.uns`` if it is not the default.
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.var['selected' | key_added]` : :class:`pandas.Series` (dtype `bool`)
        Whether a gene is selected.
    `adata.var['selected_rank' | f'{key_added}_rank']` : :class:`pandas.Series` (dtype `float64`)
        Rank, 0 is the best; NaN for genes that no training cell expresses, unless they must be included.
    `adata.var['selected_source' | f'{key_added}_source']` : :class:`pandas.Series` (dtype `category`)
        Source that each gene was selected from.
    `adata.uns['select_genes' | key_added]` : :class:`dict`
        ``params``; ``n_selected``, the number of genes selected; ``sources``, a table with the number of genes of each
        source (``n_listed``), in the data (``n_matched``), ranked (``n_expressed``) and selected (``n_selected``);
        ``absent``, names of requested genes that are not in the data; ``n_expressed`` genes in ``n_cells`` training
        cells; ``genes``, the number of mouse genes with a human ortholog; ``version``.

    Raises
    ------
    OptionError
        If the strategy or species is unknown, ``n_genes`` is not a whole number of at least 1, ``must_include`` has
        more than ``n_genes`` genes, or ``gene_strategy="perturbation"`` has no ``pert_key``.
    DataError
        If the matrix contains negative, NaN or infinite values, no gene of a list in ``gene_sets`` is in the data,
        lists and data are of different species, or there are no control cells.
    MissingKeyError
        If a column, ``layer`` or ``mod`` does not exist.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.genes.list_gene_sets : List the gene sets of the package.
    scgalore.pl.gene_selection : Draw the sources of the best genes.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sg.tl.select_genes(adata, 100, must_include=["CD3D", "CD8A"])
    >>> int(adata.var["selected"].sum())
    100
    """
    keys = GeneKeys.from_key_added(key_added)
    reading = Reading(layer, gene_symbols, data_type, depth_key, species)
    get_strategy(gene_strategy)  # raises before anything is read
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    columns = {"batch_key": batch_key, "pert_key": pert_key, "context_key": context_key, "split_key": split_key}
    columns["dose_key"] = dose_key
    refuse_elsewhere(data, mod=mod, obs={**columns, "depth_key": depth_key}, gene_symbols=gene_symbols)
    _check_number(n_genes)
    if split_key is None and pert_key is not None:
        split_key = own_split(adata, pert_key=pert_key, context_key=context_key, dose_key=dose_key)
    refuse_overwrite(keys.slots, [*reading.reads(), ("uns", "the split", split_key)], data=data, mod=mod)
    train = training_cells(adata, split_key)
    n_cells = adata.n_obs if train is None else int(train.sum())
    with logg.step(
        f"selecting {min(n_genes, adata.n_vars):,} of {adata.n_vars:,} genes ({gene_strategy}) from {n_cells:,} cells"
    ) as step:
        ranking = rank_adata(
            adata,
            gene_strategy,
            batch_key=batch_key,
            pert_key=pert_key,
            control=control,
            separator=separator,
            pert_kind=pert_kind,
            dose_key=dose_key,
            context_key=context_key,
            must_include=must_include,
            gene_sets=gene_sets,
            train=train,
            **reading.params(),
        )
        n_selected = _n_selected(n_genes, ranking)
        content: dict[str, Any] = ranking.summary(n_genes)
        content["n_selected"] = n_selected
        content["params"]["split_key"] = split_key
        content["version"] = __version__
        _report(content)
        present = pd.unique(pd.Series(ranking.source[np.isfinite(ranking.rank)], dtype=object))
        order = [name for name in content["sources"].index if name in set(present)]
        Results(
            var={
                keys.selected: (ranking.best(n_selected), "selected genes"),
                keys.rank: (ranking.rank, "rank, 0 is the best"),
                keys.source: (pd.Categorical(ranking.source, categories=order), "source of each gene"),
            },
            uns={keys.uns: (content, "parameters and genes of each source")},
        ).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _check_number(n_genes: Any) -> None:
    whole = isinstance(n_genes, int | np.integer) and not isinstance(n_genes, bool)
    if not whole or n_genes < 1:
        msg = f"n_genes={n_genes!r}: expected a whole number, at least 1."
        raise OptionError(msg)


def _n_selected(n_genes: int, ranking: Ranking) -> int:
    """Number of genes to select: at most all ranked genes."""
    if ranking.n_must_include > n_genes:
        msg = f"must_include has {ranking.n_must_include:,} genes in the data, but n_genes={n_genes:,}. Pass a larger n_genes."
        raise OptionError(msg)
    n_ranked = int(np.isfinite(ranking.rank).sum())
    if n_genes > n_ranked:
        logg.warning(
            f"n_genes={n_genes:,}, but only {ranking.n_expressed:,} of {len(ranking.rank):,} genes are expressed in the "
            f"{ranking.n_cells:,} cells: all {n_ranked:,} ranked genes are selected."
        )
    return min(n_genes, n_ranked)


def _report(content: dict[str, Any]) -> None:
    counts = content["sources"]["n_selected"]
    shown = ", ".join(f"{n:,} {name}" for name, n in counts.items() if n)
    logg.info(f"    {content['n_selected']:,} of {content['n_expressed']:,} expressed genes: {shown}")
