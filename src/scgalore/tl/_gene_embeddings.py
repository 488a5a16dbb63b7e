"""Embeddings of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import check_key
from scgalore._options import COUNT, Option, choice
from scgalore._rng import seed_from
from scgalore._uns import to_uns
from scgalore.data.cells import gene_names
from scgalore.data.labels import groups_of
from scgalore.data.reading import Reading
from scgalore.data.resolve import refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import DataError, OptionError
from scgalore.model.inference import RunOptions
from scgalore.tl._shared import as_model, embed_genes, provenance, static_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import CellModel

KIND = Option("kind", choice("static", "contextual"), "", "static")
MIN_CELLS = Option("min_cells", COUNT, "", 1)


@shared_parameters
def gene_embeddings(
    data: Data | None = None,
    model: PathLike | CellModel = "scgpt",
    *,
    kind: str = "static",
    groupby: str | None = None,
    min_cells: int = 1,
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
) -> AnnData:
    """Embed genes with a foundation model :cite:p:`Cui2024`.

    Static embeddings are the model's input embeddings of genes, the same in all cells. A contextual embedding is the output of the
    last layer at the gene's token, averaged over the cells of a group that have this token. Cells are processed as by
    :func:`scgalore.tl.embed`; only sums are kept, so memory does not depend on their number. See :doc:`/genes`.

    Parameters
    ----------
    data
        Annotated data matrix, or a MuData with the modality ``mod``. ``None`` returns static embeddings of all genes of the model.
    {model}
    kind
        ``"static"`` or ``"contextual"``.
    {groupby}
    min_cells
        Minimum number of cells of a group that have the gene as a token; means over fewer cells are omitted.
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
    {rng}
    key_added
        Key of ``adata.varm`` to also write the embeddings to; with ``None`` the object is not changed. Cannot be combined with ``groupby``.

    Returns
    -------
    An AnnData of genes by dimensions (dtype `float32`), for :func:`scanpy.pp.neighbors` with ``use_rep="X"``. Columns of its
    ``obs``: ``gene`` (name in the data), ``token`` (name in the model), for contextual embeddings ``n_cells`` (number of
    averaged cells), and with ``groupby`` also ``group``; rows are sorted by group. ``uns["gene_embeddings"]`` contains
    ``params``, ``weights``, ``genes`` and ``version``. With ``key_added`` this key is also set:

    `adata.varm['key_added']` : :class:`numpy.ndarray` (shape `(n_vars, d_model)`, dtype `float32`)
        The embeddings in the order of ``adata.var_names``; NaN for genes without embedding.

    Raises
    ------
    OptionError
        If ``kind`` is unknown, or options cannot be combined.
    DataError
        If the matrix contains negative, NaN or infinite values, no gene matches, or no group has enough cells for any gene.
    MissingKeyError
        If ``groupby``, ``layer``, ``gene_symbols`` or ``mod`` does not exist.

    See Also
    --------
    scgalore.tl.gene_programs : Cluster genes into programs.
    scgalore.tl.gene_network : Rank edges from regulators to target genes.
    scgalore.tl.embed : Embed cells without training.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> genes = sg.tl.gene_embeddings(adata, "scgpt-mini", kind="contextual")
    >>> sc.pp.neighbors(genes, use_rep="X", metric="cosine")
    """
    kind, min_cells, seed = KIND.check(kind), MIN_CELLS.check(min_cells), seed_from(rng)
    check_key(key_added)
    _check(data, kind, groupby, key_added)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    how: dict[str, Any] = {"precision": precision, "batch_size": batch_size, "batch_tokens": batch_tokens}
    options = RunOptions.of(**how, accelerator=accelerator)
    params = {"kind": kind, "groupby": groupby, "min_cells": min_cells, "max_length": max_length, "rng": seed}
    if data is None:
        return _of_vocabulary(as_model(model), params)
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={"groupby": groupby}, gene_symbols=gene_symbols)
    refuse_overwrite({"varm": [key_added]} if key_added else {}, reading.reads())
    codes, names = groups_of(adata, groupby)
    fitted = as_model(model)
    with logg.step(f"embedding genes with {fitted.provenance['name']}") as step:
        cells = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed)
        columns = np.flatnonzero(cells.match.token_ids >= 0)
        made = {"params": {**reading.of_tokens(), **params}, **provenance(fitted, cells)}
        found, n_cells = embed_genes(fitted, cells, columns, codes, len(names), kind=kind, options=options)
        genes = pd.DataFrame(
            {
                "gene": np.array(gene_names(adata, reading.gene_symbols), dtype=object)[columns],
                "token": [fitted.vocab.tokens[token] for token in cells.match.token_ids[columns]],
            }
        )
        if kind == "static":
            result = _adata(found[0], genes, genes["gene"])
        else:
            result = _of_groups(found, n_cells, genes, names if groupby else (), min_cells)
        result.uns["gene_embeddings"] = to_uns(made)
        if key_added is not None:
            varm = np.full((adata.n_vars, found.shape[2]), np.nan, dtype=np.float32)
            varm[columns] = found[0]
            Results(varm={key_added: (varm, "gene embeddings")}).write(data, adata, mod=mod, step=step)
    return result


def _check(data: Data | None, kind: str, groupby: str | None, key_added: str | None) -> None:
    problem = None
    if data is None and kind == "contextual":
        problem = 'kind="contextual" is a mean over cells. Pass them: sg.tl.gene_embeddings(adata, kind="contextual").'
    elif groupby is not None and kind == "static":
        problem = f'groupby={groupby!r}: static embeddings are the same in all cells. Leave it out, or pass kind="contextual".'
    elif key_added is not None and (data is None or groupby is not None):
        problem = f"key_added={key_added!r}: adata.varm has a place for one embedding of each gene of adata. Leave key_added or groupby out."
    if problem:
        raise OptionError(problem)


def _of_vocabulary(fitted: CellModel, params: dict[str, Any]) -> AnnData:
    tokens = fitted.vocab.gene_ids()
    names = [fitted.vocab.tokens[token] for token in tokens]
    result = _adata(static_embeddings(fitted, tokens), pd.DataFrame({"gene": names, "token": names}), names)
    made = {"params": params, "weights": dict(fitted.provenance), "version": __version__}
    result.uns["gene_embeddings"] = to_uns(made)
    return result


def _of_groups(
    found: NDArray[np.float32],
    n_cells: NDArray[np.int64],
    genes: pd.DataFrame,
    groups: tuple[str, ...],
    min_cells: int,
) -> AnnData:
    """Genes by dimensions, sorted by group, without genes that too few cells have; ``groups`` is empty without ``groupby``."""
    kept = n_cells >= min_cells
    if not kept.any():
        msg = f"No gene is a token of min_cells={min_cells} cells of a group. Pass a smaller number."
        raise DataError(msg)
    if not kept.all():
        logg.info(f"    {(~kept).sum():,} of {kept.size:,} means left out: fewer than {min_cells} cells have the gene")
    group, gene = np.nonzero(kept)
    obs = genes.iloc[gene].assign(n_cells=n_cells[group, gene])
    index = obs["gene"]
    if groups:
        obs["group"] = pd.Categorical([groups[i] for i in group], categories=list(groups))
        index = obs["gene"] + "-" + obs["group"].astype(str)
    return _adata(found[group, gene], obs, index)


def _adata(x: NDArray[np.float32], obs: pd.DataFrame, index: Iterable[str]) -> AnnData:
    return AnnData(
        x, obs=obs.set_axis(pd.Index(list(index)), axis=0), var=pd.DataFrame(index=[str(i) for i in range(x.shape[1])])
    )
