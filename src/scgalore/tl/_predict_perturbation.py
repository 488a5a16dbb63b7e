"""Expression after perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore._rng import seed_from
from scgalore.errors import OptionError
from scgalore.model.inference import RunOptions
from scgalore.tasks.perturbation.networks import gene_vectors
from scgalore.tasks.perturbation.fitting import perturbed_embeddings, predict_effects
from scgalore.perturb.labels.conditions import canonical_name
from scgalore.perturb.labels.profiles import row_label
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions.plane import embed_in_plane
from scgalore.perturb.predictions.ranking import ranked_genes
from scgalore.tl._fitted import recorded_model
from scgalore.tasks.perturbation.reading import READ, genes_of, perturbed_genes, read_params, trained_on, training_profiles
from scgalore.tl._shared import Results, as_model, copied, writable_adata

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgalore._typing import Data, PathLike, Rng
    from scgalore.model import SCGPT
    from scgalore.perturb.labels.profiles import Profiles


@shared_parameters
def predict_perturbation(
    data: Data,
    perturbations: str | Sequence[str] | None = None,
    *,
    model: PathLike | SCGPT | None = None,
    pert_key: str | None = None,
    control: str | None = None,
    context_key: str | None = None,
    separator: str | None = None,
    split_key: str | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    mod: str = "rna",
    per_cell: str | None = None,
    n_controls: int = 100,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Predict mean expression after perturbations, seen in training or not :cite:p:`Cui2024`.

    Control cells of each context pass through the network with the perturbed genes flagged; the mean of its outputs is added
    to the control mean and to the effect of the prior that the model was fine-tuned with. A perturbed gene need not be
    measured. What the numbers are worth says :func:`scgalore.tl.evaluate_perturbation`.

    Parameters
    ----------
    {data}
    perturbations
        What to predict: ``"KLF1"``, ``"KLF1+MAP2K6"``, or a list of such; each in every context that has control cells.
        ``None`` predicts the test perturbations of the split, and without a split all that occur.
    model
        Fine-tuned with ``task="perturbation"``; a folder it was saved to; an upstream perturbation checkpoint. ``None`` is the
        model that :func:`scgalore.tl.finetune` recorded in this object.
    {pert_key}
    {control}
    {context_key}
    {separator}
    split_key
        Column of ``adata.obs`` with the part of each cell.
    {layer}
    {gene_symbols}

        All of these are by default what the model was fine-tuned with.
    {mod}
    per_cell
        Column of ``adata.obs`` that names a perturbation for every cell, to be applied to that cell itself.
    n_controls
        Control cells of a context that a prediction is averaged over.
    batch_tokens
        Most tokens in a batch.
    {accelerator}
    rng
        Seed of the choice of control cells, and of the cells that :func:`scgalore.get.perturbed_cells` draws.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with these keys set:

    `adata.uns['predict_perturbation' | key_added]` : :class:`dict`
        ``means`` and ``effects`` (:class:`pandas.DataFrame`, genes in rows, perturbations in columns; mean of
        log-normalised expression, and its difference from the control mean), ``control_means`` (genes by contexts),
        ``rows`` (one row a column of these: ``perturbation``, ``context``, ``n_genes_perturbed``, ``group``, and ``measured``,
        whether training saw it), ``gene_vectors`` (the model's embeddings of the perturbed genes), ``embedding`` (places of training and predicted perturbations in the plane through control
        that holds most of the training effects), ``explained`` (share of their sum of squares in each direction), ``directions``
        (genes by two), ``params``, ``weights``, ``version``.
    `adata.uns['predict_perturbation_rank_genes_groups' | key_added + '_rank_genes_groups']` : :class:`dict`
        Genes ranked by effect, in the form of :func:`scanpy.tl.rank_genes_groups`, for scanpy's plots:
        ``sc.pl.rank_genes_groups(adata, key=...)``. Scores are effects; p-values are NaN, since nothing was tested.
    `adata.obsm['X_scGPT_perturbed' | key_added + '_perturbed']` : :class:`numpy.ndarray` (shape `(n_obs, d_model)`, dtype `float32`)
        Embedding of each cell with the genes of ``per_cell`` flagged; only with ``per_cell``.

    Raises
    ------
    DataError
        If the model knows no such gene, a label does not parse, or there is no control cell.
    MissingKeyError
        If a column does not exist, or no model is given and none recorded.
    OptionError
        If ``perturbations`` is empty.

    Examples
    --------
    >>> sg.tl.predict_perturbation(adata, ["KLF1", "KLF1+MAP2K6"], model=model)  # doctest: +SKIP
    >>> adata.uns["predict_perturbation"]["effects"]["KLF1"].nlargest(5)  # doctest: +SKIP
    """
    keys = PerturbationKeys.from_key_added(key_added)
    seed = seed_from(rng)
    options = RunOptions.of(batch_tokens=batch_tokens, accelerator=accelerator)
    if n_controls < 1:
        msg = f"n_controls={n_controls}: a prediction needs at least one control cell."
        raise OptionError(msg)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    fitted = recorded_model(adata) if model is None else as_model(model)
    fitted.require_perturbation()
    given = (pert_key, control, context_key, None, separator, layer, gene_symbols)
    read = read_params(adata, fitted, dict(zip(READ, given, strict=True)), split_key)
    screen = Screen.from_adata(adata, **read)
    names = _names(perturbations, read)
    wanted_by_cell = None if per_cell is None else _per_cell(adata, per_cell, read)
    if names is None and wanted_by_cell is not None:
        names = sorted(set(map(canonical_name, wanted_by_cell)) - {"control"})
    controls = screen.profiles()
    rows = _rows(names, screen, controls)
    with logg.step(f"predicting {len(rows):,} perturbations with {fitted.provenance['name']}") as step:
        effects = predict_effects(
            fitted,
            screen,
            list(zip(rows["context_code"], rows["genes"], strict=True)),
            controls,
            n_controls=n_controls,
            device=options.device,
            batch_tokens=options.batch_tokens,
            seed=seed,
        )
        content = _content(adata, fitted, screen, controls, rows, effects, read)
        content["params"] |= {"n_controls": n_controls, "rng": seed, "per_cell": per_cell}
        record = ranked_genes(content["effects"], content["means"], groupby=read["pert_key"])
        results = Results(
            uns={
                keys.prediction: (content, "means, effects, parameters, provenance"),
                keys.ranked: (record, "genes ranked by predicted effect, for scanpy's plots"),
            }
        )
        if wanted_by_cell is not None:
            cells = perturbed_embeddings(
                fitted, screen, wanted_by_cell, device=options.device, batch_tokens=options.batch_tokens
            )
            results.obsm[keys.embedding] = (cells, "embeddings of perturbed cells")
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None


