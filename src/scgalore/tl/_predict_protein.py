"""Predict proteins from RNA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import CellKeys
from scgalore._rng import seed_from
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import refuse_overwrite
from scgalore.errors import OptionError
from scgalore.model.inference import RunOptions
from scgalore.tasks.multiomic import Multiomic
from scgalore.tasks.proteins import MultiomicMemory, pearson_of_shared
from scgalore.tl._shared import as_model, measured_proteins, provenance, read_measured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import CellModel


@shared_parameters
def predict_protein(
    query: Data,
    model: PathLike | CellModel,
    *,
    protein: str | AnnData | None = None,
    protein_layer: str | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str | Sequence[str] = "rna",
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
    """Predict surface proteins of cells from RNA, with a model fine-tuned on cells with both.

    The prediction is a ridge regression of each protein on all genes, to which the network adds a correction unless
    that makes predictions of held-out cells worse; see :doc:`/protein`.

    Parameters
    ----------
    {query}
    model
        Model returned by :func:`scgalore.tl.finetune` with ``task="multiomic"``, or a folder it was saved to.
    protein
        Measured antibody counts to compare with, as for :func:`scgalore.tl.finetune`: a key of ``adata.obsm``, or an
        AnnData. With a MuData and two modalities in ``mod``, the second one. ``None`` predicts only.
    protein_layer
        Layer of the AnnData with the proteins; ``None`` reads its X.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    mod
        Modality of a MuData with the RNA; with ``["rna", "prot"]``, predictions are compared with the second.
    max_length
        Maximum number of tokens per cell; the genes of longer cells are sampled, using ``rng``. ``None`` uses the
        length the weights were trained with.
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

    `adata.obsm['scgpt_protein' | key_added + '_protein']` : :class:`numpy.ndarray` (shape `(n_obs, n_proteins)`, dtype `float32`)
        Centred log-ratios: logarithms of counts plus 1, relative to their mean over the proteins of the cell. The index
        of ``uns[...]['proteins']`` names the columns.
    `adata.uns['predict_protein' | key_added]` : :class:`dict`
        ``params``, ``proteins`` (one row per protein, in the order of the columns: gene, whether the network corrects
        it and, with ``protein=``, the Pearson correlation across cells of the prediction and of the ridge regression
        alone), ``weights``, ``genes`` and ``version``.

    Raises
    ------
    OptionError
        If the model was not fine-tuned with ``task="multiomic"``.
    DataError
        If the matrix contains negative, NaN or infinite values, no gene matches, or ``protein`` has none of the model's
        proteins.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.tl.embed : Embed cells without training.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> counts = np.random.default_rng(0).poisson(5, (adata.n_obs, 3))  # instead of measured ones
    >>> adata.obsm["protein_expression"] = pd.DataFrame(counts, adata.obs_names, ["CD3", "CD4", "CD19"])
    >>> model = sg.tl.finetune(adata, "scgpt-mini", task="multiomic", max_epochs=1)
    >>> sg.tl.predict_protein(adata, model)
    >>> adata.obsm["scgpt_protein"].shape[1]
    3
    """
    seed = seed_from(rng)
    mod, protein = measured_proteins(query, mod, protein)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    reads = [*reading.reads(), ("obsm", "protein=", protein if isinstance(protein, str) else None)]
    refuse_overwrite(CellKeys.from_key_added(key_added, uns="predict_protein").slots, reads)
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
    memory, task = fitted.memory, Multiomic()
    if not isinstance(memory, MultiomicMemory):
        msg = f"{fitted.provenance['name']!r} was not trained to predict proteins. Fine-tune it first: sg.tl.finetune(data, task='multiomic')."
        raise OptionError(msg)
    measured = read_measured(adata, protein, protein_layer)
    truth = None if measured is None else memory.measured_in(measured)
    keys = fitted.keys("predict_protein", key_added)
    with logg.step(f"predicting proteins of {adata.n_obs:,} cells with {fitted.provenance['name']}") as step:
        cells = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed)
        output = fitted.run(cells, **how)
        results = task.predictions(task.complete(output, memory, adata, reading), memory, keys)
        proteins = pd.DataFrame(
            {"gene": list(memory.genes), "corrected": list(memory.corrects)},
            index=pd.Index(memory.proteins, name="protein"),
        )
        if truth is not None:
            assert memory.prior is not None
            ridge = memory.values(memory.prior.predict(adata, reading))
            proteins["pearson"] = pearson_of_shared(results.obsm[keys.protein][0], truth)
            proteins["pearson_ridge"] = pearson_of_shared(ridge, truth)
        params = {**reading.of_tokens(), "max_length": max_length, **output.arithmetic, "rng": seed}
        content = {"params": params, "proteins": proteins, **provenance(fitted, cells)}
        results.uns[keys.uns] = (content, "parameters, proteins and provenance")
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None
