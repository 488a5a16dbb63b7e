"""Labels for new cells from their neighbours in a reference."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import UNKNOWN, MappingKeys
from scgalore._options import is_number
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import OptionError
from scgalore.mapping.files import read_reference
from scgalore.mapping.reference import Reference
from scgalore.model.inference import RunOptions
from scgalore.tl._shared import model_of_reference, provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike
    from scgalore.mapping.votes import Neighbors
    from scgalore.model import CellModel

LEAST_SHARED, MOST_GENES = 0.8, 2.0
"""Genes of the reference that a query has, and all genes that it has, relative to those of the reference, below and above which a warning is given."""


@shared_parameters
def map_to_reference(
    query: Data,
    index: PathLike | Reference,
    model: PathLike | CellModel | None = None,
    *,
    unknown: float | None = None,
    label_far: bool = False,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str = "rna",
    batch_key: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    devices: int | str | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Map cells to a reference: their neighbours, and labels by the votes of these.

    Cells are embedded by the model of the reference. The nearer a neighbour, the more its vote weighs. The label of a cell that is far from its
    neighbours is ``"unknown"``: farther than 95 % of the cells of the reference are when they are left out.

    Parameters
    ----------
    {query}
    index
        What :func:`scgalore.tl.build_reference` returned, or the file it was written to.
    model
        The model of the reference, where it is no longer found by its name or in its folder. Another one is refused.
    unknown
        Share of wrong labels to accept among the labelled cells, such as 0.05: cells with a probability below a threshold become
        ``"unknown"``, too. The threshold is chosen on cells of the reference that were left out, as :func:`scgalore.tl.annotate`
        does it on validation cells. ``None`` sets none.
    label_far
        Whether cells that are far from the reference get a label all the same.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    {mod}
    batch_key
        For a reference by a model that takes batches out; as for :func:`scgalore.tl.embed`.
    {precision}
    {batch_size}
    {batch_tokens}
    {accelerator}
    {devices}
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set. Those with ``LABEL`` are there for each column of
    labels of the reference.

    `adata.obs['scgpt_mapped_LABEL' | key_added + '_LABEL']` : :class:`pandas.Categorical`
        Class with the most votes, or ``"unknown"``.
    `adata.obs['scgpt_mapped_LABEL_score' | key_added + '_LABEL_score']` : :class:`numpy.ndarray` (dtype `float32`)
        Probability of the class, calibrated on cells of the reference.
    `adata.obs['scgpt_mapped_novelty' | key_added + '_novelty']` : :class:`numpy.ndarray` (dtype `float32`)
        How far each cell is from its neighbours, about 1 for cells like those of the reference.
    `adata.obsm['scgpt_mapped_LABEL_probabilities' | key_added + '_LABEL_probabilities']` : :class:`numpy.ndarray` (shape `(n_obs, n_classes)`, dtype `float32`)
        Probability of each class, in the order of ``uns[...]['labels'][LABEL]['classes']``.
    `adata.obsm['scgpt_mapped_neighbors' | key_added + '_neighbors']` : :class:`numpy.ndarray` (shape `(n_obs, n_neighbors)`, dtype `int64`)
        Numbers of the neighbours among the cells of the reference, nearest first; ``index.names`` gives their names.
    `adata.obsm['scgpt_mapped_distances' | key_added + '_distances']` : :class:`numpy.ndarray` (shape `(n_obs, n_neighbors)`, dtype `float32`)
        Their distances, from 0 (same direction) to 2.
    `adata.obsm['scgpt_mapped_umap' | key_added + '_umap']` : :class:`numpy.ndarray` (shape `(n_obs, 2)`, dtype `float32`)
        Place in the plot of the reference, where it was built with ``basis=``: the weighted mean of the neighbours' coordinates.
    `adata.obsm['X_scGPT' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings as :func:`scgalore.tl.embed` gives them.
    `adata.uns['map_to_reference' | key_added]` : :class:`dict`
        ``params``, ``reference`` (what it is), ``labels`` (of each column: classes, accuracy and calibration on cells of the reference that were left out, threshold, how many cells are unknown), ``n_far``,
        ``weights``, ``genes`` and ``version``.

    Raises
    ------
    DataError
        If the file is not a reference, the matrix holds negative, NaN or infinite values, there are no cells, or no gene matches.
    OptionError
        If ``model`` is not the model of the reference, or cannot be found.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> index = sg.tl.build_reference(adata[::2].copy(), "scgpt-mini", labels="bulk_labels")
    >>> query = adata[1::2].copy()
    >>> sg.tl.map_to_reference(query, index)
    >>> query.obs["scgpt_mapped_bulk_labels"].cat.categories[-1]
    'unknown'
    """
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    how: dict[str, Any] = {
        "precision": precision,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "accelerator": accelerator,
        "devices": devices,
    }
    RunOptions.of(**how)  # refuses before anything is read
    _check_unknown(unknown)
    reference = read_reference(index) if isinstance(index, str | os.PathLike) else index
    if not isinstance(reference, Reference):
        msg = (
            f"index is a {type(reference).__name__}; pass what sg.tl.build_reference returned, or the path of its file."
        )
        raise OptionError(msg)
    data = copied(query, mod=mod) if copy else query
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={"batch_key": batch_key}, gene_symbols=gene_symbols)
    fitted = model_of_reference(reference, model)
    family = fitted.family
    keys = MappingKeys.from_key_added(key_added, reference.labels, embedding=family.embedding, stem=family.stem)
    reads = [*reading.reads(), ("obs", "batch_key=", batch_key)]
    refuse_overwrite(keys.slots, reads, data=data, mod=mod)
    with logg.step(f"mapping {adata.n_obs:,} cells to {reference.n_obs:,} of a reference") as step:
        cells = fitted.cells(adata, **reading.of_tokens(), **reference.made["tokens"])
        _compare_genes(cells.measured_genes(), reference.cells.genes)
        output = fitted.embed(cells, adata, reading, batch_key=batch_key, **how)
        found = reference.find(output.embedding)
        novelty = reference.novelty(found)
        far = (
            np.zeros(len(novelty), dtype=bool) if reference.gap_threshold is None else novelty > reference.gap_threshold
        )
        neighbors = np.where(found.rows >= 0, reference.lists.cells[found.rows], -1)
        results = Results(
            obs={keys.novelty: (novelty, "how far cells are from the reference")},
            obsm={
                keys.embedding: (output.embedding, "cell embeddings"),
                keys.neighbors: (neighbors, "numbers of neighbours in the reference"),
                keys.distances: (found.distances, "their distances"),
            },
        )
        if reference.cells.coordinates is not None:
            results.obsm[keys.coordinates] = (reference.placed(found), "place in the plot of the reference")
        of_labels = {
            name: _label(results, reference, found, name, keys, unknown, far & (not label_far))
            for name in reference.labels
        }
        _report(far, label_far=label_far)
        params = {"unknown": unknown, "label_far": label_far, **reading.of_tokens(), "batch_key": batch_key}
        params["precision"] = output.precision
        content = {
            "params": params,
            "reference": {
                "path": None if reference.path is None else str(reference.path),
                "n_obs": reference.n_obs,
                "n_neighbors": reference.n_neighbors,
                "n_components": reference.space.n_components,
                "recall": reference.lists.recall,
                "novelty_threshold": reference.gap_threshold,
                "tokens": reference.made["tokens"],
                **reference.made["keys"],
            },
            "labels": of_labels,
            "n_far": int(far.sum()),
            **provenance(fitted, cells),
        }
        results.uns[keys.uns] = (content, "parameters and provenance")
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None


