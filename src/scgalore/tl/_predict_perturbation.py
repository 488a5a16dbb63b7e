"""Predict expression after perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys, check_key
from scgalore._rng import seed_from
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import refuse_overwrite
from scgalore.errors import OptionError
from scgalore.model.inference import RunOptions
from scgalore.tasks.perturbation.prediction import Wanted, predict_wanted
from scgalore.tasks.perturbation.reading import READ, read_params, require_flags, slots_read
from scgalore.tl._fitted import recorded_model, records_of
from scgalore.tl._shared import as_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore._typing import Control, Data, Label, PathLike, Rng
    from scgalore.model import CellModel


@shared_parameters
def predict_perturbation(
    data: Data,
    perturbations: Label | Sequence[Label] | None = None,
    *,
    model: PathLike | CellModel | None = None,
    pert_key: str | None = None,
    control: Control = None,
    context_key: str | None = None,
    separator: str | None = None,
    dose_key: str | None = None,
    vectors_key: str | None = None,
    split_key: str | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    data_type: str | None = None,
    depth_key: str | None = None,
    species: str | None = None,
    min_matched: float | None = None,
    mod: str = "rna",
    per_cell: str | None = None,
    n_controls: int = 100,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Predict mean expression after seen or unseen perturbations :cite:p:`Cui2024`.

    Control cells of each context pass through the network with the perturbed genes, or the compound at its dose,
    flagged; the mean output is added to the control mean and to the effect predicted by the prior that the model was
    fine-tuned with. A perturbed gene need not be measured, and a dose need not occur in the data. Use
    :func:`scgalore.tl.evaluate_perturbation` to assess the predictions.

    Parameters
    ----------
    {data}
    perturbations
        Perturbations to predict: ``"KLF1"``, ``"KLF1+MAP2K6"``, or a list of these; each in every context with control
        cells. Labels of the data, labels in the same format (``"KLF1_MAP2K6"``), and gene symbols, aliases or ids are
        accepted. Compounds are named with a dose, ``"dexamethasone@0.5"``, any positive number in the unit of the data,
        or by name only if the data have no doses. A compound that was not in the training data needs a vector under
        ``vectors_key``. ``None`` predicts the test perturbations of the split or, without a split, all perturbations in
        the data.
    model
        Model fine-tuned with ``task="perturbation"``, a folder it was saved to, or a perturbation checkpoint of the
        original scGPT. ``None`` uses the model that :func:`scgalore.tl.finetune` recorded in this object.
    {pert_key}
    {control}
    {context_key}
    {separator}
    {dose_key}
    {vectors_key}
    split_key
        Column of ``adata.obs`` with the split of each cell. ``None`` uses the column the model was trained with, if
        it assigns the perturbations to the same splits as in training, else one that
        :func:`scgalore.pp.split_perturbations` made for these data.
    {layer}
    {gene_symbols}
    {data_type}
    {depth_key}
    {species}
    {min_matched}

        By default, all of these are as in fine-tuning.
    {mod}
    per_cell
        Column of ``adata.obs`` with a perturbation for each cell, which is applied to that cell.
    n_controls
        Number of control cells per context to average a prediction over.
    batch_tokens
        Maximum number of tokens per batch.
    {accelerator}
    rng
        Seed for sampling control cells, and the cells that :func:`scgalore.get.perturbed_cells` draws.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.uns['predict_perturbation' | key_added]` : :class:`dict`
        ``means`` and ``effects`` (:class:`pandas.DataFrame`, genes in rows, perturbations in columns; mean
        log-normalised expression, and its difference from the control mean), ``control_means`` (genes by contexts),
        ``control_cells`` (number of cells), ``rows`` (one row per column of ``means``: ``perturbation``, ``context``,
        ``n_genes_perturbed``, ``group``, and ``measured``, whether it was in the training data; for compounds also
        ``compound`` and ``dose``), ``observed`` (measured effects of these compounds, in the form of ``effects``),
        ``gene_vectors`` (the model's embeddings of the perturbed genes, or vectors of the
        compounds), ``embedding`` (coordinates of training and predicted perturbations in the plane through control that
        captures most of the training effects), ``explained`` (fraction of their sum of squares in each direction),
        ``directions`` (genes by two), ``params``, ``weights``, ``version``. Files do not allow ``/`` in column names:
        it is replaced by ``_``, and the original names are stored as a list (``effects_columns``);
        :func:`scgalore.get.perturbation_effects` restores them.
    `adata.uns['predict_perturbation_rank_genes_groups' | key_added + '_rank_genes_groups']` : :class:`dict`
        Genes ranked by effect, in the form of :func:`scanpy.tl.rank_genes_groups`, for scanpy's plots:
        ``sc.pl.rank_genes_groups(adata, key=...)``. Scores are effects; p-values are NaN, since no test was performed.
    `adata.obsm['X_scGPT_perturbed' | key_added + '_perturbed']` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embedding of each cell with the genes of ``per_cell`` flagged; only with ``per_cell``.

    Raises
    ------
    DataError
        If the model does not have a gene or compound, a label cannot be parsed or lacks a dose, a dose is not positive,
        there is no control cell, or the data are on another scale than the training data.
    MissingKeyError
        If a column does not exist, or no model is given or recorded.
    OptionError
        If ``perturbations`` is empty.

    See Also
    --------
    scgalore.pp.split_perturbations : Split perturbations into training, validation and test.
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.tl.evaluate_perturbation : Score predicted perturbations next to baselines.
    scgalore.tl.rank_perturbations : Rank perturbations by similarity to a target state.
    scgalore.get.perturbation_effects : Read predicted effects as a table.
    scgalore.get.perturbed_cells : Sample cells around predicted means.
    scgalore.pl.perturbation_embedding : Draw training, predicted and observed perturbations in a plane.
    scgalore.pl.dose_response : Draw effects of compounds by dose.

    Examples
    --------
    Here ``adata`` is a screen, with control cells and genes perturbed one and two at a time.

    >>> import scgalore as sg
    >>> model = sg.tl.finetune(adata, task="perturbation", max_epochs=1)
    >>> sg.tl.predict_perturbation(adata, ["KLF1", "KLF1+MAP2K6"])
    >>> sg.get.perturbation_effects(adata).index.to_list()
    ['KLF1', 'KLF1+MAP2K6']

    Compounds are named with their doses:

    >>> sg.tl.predict_perturbation(drugs, ["dexamethasone@0.3", "dexamethasone@3"])  # doctest: +SKIP
    """
    check_key(key_added)
    seed = seed_from(rng)
    options = RunOptions.of(batch_tokens=batch_tokens, accelerator=accelerator)
    if n_controls < 1:
        msg = f"n_controls={n_controls}: a prediction needs at least one control cell."
        raise OptionError(msg)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    columns = {
        "pert_key": pert_key,
        "context_key": context_key,
        "dose_key": dose_key,
        "split_key": split_key,
        "depth_key": depth_key,
        "per_cell": per_cell,
    }
    refuse_elsewhere(data, mod=mod, obs=columns, gene_symbols=gene_symbols)
    fitted = recorded_model(adata, "perturbation") if model is None else as_model(model)
    require_flags(fitted)
    keys = PerturbationKeys.from_key_added(key_added, embedding=fitted.keys("predict_perturbation").embedding)
    given = (pert_key, control, context_key, None, separator, None, dose_key, vectors_key)
    how = (layer, gene_symbols, data_type, depth_key, species, min_matched)
    read = read_params(adata, fitted, dict(zip(READ, (*given, *how), strict=True)), split_key)
    records = records_of(adata, "perturbation") if model is None else {}
    refuse_overwrite(
        {"uns": (keys.prediction, keys.ranked), "obsm": (keys.embedding,)}, slots_read(read, records=records)
    )
    wanted = Wanted(adata, perturbations, read, fitted, per_cell=per_cell)
    with logg.step(f"predicting {len(wanted.rows):,} perturbations with {fitted.provenance['name']}") as step:
        results = predict_wanted(
            wanted,
            keys,
            device=options.device,
            n_controls=n_controls,
            batch_tokens=options.batch_tokens,
            seed=seed,
        )
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None