def _names(perturbations: str | Sequence[str] | None, read: dict[str, Any]) -> list[str] | None:
    if perturbations is None:
        return None
    labels = [perturbations] if isinstance(perturbations, str) else list(perturbations)
    if not labels:
        msg = "perturbations is empty. Name some, such as 'KLF1+MAP2K6', or pass None for those of the test part."
        raise OptionError(msg)
    return list(map(canonical_name, perturbed_genes(labels, read)))


def _per_cell(adata: AnnData, key: str, read: dict[str, Any]) -> list[tuple[str, ...]]:
    from scgalore.errors import MissingKeyError

    if key not in adata.obs:
        msg = f"per_cell={key!r} is no column of adata.obs, which has {list(adata.obs.columns)}."
        raise MissingKeyError(msg)
    return [genes_of(label, read) for label in adata.obs[key]]


def _rows(names: list[str] | None, screen: Screen, controls: Profiles) -> pd.DataFrame:
    """Perturbation, context and genes of each row to predict."""
    contexts = controls.context_names
    if names is None:
        found = controls if screen.parts is None or "test" not in screen.parts else screen.profiles("test")
        pairs = list(zip(found.contexts.tolist(), found.perturbations, strict=True))
    else:
        pairs = [(code, name) for code in range(len(contexts)) if controls.n_controls[code] for name in names]
    if not pairs:
        msg = "No perturbation is there to predict. Name some: perturbations=['KLF1+MAP2K6']."
        raise OptionError(msg)
    table = pd.DataFrame(pairs, columns=["context_code", "perturbation"])
    table["context"] = [contexts[code] for code in table["context_code"]]
    table["genes"] = [() if name == "control" else tuple(name.split("+")) for name in table["perturbation"]]
    table.index = [
        row_label(name, context) for name, context in zip(table["perturbation"], table["context"], strict=True)
    ]
    return table


def _content(
    adata: AnnData,
    model: SCGPT,
    screen: Screen,
    controls: Profiles,
    rows: pd.DataFrame,
    effects: np.ndarray,
    read: dict[str, Any],
) -> dict[str, Any]:
    control_means = controls.control_means[rows["context_code"]]
    genes, columns = pd.Index(screen.genes), pd.Index(rows.index)
    seen = trained_on(model)
    groups = adata.uns.get(read["split_key"], {}).get("groups", {}) if read["split_key"] else {}
    group_of = {str(name): group for group, names in groups.items() for name in names}
    table = pd.DataFrame(
        {
            "perturbation": rows["perturbation"],
            "context": rows["context"],
            "n_genes_perturbed": [len(genes) for genes in rows["genes"]],
            "group": [group_of.get(name, "") for name in rows["perturbation"]],
            "measured": [name in seen for name in rows["perturbation"]],
        },
        index=rows.index,
    )
    return {
        "means": pd.DataFrame((control_means + effects).T.astype(np.float32), genes, columns),
        "effects": pd.DataFrame(effects.T.astype(np.float32), genes, columns),
        "control_means": pd.DataFrame(
            controls.control_means.T.astype(np.float32), index=list(screen.genes), columns=_context_columns(controls)
        ),
        "rows": table,
        "gene_vectors": _gene_vectors(model, screen, rows),
        **embed_in_plane(training_profiles(screen, model, controls), table, effects),
        "params": {**read, "control": screen.conditions.control},
        "weights": dict(model.provenance),
        "version": __version__,
    }


def _gene_vectors(model: SCGPT, screen: Screen, rows: pd.DataFrame) -> pd.DataFrame:
    """The model's embeddings of perturbed genes, which the linear baseline is given too."""
    genes = sorted({gene for part in (*screen.conditions.genes, *rows["genes"]) for gene in part})
    vectors = gene_vectors(model.network, model.vocab, genes)
    return vectors.set_axis([f"d{i}" for i in range(vectors.shape[1])], axis=1)


def _context_columns(controls: Profiles) -> list[str]:
    return [name or "control" for name in controls.context_names]