def _compare_genes(of_query: NDArray[np.int32], of_reference: Sequence[NDArray[np.int32]]) -> None:
    """Warn of a query that lacks genes of all parts of the reference, or has many more, which moves its embeddings."""
    n = len(of_query)
    counts = [(len(np.intersect1d(of_query, genes)), len(genes)) for genes in of_reference]
    if any(shared >= LEAST_SHARED * own and n <= MOST_GENES * own for shared, own in counts):
        return
    shared, own = max(counts, key=lambda count: count[0] / (n + count[1] - count[0]))
    logg.warning(
        f"The query has {shared:,} of the {own:,} genes of the reference that the model sees, and {n - shared:,} that the reference has not, so "
        "labels are less sure, and cells of known types may be far from the reference, too. Leave out genes that only one of both has: those of the "
        "query before it is mapped, those of the reference before it is built."
    )


def _check_unknown(unknown: object) -> None:
    if unknown is not None and not (is_number(unknown) and 0 < float(unknown) < 1):  # type: ignore[arg-type]
        msg = (
            f"unknown={unknown!r}: it must be a number between 0 and 1, the share of wrong labels to accept among the labelled "
            "cells, such as 0.05."
        )
        raise OptionError(msg)


def _label(
    results: Results,
    reference: Reference,
    found: Neighbors,
    name: str,
    keys: MappingKeys,
    unknown: float | None,
    far: NDArray[np.bool_],
) -> dict[str, Any]:
    """Add the labels of one column to the results; what is to be recorded of it."""
    column, calibration = reference.cells.labels[name], reference.calibrations[name]
    probabilities = reference.probabilities(found, name)
    codes, score = probabilities.argmax(axis=1), probabilities.max(axis=1)
    record: dict[str, Any] = {"classes": list(column.classes)}
    record["accuracy"] = reference.accuracies[name]
    record |= {key.replace("n_validation", "n_left_out"): value for key, value in calibration.summary().items()}
    uncertain = np.zeros(len(codes), dtype=bool)
    if unknown is not None:
        curve = calibration.curve
        at, promised = curve.at(unknown)
        # Where even the least certain cells of the reference may keep their labels, no probability is too low.
        threshold = 0.0 if at == len(curve.thresholds) - 1 else curve.thresholds[at]
        uncertain = score < threshold
        bound = float(curve.bounds()[at])
        record |= {"threshold": threshold, "error_bound": bound, "promised": promised}
        if not promised:
            logg.warning(
                f"unknown={unknown:g} cannot be promised for {name!r}: of cells of the reference that were left out, too many get a wrong "
                f"label with a high probability, or they are too few. The threshold is the one with the lowest bound instead, {bound:.3g}."
            )
    # A class of that name means the same.
    classes = [*column.classes] if UNKNOWN in column.classes else [*column.classes, UNKNOWN]
    codes[far | uncertain] = classes.index(UNKNOWN)
    record |= {"n_unknown": int((far | uncertain).sum()), "n_uncertain": int(uncertain.sum())}
    results.obs[keys.label(name)] = (pd.Categorical.from_codes(codes, categories=pd.Index(classes)), f"labels, {name}")
    results.obs[keys.score(name)] = (score, "their probabilities")
    results.obsm[keys.probabilities(name)] = (probabilities, "probability of each class")
    if column.colors is not None:
        grey = ["#bdbdbd"] * (len(classes) - len(column.classes))
        results.uns[keys.colors(name)] = (np.array([*column.colors, *grey]), "colours of the labels")
    return record


def _report(far: NDArray[np.bool_], *, label_far: bool) -> None:
    n = len(far)
    logg.info(f"    {far.sum():,} of {n:,} cells are far from the reference{'' if label_far else ', and unknown'}")
    if 2 * far.sum() > n:
        logg.warning(
            f"{far.sum():,} of {n:,} cells are far from the reference. Where these are not new types, it is a difference in how the cells were "
            "measured: build the reference with batch_key=, or of more batches. label_far=True labels them all the same."
        )
