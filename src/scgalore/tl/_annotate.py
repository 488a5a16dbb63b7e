"""Predict labels or values of new cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import CellKeys
from scgalore._rng import seed_from
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import refuse_overwrite
from scgalore.errors import OptionError
from scgalore.model.inference import RunOptions
from scgalore.tasks.registry import task_named
from scgalore.tl._shared import as_model, provenance

if TYPE_CHECKING:
    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import CellModel


@shared_parameters
def annotate(
    query: Data,
    model: PathLike | CellModel,
    *,
    unknown: float | None = None,
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
    devices: int | str | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Predict classes or values of cells with a fine-tuned model.

    Genes are matched by name; the query may contain other genes than the training data.

    Parameters
    ----------
    {query}
    model
        Model returned by :func:`scgalore.tl.finetune`, or a folder it was saved to.
    unknown
        Accepted fraction of wrong labels among the labelled cells, such as 0.05; all other cells are labelled
        ``"unknown"``. A cell is unknown if the probability of its label is below a threshold: the lowest one at which,
        on the validation cells of training, the upper 95 % confidence bound on the fraction of wrong labels is at most
        ``unknown``. With too few validation cells for that, a warning is logged and the threshold with the lowest bound
        is used. A cell is also unknown if it is less similar to the training cells than 95 % of the validation cells,
        as is often the case for cell types absent from training. The error rate holds for classes and data like those
        of training; it is not guaranteed for new types. ``None`` labels every cell. See :doc:`/concepts/unknown-cells`.
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
    {devices}
    {rng}
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.obs['scgpt_label' | key_added + '_label']` : :class:`pandas.Categorical`
        Most probable class; with ``unknown``, ``"unknown"`` for cells that get no label.
    `adata.obs['scgpt_label_score' | key_added + '_label_score']` : :class:`numpy.ndarray` (dtype `float32`)
        Probability of the most probable class, calibrated on the validation cells of training.
    `adata.obs['scgpt_novelty' | key_added + '_novelty']` : :class:`numpy.ndarray` (dtype `float32`)
        Dissimilarity of each cell to the training cells, about 1 for cells like these; only with ``unknown``.
    `adata.obsm['scgpt_probabilities' | key_added + '_probabilities']` : :class:`numpy.ndarray` (shape `(n_obs, n_classes)`, dtype `float32`)
        Probability of each class, in the order of ``uns[...]['classes']``.
    `adata.obsm['X_scGPT' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings with unit norm.
    `adata.obs['scgpt_value' | key_added + '_value']` : :class:`numpy.ndarray` (dtype `float32`)
        Predicted value, instead of the first three keys, for a model fine-tuned with ``values_key``.
    `adata.uns['annotate' | key_added]` : :class:`dict`
        ``params``, ``calibration`` (temperature, number of validation cells, and their expected calibration error with
        and without it), ``unknown`` (thresholds, number of unknown cells by reason), ``classes`` (or ``column``,
        ``mean`` and ``std`` of the values), ``weights``, ``genes`` and ``version``.

    Raises
    ------
    OptionError
        If the model was not fine-tuned to predict classes or values, or if ``unknown`` is given and the model was
        trained without validation cells or saved by version 0.5.0.
    DataError
        If the matrix contains negative, NaN or infinite values, no gene matches, or a cell expresses no matched gene.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.tl.map_to_reference : Transfer labels from a reference.
    scgalore.pl.confusion_matrix : Draw true and predicted labels.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=1)
    >>> sg.tl.annotate(adata, model)
    """
    seed = seed_from(rng)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    refuse_overwrite(CellKeys.from_key_added(key_added, uns="annotate").slots, reading.reads())
    how: dict[str, Any] = {
        "precision": precision,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "accelerator": accelerator,
        "devices": devices,
    }
    RunOptions.of(**how)  # raises before anything is read
    data = copied(query, mod=mod) if copy else query
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={}, gene_symbols=gene_symbols)
    fitted = as_model(model)
    memory = fitted.require_memory()
    task, keys = task_named(memory.task), fitted.keys("annotate", key_added)
    if not task.predicts:
        msg = f"A model trained for task={task.name!r} cannot annotate cells. Use sg.tl.embed(adata, model)."
        raise OptionError(msg)
    rule = None if unknown is None else task.unknown_rule(memory, unknown)
    with logg.step(f"annotating {adata.n_obs:,} cells with {fitted.provenance['name']}") as step:
        cells = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed)
        output = task.complete(fitted.run(cells, **how), memory, adata, reading)
        results = task.predictions(output, memory, keys)
        found = results.uns.pop(keys.uns, ({}, ""))[0]
        if rule is not None:
            found["unknown"] = rule.apply(results, cells, keys)
        results.obsm[keys.embedding] = (output.embedding, "cell embeddings")
        params = {
            "unknown": unknown,
            **reading.of_tokens(),
            "max_length": max_length,
            **output.arithmetic,
            "rng": seed,
        }
        content = {"params": params, **memory.to_config(), **found, **provenance(fitted, cells)}
        results.uns[keys.uns] = (content, "parameters and provenance")
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None
