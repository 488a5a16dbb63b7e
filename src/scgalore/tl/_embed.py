"""Cell embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import CellKeys
from scgalore._rng import seed_from
from scgalore.data.reading import Reading
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.model.inference import RunOptions
from scgalore.tasks.proteins import with_measured
from scgalore.tl._shared import as_model, measured_proteins, provenance, read_measured
from scgalore.weights import get_entry, list_weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import CellModel


@shared_parameters
def embed(
    data: Data,
    model: PathLike | CellModel = "scgpt",
    *,
    protein: str | AnnData | None = None,
    protein_layer: str | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str | Sequence[str] = "rna",
    batch_key: str | None = None,
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
    """Embed cells with a foundation model :cite:p:`Cui2024`.

    Expressed genes of the model's vocabulary become tokens; the embedding is the output of the last layer at the
    ``<cls>`` token, with unit norm. Counts and log-normalised values give nearly the same embedding, since values are
    binned within each cell. The embedding of a cell depends only on the cell, the weights and ``rng``. scBERT reads all
    genes of its vocabulary and averages over tokens: :doc:`/scbert`.

    Parameters
    ----------
    {data}
    {model}
    protein
        Antibody counts of the same cells, a key of ``adata.obsm`` or an AnnData: RNA and proteins are embedded
        together, by a model fine-tuned with ``task="multiomic"``.
    protein_layer
        Layer of the AnnData with the proteins; ``None`` reads its X.
    {layer}
    {gene_symbols}
    {data_type}
    {species}
    {min_matched}
    mod
        Modality of a MuData to use; with two, ``["rna", "prot"]``, the second one is ``protein``.
    batch_key
        For a model fine-tuned with ``task="integration"``: column of ``adata.obs`` with the batch of each cell;
        ``None`` uses the column name from training. Cells of training batches are corrected one by one. The effect of a
        new batch is estimated from its cells, which should be numerous and of the cell types seen in training.
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

    `adata.obsm['X_scGPT' | 'X_scBERT' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings with unit norm; for a model that removes batch effects, up to 50 components without unit norm.
    `adata.obsm['X_scGPT_multi' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings of RNA and proteins together, instead of the first key, if ``protein`` is given.
    `adata.uns['embed' | key_added]` : :class:`dict`
        ``params``, ``weights`` (name, sha256), ``genes`` (matched, dropped) and ``version``.

    Raises
    ------
    DataError
        If the matrix contains negative, NaN or infinite values, no gene matches, or a cell expresses no matched gene.
    MissingKeyError
        If ``layer``, ``gene_symbols`` or ``mod`` does not exist.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.tl.gene_embeddings : Embed genes.
    scgalore.tl.evaluate_integration : Score embeddings by batch mixing and separation of labels.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> sg.tl.embed(adata, "scgpt-mini")
    >>> sc.pp.neighbors(adata, use_rep="X_scGPT")
    """
    seed = seed_from(rng)
    mod, protein = measured_proteins(data, mod, protein)
    reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
    reads = [*reading.reads(), ("obs", "batch_key=", batch_key)]
    reads.append(("obsm", "protein=", protein if isinstance(protein, str) else None))
    refuse_overwrite(CellKeys.from_key_added(key_added, uns="embed").slots, reads)
    how: dict[str, Any] = {
        "precision": precision,
        "batch_size": batch_size,
        "batch_tokens": batch_tokens,
        "accelerator": accelerator,
        "devices": devices,
    }
    RunOptions.of(**how)  # raises before anything is read
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    refuse_elsewhere(data, mod=mod, obs={"batch_key": batch_key}, gene_symbols=gene_symbols)
    fitted = as_model(model)
    measured = read_measured(adata, protein, protein_layer)
    _report_quality(fitted, adata)
    keys = fitted.keys("embed", key_added)
    with logg.step(f"embedding {adata.n_obs:,} cells with {fitted.provenance['name']}") as step:
        cells, key = fitted.cells(adata, **reading.of_tokens(), max_length=max_length, rng=seed), keys.embedding
        if measured is not None:
            cells, key = with_measured(cells, measured, fitted.vocab), keys.joint
        output = fitted.embed(cells, adata, reading, batch_key=batch_key, **how)
        params = {
            **reading.of_tokens(),
            "batch_key": batch_key,
            "max_length": max_length,
            **output.arithmetic,
            "rng": seed,
        }
        Results(
            obsm={key: (output.embedding, "cell embeddings")},
            uns={keys.uns: ({"params": params, **provenance(fitted, cells)}, "parameters and provenance")},
        ).write(data, adata, mod=mod, step=step)
    return data if copy else None


def _report_quality(fitted: CellModel, adata: AnnData) -> None:
    """Log, once per object, the known quality of embeddings by released weights without fine-tuning."""
    name = fitted.provenance["name"]
    known = get_entry(name).zero_shot if name in list_weights() else ""
    if known and logg.is_news(adata, known):
        logg.info(f"{name}: {known}")
