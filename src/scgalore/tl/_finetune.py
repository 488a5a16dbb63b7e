"""Fine-tuning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import LabelKeys
from scgalore._rng import seed_from
from scgalore.data.labels import encode_labels
from scgalore.data.split import PARTS, Split, random_split, split_from_labels
from scgalore.errors import DataError, MissingKeyError
from scgalore.tl._curriculum import curriculum_ranks, ranked_key
from scgalore.tl._finetune_screen import SCREEN_DEFAULTS, check_task, finetune_screen
from scgalore.tl._fitted import free_folder, record_model
from scgalore.tl._labels import label_metrics, label_results
from scgalore.tl._shared import as_model, provenance, writable_adata
from scgalore.train.config import TrainConfig
from scgalore.train.processes import training_processes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import SCGPT


@shared_parameters
def finetune(
    data: Data,
    model: PathLike | SCGPT = "scgpt",
    *,
    task: str | None = None,
    labels_key: str | None = None,
    pert_key: str | None = None,
    control: str | None = None,
    context_key: str | None = None,
    batch_key: str | None = None,
    separator: str | None = None,
    prior: str | None = None,
    n_genes: int | None = None,
    genes_key: str | None = None,
    optimizer: str = "galore",
    adapter: str | None = None,
    embedding: str = "rows",
    layer: str | None = None,
    gene_symbols: str | None = None,
    mod: str = "rna",
    split_key: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.1,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    save_dir: PathLike | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    **train_options: Any,
) -> SCGPT:
    """Fine-tune a foundation model on your cells :cite:p:`Cui2024,Zhao2024`.

    With ``labels_key`` the model learns to name the classes; with ``task="perturbation"``, to predict expression after
    perturbations; without either, it goes on with masked expression, the objective it was pre-trained with. The weights of
    the epoch with the lowest validation loss are kept, with perturbations those of the best effects on validation
    perturbations. Results are written to the AnnData, and the model is returned, since weights cannot live there.

    Parameters
    ----------
    {data}
    model
        Name in the registry of weights, folder of a checkpoint, or a :class:`scgalore.model.SCGPT`, which is then trained
        in place.
    task
        ``"classes"``, ``"expression"`` or ``"perturbation"``; ``None`` is ``"classes"`` with ``labels_key`` and
        ``"expression"`` without.
    {labels_key}
    {pert_key}
    {control}
    {context_key}
    batch_key
        Column of ``adata.obs`` with batches: perturbed cells are paired with control cells of their own batch.
    {separator}
    prior
        For perturbations, the rule that the network corrects: ``"mixed"`` (the default; additive effects of genes, shrunken),
        ``"additive"``, ``"ridge"``, ``"linear"``, or ``"none"``, with which the network predicts expression itself, as
        upstream. See :func:`scgalore.perturb.fit_effects`.
    n_genes
        For perturbations, genes of a training step, drawn anew for each; perturbed genes are always among them. ``None``
        takes all.
    genes_key
        For a ``curriculum=``: what :func:`scgalore.tl.select_genes` has ranked the genes under. ``None`` is ``"selected"``
        where that is there; else the training cells are ranked as it does it by default, for perturbations with the strategy
        ``"perturbation"``.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`: ``"galore"`` keeps low-rank optimizer state, ``"adamw"`` full state;
        :doc:`/optimizers` compares all of them.
    adapter
        Entry of :data:`scgalore.adapters.ADAPTERS`, such as ``"lora"``, to train low-rank factors in place of weights;
        ``None`` trains the weights.
    embedding
        Entry of :data:`scgalore.nn.EMBEDDINGS`: ``"rows"`` trains the embeddings of the genes at hand, ``"full"`` the
        whole table, ``"frozen"`` none.
    {layer}
    {gene_symbols}
    {mod}
    split_key
        Column of ``adata.obs`` with ``"train"``, ``"validation"`` or ``"test"`` for each cell; a random split within the
        classes when left out. Perturbations: ``"split"`` where :func:`scgalore.pp.split_perturbations` has written it, else
        a simulation split.
    validation_size, test_size
        Shares of the cells that choose the best epoch and that are held out, for the random split of cells; perturbations
        are split by :func:`scgalore.pp.split_perturbations`.
    checkpoint_dir
        Folder that gets a checkpoint after each epoch.
    resume
        Whether to continue from the checkpoint there, if any. The result is, bit for bit, that of an uninterrupted run.
    save_dir
        Folder that the model is saved to, made by this call. A model of perturbations brings ``training_stats.json`` and a
        model card.
    {rng}
    {key_added}
    **train_options
        Fields of :class:`~scgalore.train.TrainConfig`, such as ``max_epochs``, ``batch_size``, ``batch_tokens``,
        ``max_length``, ``curriculum`` (few genes first, then more), ``lr``, ``patience``, ``precision``, ``gradient_checkpointing``, ``devices``, ``optimizer_options`` or
        ``adapter_options``. How several processes train together: :doc:`/distributed`.

    Returns
    -------
    The fitted model. These keys are set, those of labels only with ``labels_key``, and with ``task="perturbation"`` only
    the last but one, in which ``stats`` and ``perturbations`` take the place of metrics and classes:

    `adata.obsm['X_scGPT' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings with unit norm.
    `adata.obs['scgpt_label' | key_added + '_label']` : :class:`pandas.Categorical`
        Most probable class.
    `adata.obs['scgpt_label_score' | key_added + '_label_score']` : :class:`numpy.ndarray` (dtype `float32`)
        Its probability.
    `adata.obs['scgpt_split' | key_added + '_split']` : :class:`pandas.Categorical`
        Part of the data: train, validation or test.
    `adata.obsm['scgpt_probabilities' | key_added + '_probabilities']` : :class:`numpy.ndarray` (shape `(n_obs, n_classes)`, dtype `float32`)
        Probability of each class, in the order of ``uns[...]['classes']``.
    `adata.uns['finetune' | key_added]` : :class:`dict`
        ``params``, ``history`` (one row an epoch), ``metrics`` (one row a part: accuracy with its standard error, macro
        F1, majority baseline, number of cells), ``classes``, ``split`` (sizes), ``training`` (best epoch, bytes of
        optimizer state, steps, batch size), ``weights`` (name and sha256 of those it started from), ``genes`` and ``version``.
    `adata.uns['scgpt_label_colors' | key_added + '_label_colors']` : :class:`numpy.ndarray`
        Colours of the classes, if the labels have some.

    Raises
    ------
    DataError
        If the matrix or the labels cannot be used.
    MissingKeyError
        If a named column, layer or modality does not exist.
    OptionError
        If an option does not exist or is out of range. In all three cases nothing has been trained or written.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=1)
    >>> adata.obs["scgpt_label"].dtype.name
    'category'
    """
    adata = writable_adata(data, mod=mod)
    keys = LabelKeys.from_key_added(key_added, uns="finetune")
    screened = {
        "pert_key": pert_key,
        "control": control,
        "context_key": context_key,
        "batch_key": batch_key,
        "separator": separator,
        "prior": prior,
        "n_genes": n_genes,
    }
    seed = seed_from(rng)
    options = {"optimizer": optimizer, "adapter": adapter, "embedding": embedding, **train_options}
    if check_task(task, labels_key, screened) == "perturbation":
        options = {**SCREEN_DEFAULTS, **options}
    config = TrainConfig.from_call(options, seed=seed, function=finetune)
    training_processes(config)  # before anything is read
    genes_key = ranked_key(adata, config, genes_key)
    if config.curriculum is not None:
        options["genes_key"] = genes_key  # which ranking it was, for uns
    folder = None if save_dir is None else free_folder(save_dir)
    if task == "perturbation":
        return finetune_screen(
            data,
            adata,
            model,
            config,
            read={**screened, "split_key": split_key, "layer": layer, "gene_symbols": gene_symbols},
            options=options,
            genes_key=genes_key,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            save_dir=folder,
            key=keys.uns,
            mod=mod,
        )
    codes, classes = (None, ()) if labels_key is None else encode_labels(adata, labels_key)
    split = _split(adata, split_key, codes, validation_size=validation_size, test_size=test_size, seed=seed)
    seen = np.isin(np.arange(adata.n_obs), split.train)
    ranks = curriculum_ranks(adata, config, genes_key, train=seen, layer=layer, gene_symbols=gene_symbols)
    fitted = as_model(model)
    start = dict(fitted.provenance)
    sizes = {"validation_size": validation_size, "test_size": test_size}
    parts_of = sizes if split_key is None else {"split_key": split_key}
    read: dict[str, Any] = {"layer": layer, "gene_symbols": gene_symbols, "rng": seed}
    with logg.step(f"fine-tuning {start['name']} on {len(split.train):,} of {adata.n_obs:,} cells") as step:
        cells = fitted.cells(adata, **read)
        if codes is not None:
            cells = cells.with_labels(codes, classes)
        if ranks is not None:
            cells = cells.with_ranks(ranks)
        fitted.fit(cells, split, config, checkpoint_dir=checkpoint_dir, resume=resume)
        output = fitted.run(cells, accelerator=config.accelerator)
        results = label_results(output, fitted.classes if codes is not None else (), keys)
        parts = pd.Categorical(split.labels(), categories=list(PARTS))
        results.obs[keys.split] = (parts, "parts of the data")
        content = {
            "params": {"labels_key": labels_key, **parts_of, **read, **options},
            "history": fitted.history,
            "split": split.sizes(),
            "training": fitted.training,
            **provenance(fitted, cells),
            "weights": start,
            "model": record_model(fitted, folder),
        }
        if folder is not None:
            fitted.save(folder)
        if codes is not None and output.probabilities is not None:
            content["classes"] = list(fitted.classes)
            colors = adata.uns.get(f"{labels_key}_colors", ())
            if len(colors) == len(fitted.classes):  # scanpy's, so that a class has one colour in both plots
                results.uns[keys.colors] = (colors, "their colours")
            content["metrics"] = label_metrics(output.probabilities.argmax(axis=1), codes, split)
        results.uns[keys.uns] = (content, "parameters, history, metrics, provenance")
        results.write(data, adata, mod=mod, step=step)
    return fitted


def _split(
    adata: AnnData,
    split_key: str | None,
    codes: NDArray[np.int64] | None,
    *,
    validation_size: float,
    test_size: float,
    seed: int,
) -> Split:
    if split_key is None:
        return random_split(adata.n_obs, validation_size=validation_size, test_size=test_size, strata=codes, seed=seed)
    if split_key not in adata.obs:
        msg = f"No column {split_key!r} in adata.obs; it has {list(adata.obs.columns)}."
        raise MissingKeyError(msg)
    try:
        return split_from_labels(adata.obs[split_key].astype(str).tolist())
    except DataError as error:
        msg = f"adata.obs[{split_key!r}] is no split. {error}"
        raise DataError(msg) from error
