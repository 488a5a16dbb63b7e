"""Fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import check_key
from scgalore._rng import seed_from
from scgalore.data.reading import Reading
from scgalore.data.resolve import refuse_elsewhere, writable_adata
from scgalore.data.results import refuse_overwrite
from scgalore.model.card import run_record
from scgalore.model.distributed import by_first
from scgalore.model.families import known_keys
from scgalore.tasks.registry import TASKS, resolve_call
from scgalore.tl._declared import with_task_arguments, with_training_options
from scgalore.tl._fitted import free_folder, kept_loss, record_model
from scgalore.tl._shared import as_model, measured_proteins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import CellModel
    from scgalore.train.config import Accelerator, Precision
    from scgalore.train.loggers import Loggers


@shared_parameters
@with_task_arguments
@with_training_options
def finetune(
    data: Data,
    model: PathLike | CellModel = "scgpt",
    *,
    task: str | None = None,
    genes_key: str | None = None,
    optimizer: str = "galore",
    adapter: str | None = None,
    embedding: str = "rows",
    max_epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    lr: float | None = None,
    max_length: int | None = None,
    patience: int | None = None,
    precision: Precision = "32-true",
    curriculum: bool | Sequence[int] | Mapping[int, int] | None = None,
    accelerator: Accelerator | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    depth_key: str | None = None,
    species: str = "human",
    min_matched: float | None = None,
    mod: str | Sequence[str] = "rna",
    split_key: str | None = None,
    validation_size: float = 0.1,
    test_size: float = 0.1,
    checkpoint_dir: PathLike | None = None,
    resume: bool = False,
    save_dir: PathLike | None = None,
    logger: Loggers = None,
    rng: Rng = 0,
    key_added: str | None = None,
    **options: Any,
) -> CellModel:
    """Fine-tune a foundation model on your cells :cite:p:`Cui2024,Zhao2024`.

    The task depends on the key argument. With ``labels_key`` the model learns to predict classes, with ``values_key`` a
    number per cell, with ``pert_key`` expression after perturbations, with ``protein`` RNA and proteins together; with
    none of them, pre-training continues (masked expression). With ``task="integration"`` and ``batch_key`` it learns
    embeddings without batch effects (:doc:`/integration`). The weights of the epoch with the best validation score are
    kept. Results are written to the AnnData; the model is returned, since an AnnData cannot store weights.

    Parameters
    ----------
    {data}
    model
        Name in the registry of weights, folder of a checkpoint, or a model such as :class:`scgalore.model.SCGPT`, which
        is then trained in place and returned. To keep it unchanged, pass its folder instead.
    task
        Entry of :data:`scgalore.tasks.TASKS`: ``"classes"``, ``"regression"``, ``"expression"``, ``"perturbation"``,
        ``"integration"`` or ``"multiomic"``. By default the task whose key argument is given, else ``"expression"``;
        integration must always be named.
    {task_arguments}
    genes_key
        For ``curriculum=``: key under which :func:`scgalore.tl.select_genes` stored the ranking of genes. By default
        ``"selected"`` if present; otherwise the genes are ranked on the training cells.
    optimizer
        Entry of :data:`scgalore.optim.OPTIMIZERS`: ``"galore"`` keeps low-rank optimizer state, ``"adamw"`` full state;
        :doc:`/optimizers` compares all of them.
    adapter
        Entry of :data:`scgalore.adapters.ADAPTERS`, such as ``"lora"``, to train low-rank factors instead of the
        weights; ``None`` trains the weights.
    embedding
        Entry of :data:`scgalore.nn.EMBEDDINGS`: ``"rows"`` trains the embeddings of the genes in the data, ``"full"``
        the whole table, ``"frozen"`` none.
    {training_options}
    {layer}
    {gene_symbols}
    {data_type}
    {depth_key}
    {species}
    {min_matched}
    mod
        Modality of a MuData to use. With ``task="multiomic"``, those of RNA and proteins, ``["rna", "prot"]``.
    split_key
        Column of ``adata.obs`` with ``"train"``, ``"validation"`` or ``"test"`` for each cell; by default a random
        split, stratified by class if there are classes. Perturbations: ``"split"`` if
        :func:`scgalore.pp.split_perturbations` has written it for this ``pert_key`` (as recorded in ``uns``), else that
        function's default split, which is written to ``"split"``, or to ``"perturbation_split"`` if another column has
        that name.
    validation_size, test_size
        Fractions of the cells used for validation (selecting the epoch) and testing, for the random split of cells;
        perturbations are split by :func:`scgalore.pp.split_perturbations`.
    checkpoint_dir
        Folder for a checkpoint after each epoch and, with ``checkpoint_every``, within epochs.
    resume
        Whether to resume from the checkpoint in that folder, if any. The result is bit-identical to that of an
        uninterrupted run. With a larger ``max_epochs``, a finished run also continues from its last epoch: from there,
        the learning rate follows the schedule of the longer run (with ``lr_schedule="constant"`` and ``warmup=0`` the
        result is that of a run started with as many epochs), and the last phase of a curriculum gets the additional
        epochs. A larger ``patience``, or none, continues a run that stopped early. Without ``max_epochs`` a run keeps
        its original value. All other options must be unchanged.
    save_dir
        New folder to save the model to.
    logger
        ``"csv"`` or ``"tensorboard"``, which write to ``logs`` in ``checkpoint_dir``, any Lightning logger, such as
        ``WandbLogger(project="cells")`` or ``MLFlowLogger()``, or a list of these. They receive the loss and learning
        rate of every tenth step, and the losses and scores of each epoch.
    {rng}
    {key_added}
    **options
        Further fields of :class:`~scgalore.train.TrainConfig`, such as ``batch_tokens``, ``accumulate``, ``lr_schedule``,
        ``weight_decay``, ``gradient_checkpointing``, ``devices``, ``optimizer_options`` or ``adapter_options``. For
        training with several processes, see :doc:`/distributed`.

    Returns
    -------
    The fitted model. These keys are set, depending on the task:

    `adata.obsm['X_scGPT' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings with unit norm; not for perturbations. With ``task="integration"``, up to 50 components without batch
        effects and without unit norm.
    `adata.obsm['X_scGPT_multi' | key_added]` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embeddings of RNA and proteins together, with unit norm, instead of the first key for ``task="multiomic"``.
    `adata.obsm['scgpt_protein' | key_added + '_protein']` : :class:`numpy.ndarray` (shape `(n_obs, n_proteins)`, dtype `float32`)
        Proteins predicted from RNA alone, as centred log-ratios; the index of ``uns[...]['proteins']`` names the
        columns.
    `adata.obs['scgpt_split' | key_added + '_split']` : :class:`pandas.Categorical`
        Split of each cell: train, validation or test. For perturbations it is in ``"split"``, see ``split_key``.
    `adata.obs['scgpt_label' | key_added + '_label']` : :class:`pandas.Categorical`
        Most probable class.
    `adata.obs['scgpt_label_score' | key_added + '_label_score']` : :class:`numpy.ndarray` (dtype `float32`)
        Probability of that class, calibrated on the validation cells if there are at least 50.
    `adata.obsm['scgpt_probabilities' | key_added + '_probabilities']` : :class:`numpy.ndarray` (shape `(n_obs, n_classes)`, dtype `float32`)
        Probability of each class, in the order of ``uns[...]['classes']``.
    `adata.obs['scgpt_value' | key_added + '_value']` : :class:`numpy.ndarray` (dtype `float32`)
        Predicted value, on the scale of ``values_key``.
    `adata.uns['finetune' | key_added]` : :class:`dict`
        ``params``, ``history`` (one row per epoch), ``training`` (best epoch, bytes of optimizer state, steps, batch
        size, ``max_epochs`` and ``patience`` as chosen, and ``converged``: whether the validation score had stopped
        improving), ``weights`` (name and sha256 of the initial weights) and ``version``; ``split`` (sizes), ``genes``,
        and ``metrics`` (one row per split: accuracy with its standard error, macro F1, majority baseline, number of
        cells; or R2, Spearman correlation and mean absolute error); ``classes``, and ``class_weights`` in the same
        order, if the loss is weighted; ``calibration`` of their probabilities (temperature, and the expected
        calibration error of each split); ``prior`` (scores of the linear model alone; ``gain``, the accuracy added by
        the network; the candidates of cross-validation; the gain of the ``correction`` that training starts from; and
        the number of ``unlabelled`` cells used per class), see :doc:`/concepts/prior`; with a
        prior, training and validation cells are scored by models that were not fitted to them;
        for perturbations ``stats`` and ``perturbations``; for integration ``batches`` (number of cells per batch).
    `adata.uns['scgpt_label_colors' | key_added + '_label_colors']` : :class:`numpy.ndarray`
        Colours of the classes, if the labels have colours.

    Raises
    ------
    DataError
        If the matrix or the targets cannot be used.
    MissingKeyError
        If a named column, layer or modality does not exist.
    OptionError
        If an option does not exist, is out of range or belongs to another task, or if results would overwrite a column
        that is read, such as ``labels_key="scgpt_label"`` without ``key_added``. All three errors are raised before
        training, and nothing is written.

    See Also
    --------
    scgalore.tl.annotate : Predict labels or values of new cells.
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.tl.predict_protein : Predict surface proteins from RNA.
    scgalore.tl.pretrain : Pre-train a model on files of cells.
    scgalore.pl.history : Draw losses and scores by epoch.
    scgalore.pl.confusion_matrix : Draw true and predicted labels.
    scgalore.estimate_memory : Estimate the memory of fine-tuning.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=1)
    >>> adata.obs["scgpt_label"].dtype.name
    'category'
    """
    mod, protein = measured_proteins(data, mod, options.pop("protein", None))
    if protein is not None:
        options["protein"] = protein
    adata = writable_adata(data, mod=mod)
    check_key(key_added)
    chosen, call = resolve_call(
        {
            "optimizer": optimizer,
            "adapter": adapter,
            "embedding": embedding,
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "lr": lr,
            "max_length": max_length,
            "patience": patience,
            "precision": precision,
            "curriculum": curriculum,
            "accelerator": accelerator,
            **options,
        },
        task=task,
        seed=seed_from(rng),
        function=finetune,
        reading=Reading(layer, gene_symbols, data_type, depth_key, species, min_matched),
        split_key=split_key,
        validation_size=validation_size,
        test_size=test_size,
        genes_key=genes_key,
    )
    columns = {option.name: call.arguments.get(option.name) for option in chosen.arguments if option.column == "obs"}
    columns |= {"split_key": split_key, "depth_key": depth_key}
    refuse_elsewhere(data, mod=mod, obs=columns, gene_symbols=gene_symbols)
    known, reads = known_keys(model, "finetune", key_added), chosen.reads(call)
    if known is not None:  # before the weights are loaded
        refuse_overwrite(chosen.writes(known, call), reads, data=data, mod=mod)
    folder = None if save_dir is None else free_folder(save_dir)
    reading = chosen.read(adata, call)
    fitted = as_model(model)
    chosen.require(fitted)
    start, keys = dict(fitted.provenance), fitted.keys("finetune", key_added)
    refuse_overwrite(chosen.writes(keys, call), reads, data=data, mod=mod)
    goal = chosen.goal(call.arguments).replace("`", "")
    with logg.step(f"fine-tuning {start['name']} {goal}, on {reading.title}") as step:
        if task is None and chosen.key is None:
            *others, last = [f"{one.key}=" for one in TASKS.values() if one.key is not None]
            logg.result(f"    pre-training continues, since none of {', '.join(others)} and {last} was passed")
        prepared = chosen.prepare(reading, fitted, call)
        if prepared.split is not None:
            sizes = ", ".join(f"{n:,} {part}" for part, n in prepared.split.sizes().items())
            logg.result(f"    split: {sizes} cells")
        fitted.fit(prepared, checkpoint_dir=checkpoint_dir, resume=resume, logger=logger)
        assert fitted.result is not None
        results = chosen.results(adata, fitted, prepared, call, keys)
        content, what = results.uns[keys.uns]
        read = {**call.reading.params(), "rng": call.seed, **call.given}
        if call.config.curriculum is not None:
            read["genes_key"] = call.ranking_key(adata)
        params = {"task": chosen.name, **chosen.record(call.arguments), **content.pop("params"), **read}
        record = run_record({**content, "params": params, "weights": start})
        fitted.result = replace(fitted.result, record=record)
        if folder is not None:
            by_first(partial(fitted.save, folder))
            logg.result(f"    saved to {folder}")
        common = {
            "params": params,
            "history": fitted.history,
            "training": fitted.result.summary(),
            "weights": start,
            "model": record_model(fitted, folder),
            "version": __version__,
        }
        logg.result(f"    {chosen.headline(content) or kept_loss(fitted)}")
        results.uns[keys.uns] = ({**common, **content}, what)
        results.write(data, adata, mod=mod, step=step)
    return fitted
