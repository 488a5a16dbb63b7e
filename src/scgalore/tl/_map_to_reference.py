"""Map cells to a reference."""

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
"""Warn if fewer genes of the reference are in the query, or more genes in total, relative to the genes of the reference."""


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
    """Find nearest neighbours of cells in a reference and transfer labels by weighted voting.

    Cells are embedded by the model of the reference. Closer neighbours have larger weights. A cell is labelled
    ``"unknown"`` if it is farther from its neighbours than 95 % of held-out cells of the reference.

    Parameters
    ----------
    {query}
    index
        Reference returned by :func:`scgalore.tl.build_reference`, or its file.
    model
        The model of the reference, needed only if it is not found by name or in its folder. Another model raises an
        error.
    unknown
        Accepted fraction of wrong labels among the labelled cells, such as 0.05: cells with a probability below a
        threshold are also ``"unknown"``. The threshold is chosen on held-out cells of the reference, as
        :func:`scgalore.tl.annotate` does on validation cells. ``None`` sets no threshold.
    label_far
        Whether to label cells that are far from the reference as well.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    {mod}
    batch_key
        For a reference with a model that removes batch effects; as for :func:`scgalore.tl.embed`.
    {precision}
    {batch_size}
    {batch_tokens}
    {accelerator}
    {devices}
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set; those with ``LABEL`` for each
    column of labels of the reference.

    `adata.obs['scgpt_mapped_LABEL' | key_added + '_LABEL']` : :class:`pandas.Categorical`
        Class with the most votes, or ``"unknown"``.
    `adata.obs['scgpt_mapped_LABEL_score' | key_added + '_LABEL_score']` : :class:`numpy.ndarray` (dtype `float32`)
        Probability of the class, calibrated on cells of the reference.
    `adata.obs['scgpt_mapped_novelty' | key_added + '_novelty']` : :class:`numpy.ndarray` (dtype `float32`)
        Relative distance of each cell to its neighbours, about 1 for cells like those of the reference.
    `adata.obsm['scgpt_mapped_LABEL_probabilities' | key_added + '_LABEL_probabilities']` : :class:`numpy.ndarray` (shape `(n_obs, n_classes)`, dtype `float32`)
        Probability of each class, in the order of ``uns[...]['labels'][LABEL]['classes']``.
    `adata.obsm['scgpt_mapped_neighbors' | key_added + '_neighbors']` : :class:`numpy.ndarray` (shape `(n_obs, n_neighbors)`, dtype `int64`)
        Indices of the nearest cells of the reference, closest first; ``index.names`` has their names.
    `adata.obsm['scgpt_mapped_distances' | key_added + '_distances']` : :class:`numpy.ndarray` (shape `(n_obs, n_neighbors)`, dtype `float32`)
        Cosine distances of these neighbours, from 0 to 2.
    `adata.obsm['scgpt_mapped_umap' | key_added + '_umap']` : :class:`numpy.ndarray` (shape `(n_obs, 2)`, dtype `float32`)
        Coordinates in the plot of the reference, if built with ``basis=``: the weighted mean of the neighbours'
        coordinates.
    `adata.obsm['X_scGPT' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings as written by :func:`scgalore.tl.embed`.
    `adata.uns['map_to_reference' | key_added]` : :class:`dict`
        ``params``, ``reference`` (its description), ``labels`` (for each column: classes, accuracy and calibration on
        held-out cells of the reference, threshold, number of unknown cells), ``n_far``, ``weights``, ``genes`` and
        ``version``.

    Raises
    ------
    DataError
        If the file is not a reference, the matrix contains negative, NaN or infinite values, there are no cells, or no
        gene matches.
    OptionError
        If ``model`` is not the model of the reference, or cannot be found.

    See Also
    --------
    scgalore.tl.build_reference : Build a reference of labelled cells.
    scgalore.tl.annotate : Predict labels or values of new cells.

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
    RunOptions.of(**how)  # raises before anything is read
    _check_unknown(unknown)
    reference = read_reference(index) if isinstance(index, str | os.PathLike) else index
    if not isinstance(reference, Reference):
        msg = f"index is a {type(reference).__name__}; pass the reference returned by sg.tl.build_reference, or the path of its file."
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
            obs={keys.novelty: (novelty, "relative distance to the reference")},
            obsm={
                keys.embedding: (output.embedding, "cell embeddings"),
                keys.neighbors: (neighbors, "indices of neighbours in the reference"),
                keys.distances: (found.distances, "distances to these neighbours"),
            },
        )
        if reference.cells.coordinates is not None:
            results.obsm[keys.coordinates] = (reference.placed(found), "coordinates in the plot of the reference")
        of_labels = {
            name: _label(results, reference, found, name, keys, unknown, far & (not label_far))
            for name in reference.labels
        }
        _report(far, label_far=label_far)
        params = {"unknown": unknown, "label_far": label_far, **reading.of_tokens(), "batch_key": batch_key}
        params |= output.arithmetic
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
    """Warn if the query lacks genes of every source of the reference, or has many more, which shifts its embeddings."""
    n = len(of_query)
    counts = [(len(np.intersect1d(of_query, genes)), len(genes)) for genes in of_reference]
    if any(shared >= LEAST_SHARED * own and n <= MOST_GENES * own for shared, own in counts):
        return
    shared, own = max(counts, key=lambda count: count[0] / (n + count[1] - count[0]))
    logg.warning(
        f"The query has {shared:,} of the {own:,} genes of the reference that are in the model's vocabulary, and {n - shared:,} others, so "
        "labels are less reliable and cells of known types may appear far from the reference. Restrict both to their common genes: the reference "
        "before it is built, the query before it is mapped."
    )


def _check_unknown(unknown: object) -> None:
    if unknown is not None and not (is_number(unknown) and 0 < float(unknown) < 1):  # type: ignore[arg-type]
        msg = (
            f"unknown={unknown!r}: it must be a number between 0 and 1, the accepted fraction of wrong labels among the labelled "
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
    """Add the labels of one column to the results and return what to record about it."""
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
        # If even the least certain cells of the reference may keep their labels, no threshold is needed.
        threshold = 0.0 if at == len(curve.thresholds) - 1 else curve.thresholds[at]
        uncertain = score < threshold
        bound = float(curve.bounds()[at])
        record |= {"threshold": threshold, "error_bound": bound, "promised": promised}
        if not promised:
            logg.warning(
                f"unknown={unknown:g} cannot be guaranteed for {name!r}: too many held-out cells of the reference get a wrong "
                f"label with a high probability, or there are too few of them. The threshold with the lowest bound, {bound:.3g}, is used instead."
            )
    # A class that is already named "unknown" is kept as the same class.
    classes = [*column.classes] if UNKNOWN in column.classes else [*column.classes, UNKNOWN]
    codes[far | uncertain] = classes.index(UNKNOWN)
    record |= {"n_unknown": int((far | uncertain).sum()), "n_uncertain": int(uncertain.sum())}
    results.obs[keys.label(name)] = (pd.Categorical.from_codes(codes, categories=pd.Index(classes)), f"labels, {name}")
    results.obs[keys.score(name)] = (score, "probabilities of these labels")
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
            f"{far.sum():,} of {n:,} cells are far from the reference: new cell types, or a technical difference. For the latter, build the "
            "reference with batch_key=, or from more batches. label_far=True labels these cells anyway."
        )
