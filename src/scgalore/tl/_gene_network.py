"""Networks of regulators and their targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import NetworkKeys
from scgalore._options import COUNT, Option, choice
from scgalore._progress import progress
from scgalore._rng import seed_from
from scgalore._words import few
from scgalore.data.cells import gene_names
from scgalore.data.edges import N_EDGES
from scgalore.data.expression import LogExpression
from scgalore.data.labels import groups_of
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import DataError, OptionError
from scgalore.genes.sets import GeneColumns, get_gene_set
from scgalore.model.edits import Edit
from scgalore.model.in_silico import EditedCells
from scgalore.model.inference import RunOptions, mean_attention
from scgalore.networks.coexpression import correlations
from scgalore.networks.network import GeneNetwork, combine, cosines
from scgalore.tl._shared import as_model, embed_genes, provenance, refuse_conditions
from scgalore.tl._states import States

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import CellModel

METHODS = ("attention", "embedding", "perturbation", "coexpression", "combined")
COMBINED = ("attention", "embedding", "coexpression")
SIGNED = ("coexpression", "perturbation")
REGULATORS = "human_tf_lambert2018"
"""Gene set of the default regulators."""

METHOD = Option("method", choice(*METHODS), "", "coexpression")
SCALE = Option("scale", choice("rank", "softmax"), "", "rank")
KIND = Option("kind", choice("static", "contextual"), "", "contextual")
MIN_CELLS = Option("min_cells", COUNT, "", 10)
N_CELLS = Option("n_cells", COUNT, "", 200)
READERS = {
    "layers": ("attention", "combined"),
    "scale": ("attention", "combined"),
    "kind": ("embedding", "combined"),
    "n_cells": ("perturbation",),
}
"""Methods that read an option."""
BLOCK = 64
"""Number of regulators that are knocked out per block."""


@shared_parameters
def gene_network(
    data: Data,
    model: PathLike | CellModel = "scgpt",
    *,
    method: str = "coexpression",
    groupby: str | None = None,
    tfs: Iterable[str] | None = None,
    targets: Iterable[str] | None = None,
    n_edges: int | None = 100_000,
    min_cells: int = 10,
    layers: Sequence[int] | None = None,
    scale: str = "rank",
    kind: str = "contextual",
    n_cells: int = 200,
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
    """Rank edges from transcription factors to target genes.

    Edges are associations: none of these methods infers who regulates whom. :func:`scgalore.tl.evaluate_gene_network`
    compares them with known targets. :doc:`/genes` shows the measurements on which the choice of the default is based.

    Parameters
    ----------
    {data}
    model
        As for :func:`scgalore.tl.embed`; not loaded for ``method="coexpression"``.
    method
        ``"coexpression"``: Pearson correlation of log-normalised expression, ranked without its sign. ``"attention"``:
        mean attention of the target to the factor over cells, layers and heads. ``"embedding"``: cosine of gene
        embeddings. ``"combined"``: mean rank of these three. ``"perturbation"``: decrease of the predicted expression of
        the target when the factor's token is deleted (:func:`scgalore.tl.perturb_in_silico`), in bins, ranked
        without its sign.
    {groupby}
    tfs
        Regulators. ``None`` uses the human transcription factors of :cite:t:`Lambert2018` that are in the data.
    targets
        Possible targets; ``None`` uses all genes of the data.
    n_edges
        Number of edges to keep per group, the strongest ones; ``None`` keeps all. An edge that is kept for one group is
        stored for all groups.
    min_cells
        Minimum number of cells of a group that express each of the two genes; pairs with fewer are omitted. For
        attention, the number of cells that have both genes as tokens; for perturbation, that have the factor.
    layers
        For attention: indices of the layers to average over, -1 for the last; ``None`` uses all.
    scale
        For attention: ``"rank"``, ranks of query-key products within each query and then within each key, as in scGPT's
        tutorial; or ``"softmax"``, attention weights.
    kind
        For embeddings: ``"contextual"`` or ``"static"``, as for :func:`scgalore.tl.gene_embeddings`.
    n_cells
        For perturbation: maximum number of cells per group in which factors are knocked out, sampled with ``rng``.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    {mod}
    {max_length}
    precision
        Precision of embeddings, as for :func:`scgalore.tl.embed`. Attention is always computed in float32.
    {batch_size}
    {batch_tokens}
    {accelerator}
    {rng}
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['gene_network' | key_added]` : :class:`dict`
        ``edges``, a table with ``group``, ``source``, ``target``, ``weight``, ``rank`` (among all pairs of the group, 1
        the strongest) and ``n_cells``, which :func:`scgalore.get.gene_network` reads; ``n_pairs``, a table with the
        number of pairs that have a weight in each group; ``params``, ``version`` and, if a model was used, ``weights``
        and ``genes``.

    Raises
    ------
    OptionError
        If an option is unknown, out of range or for another method, the model has no attention weights, or, for
        perturbation, the model does not predict expression from the cell embedding, reads perturbation flags or
        normalises within batches.
    DataError
        If the matrix cannot be read, no regulator or target is in the data, or no pair has enough cells.
    MissingKeyError
        If ``groupby``, ``layer``, ``gene_symbols`` or ``mod`` does not exist.

    See Also
    --------
    scgalore.tl.evaluate_gene_network : Score networks against known targets.
    scgalore.get.gene_network : Read edges of a network as a table.
    scgalore.pl.gene_network : Draw the strongest edges of some regulators.
    scgalore.pl.attention : Draw mean attention as a heat map.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sg.tl.gene_network(adata, method="coexpression")
    >>> edges = sg.get.gene_network(adata)
    """
    keys, seed = NetworkKeys.from_key_added(key_added), seed_from(rng)
    method, scale, kind = METHOD.check(method), SCALE.check(scale), KIND.check(kind)
    n_edges, min_cells, n_cells = N_EDGES.check(n_edges), MIN_CELLS.check(min_cells), N_CELLS.check(n_cells)
    _refuse_of_others(method, layers=layers, scale=scale, kind=kind, n_cells=n_cells)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    refuse_overwrite({"uns": [keys.network]}, reading.reads())
    options = RunOptions.of(
        precision=precision, batch_size=batch_size, batch_tokens=batch_tokens, accelerator=accelerator
    )
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={"groupby": groupby}, gene_symbols=gene_symbols)
    codes, names = groups_of(adata, groupby)
    genes = gene_names(adata, reading.gene_symbols)
    chosen = _columns(tfs, genes, species, "tfs"), _columns(targets, genes, species, "targets")
    fitted = None if method == "coexpression" else as_model(model)
    if fitted is not None and method == "perturbation":
        refuse_conditions(fitted)
    with logg.step(f"ranking edges of genes in {adata.n_obs:,} cells by {method}") as step:
        cells = None
        if fitted is not None:
            cells = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed)
            known = cells.match.token_ids >= 0
            chosen = _in_vocabulary(chosen[0], known, "tfs"), _in_vocabulary(chosen[1], known, "targets")
        work = _Work(
            adata,
            reading,
            codes,
            names,
            genes,
            *chosen,
            min_cells=min_cells,
            fitted=fitted,
            cells=cells,
            options=options,
            layers=layers,
            scale=scale,
            kind=kind,
            n_cells=n_cells,
            seed=seed,
        )
        found = work.network(method)
        edges = found.edges(n_edges)
        if edges.empty:
            msg = f"min_cells={min_cells}: no pair of a regulator and a target is in as many cells of a group. Pass a smaller number."
            raise DataError(msg)
        if empty := [name for name, n_pairs in zip(names, found.n_pairs, strict=True) if n_pairs == 0]:
            logg.warning(
                f"no edges in {len(empty):,} of {len(names):,} groups, {few(empty)}: no regulator and target are in min_cells={min_cells} of "
                "their cells. Pass a smaller number to have some."
            )
        content = {
            "edges": edges,
            "n_pairs": pd.DataFrame({"n_pairs": found.n_pairs}, index=list(names)),
            "params": {
                **reading.of_tokens(),
                "method": method,
                "groupby": groupby,
                "n_edges": n_edges,
                "min_cells": min_cells,
                "layers": None if layers is None else list(layers),
                "scale": scale,
                "kind": kind,
                "n_cells": n_cells,
                "max_length": max_length,
                "rng": seed,
            },
            "version": __version__,
            **({} if fitted is None or cells is None else provenance(fitted, cells)),
        }
        Results(uns={keys.network: (content, "edges and parameters")}).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _refuse_of_others(method: str, **options: Any) -> None:
    """Raise an error for options of other methods that differ from their defaults."""
    defaults = {"layers": None, **{option.name: option.default for option in (SCALE, KIND, N_CELLS)}}
    for name, value in options.items():
        if value != defaults[name] and method not in READERS[name]:
            readers = " and ".join(map(repr, READERS[name]))
            msg = f"{name}={value!r} belongs to method={readers}, and this is {method!r}. Leave it out."
            raise OptionError(msg)


def _columns(wanted: Iterable[str] | None, genes: Sequence[str], species: str, argument: str) -> NDArray[np.int64]:
    """Unique columns of the requested genes, sorted by name, so that the ranks of equal weights do not depend on the order of the columns."""
    if wanted is None and argument == "targets":
        return np.argsort(np.array(genes, dtype=object), kind="stable")
    names = list(get_gene_set(REGULATORS).genes if wanted is None else wanted)
    if isinstance(wanted, str) or not all(isinstance(name, str) for name in names):
        msg = f"{argument}={wanted!r}: expected a list of names of genes."
        raise OptionError(msg)
    found, absent = GeneColumns(genes, species).find(names)
    if len(found) == 0:
        hint = (
            "Pass regulators as tfs=, or gene_symbols= if var_names are other identifiers."
            if wanted is None
            else "Pass gene_symbols= if var_names are other identifiers."
        )
        msg = f"None of the {len(names):,} genes of {argument} ({', '.join(names[:3])}, ...) is in the data, whose genes are named {', '.join(genes[:3])}, .... {hint}"
        raise DataError(msg)
    if wanted is not None and absent:
        logg.warning(
            f"not in the data, of {argument}: {', '.join(absent[:5])}{', ...' if absent[5:] else ''} ({len(absent):,} in all)"
        )
    return np.array(sorted(found.tolist(), key=lambda column: genes[column]), dtype=np.int64)


def _in_vocabulary(columns: NDArray[np.int64], known: NDArray[np.bool_], argument: str) -> NDArray[np.int64]:
    """Columns whose genes are in the model's vocabulary."""
    if not known[columns].any():
        msg = f"The model knows none of the {len(columns):,} genes of {argument} in the data. Choose another model, or method='coexpression'."
        raise DataError(msg)
    return columns[known[columns]]


@dataclass(frozen=True)
class _Work:
    """Inputs for computing weights, with one function per method."""

    adata: AnnData
    reading: Reading
    codes: NDArray[np.int64]
    groups: tuple[str, ...]
    genes: Sequence[str]
    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    min_cells: int
    fitted: Any
    cells: Any
    options: RunOptions
    layers: Sequence[int] | None
    scale: Any
    kind: str
    n_cells: int
    seed: int

    def network(self, method: str) -> GeneNetwork:
        if method == "combined":
            return combine([self.network(one) for one in COMBINED])
        weights, n_cells = getattr(self, f"_{method}")()
        sources, targets = (tuple(self.genes[i] for i in columns) for columns in (self.sources, self.targets))
        found = GeneNetwork(sources, targets, self.groups, weights, n_cells, signed=method in SIGNED)
        return found.without(self.min_cells)

    def _coexpression(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        expression = LogExpression.from_adata(self.adata, self.reading)
        return correlations(expression.chunks(), self.codes, self.sources, self.targets, n_groups=len(self.groups))

    def _attention(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        ids = self.cells.match.token_ids
        means = mean_attention(
            self.fitted.network,
            self.cells,
            keys=ids[self.sources],
            queries=ids[self.targets],
            groups=self.codes,
            n_groups=len(self.groups),
            layers=self.layers,
            scale=self.scale,
            device=self.options.device,
        )
        self.fitted.network.cpu()
        return means.means(), means.n_cells

    def _embedding(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        columns = np.union1d(self.sources, self.targets)
        states, n_cells = embed_genes(
            self.fitted, self.cells, columns, self.codes, len(self.groups), kind=self.kind, options=self.options
        )
        i, j = (np.searchsorted(columns, wanted) for wanted in (self.sources, self.targets))
        return cosines(states, i, j), np.minimum(n_cells[:, i, None], n_cells[:, None, j])

    def _perturbation(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        states = States(self.groups, self.codes, None)
        rows = states.pick(np.concatenate(list(self.cells.keys())), self.n_cells, seed=self.seed)
        logs = LogExpression.from_adata(self.adata, self.reading).rows(rows)
        nothing = np.zeros(0, dtype=np.int64)
        edit, codes = Edit("knockout"), self.codes[rows]
        run = EditedCells(self.fitted, self.cells, rows, codes, logs, edit, extra=nothing, options=self.options)
        sources, targets = (self.cells.match.token_ids[columns] for columns in (self.sources, self.targets))
        weights = np.empty((len(self.groups), len(sources), len(targets)), dtype=np.float32)
        n_changed = np.empty((len(self.groups), len(sources)), dtype=np.int64)
        blocks = [slice(start, start + BLOCK) for start in range(0, len(sources), BLOCK)]
        for block in progress(blocks, label="regulators", total=len(blocks)):
            shifts = run.shifts(sources[block], None)
            n_changed[:, block] = shifts.n_changed.T
            for group in range(len(self.groups)):
                weights[group, block] = -run.expression_change(shifts.embedding[:, group], targets)
        self.fitted.network.cpu()
        if np.isnan(weights).all():
            name = self.fitted.provenance["name"]
            msg = f"{name!r} predicts no expression from the embedding of a cell, which method='perturbation' reads. Choose another model, or another method."
            raise OptionError(msg)
        return weights, np.broadcast_to(n_changed[:, :, None], weights.shape)
