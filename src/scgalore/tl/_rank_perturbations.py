"""Rank perturbations by similarity to a target state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore import __version__
from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore._rng import seed_from
from scgalore.data.resolve import copied, refuse_elsewhere, writable_adata
from scgalore.data.results import Results, refuse_overwrite
from scgalore.errors import OptionError
from scgalore.model.inference import RunOptions
from scgalore.perturb.labels.screen import Screen
from scgalore.perturb.predictions import retrieval
from scgalore.tasks.perturbation.agents import refuse_unknown, with_compounds
from scgalore.tasks.perturbation.effects import refuse_other_scale
from scgalore.tasks.perturbation.networks import genes_seen
from scgalore.tasks.perturbation.reading import (
    READ,
    perturbed_genes,
    read_params,
    require_flags,
    slots_read,
    trained_on,
)
from scgalore.tl._fitted import recorded_model, records_of
from scgalore.tl._search import Search
from scgalore.tl._shared import as_model
from scgalore.tl._wanted import Wanted, context_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scgalore._typing import Control, Data, Label, PathLike, Rng
    from scgalore.model import CellModel

KEY = "rank_perturbations"


@shared_parameters
def rank_perturbations(
    data: Data,
    target: Label | Mapping[str, float] | pd.Series,
    *,
    target_key: str | None = None,
    model: PathLike | CellModel | None = None,
    candidates: Sequence[Label] | None = None,
    pairs: bool = False,
    max_pairs: int = 300,
    metric: str = "cosine",
    recovery: bool = True,
    context: Label | None = None,
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
    n_controls: int = 100,
    batch_tokens: int | None = None,
    accelerator: str | None = None,
    rng: Rng = 0,
    key_added: str | None = None,
    copy: bool = False,
) -> Data | None:
    """Rank perturbations by how well their predicted effect matches the change from control to a target state.

    Each candidate is listed with its evidence in the training data, and its score with those of the prior alone and of
    the measured effect. To judge the ranking, see ``recovery``: the rank of each held-out perturbation when its
    observed effect is the target.

    Parameters
    ----------
    {data}
    target
        Label of a perturbation, or of ``target_key``, whose mean expression is the target state; or target effects by
        gene (differences of mean log-normalised expression from control), which are compared over these genes only.
    target_key
        Column of ``adata.obs`` with the label ``target``; ``None`` is ``pert_key``.
    model
        As for :func:`scgalore.tl.predict_perturbation`.
    candidates
        Additional perturbations to rank, besides all genes perturbed in training, or all compounds at their training
        doses.
    pairs
        Whether to rank pairs of the best genes as well.
    max_pairs
        Maximum number of pairs.
    metric
        Similarity of effects: ``"cosine"``, ``"pearson"`` or ``"mse"`` (lower is better).
    recovery
        Whether to rank held-out perturbations, which requires predicting each measured perturbation.
    context
        Cell type or line to use, if there are several.
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
    n_controls
        Number of control cells to average a prediction over.
    batch_tokens
        Maximum number of tokens per batch.
    {accelerator}
    rng
        Seed for sampling control cells.
    {key_added}
    {copy}

    Returns
    -------
    ``None``, or with ``copy=True`` the container it was given, with this key set:

    `adata.uns['rank_perturbations' | key_added]` : :class:`dict`
        ``ranking``, best first: ``perturbation``, ``n_genes_perturbed``, ``evidence`` (``"measured"`` in the training
        data, only its ``"parts measured"``, or ``"unseen"``; ``"unknown"`` for checkpoints of the original scGPT),
        ``is_target``, ``score``, ``score_prior`` and ``score_measured`` (NaN without a prior or a measurement outside
        the test split). ``recovery``: ``rank`` of each held-out ``perturbation`` among ``n_candidates``, by ``method``
        (``"model"``, ``"prior"``, and ``"training mean"``, which cannot tell perturbations apart).
        ``recovery_summary``: ``median_rank`` of each method, and ``chance``.
        ``params`` (``target_trained_on``: whether the target was in the training data), ``weights``,
        ``version``. The perturbed genes of the target are excluded from the comparison, since their own change would
        reveal the perturbation.

    Raises
    ------
    DataError
        If the model does not have a gene, a label cannot be parsed, there is no control cell, or the data are on
        another scale than the training data.
    MissingKeyError
        If the target or a column does not exist, or no model is given or recorded.
    OptionError
        If an option is not one of its choices, there is no candidate, or there are several contexts and ``context`` is
        ``None``.

    See Also
    --------
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.tl.perturb_in_silico : Perturb genes of unperturbed cells in silico.

    Examples
    --------
    Here ``adata`` is a screen that a model was fine-tuned on, see :func:`scgalore.tl.predict_perturbation`.

    >>> import scgalore as sg
    >>> sg.tl.rank_perturbations(adata, "KLF1+MAP2K6", pairs=True)
    >>> best = adata.uns["rank_perturbations"]["ranking"].head()
    """
    _check(n_controls=n_controls, max_pairs=max_pairs, metric=metric)
    key = KEY if key_added is None else PerturbationKeys.from_key_added(key_added).prediction
    seed, options = seed_from(rng), RunOptions.of(batch_tokens=batch_tokens, accelerator=accelerator)
    data = copied(data, mod=mod) if copy else data
    adata = writable_adata(data, mod=mod)
    columns = {
        "pert_key": pert_key,
        "context_key": context_key,
        "dose_key": dose_key,
        "split_key": split_key,
        "depth_key": depth_key,
        "target_key": target_key,
    }
    refuse_elsewhere(data, mod=mod, obs=columns, gene_symbols=gene_symbols)
    fitted = recorded_model(adata, "perturbation") if model is None else as_model(model)
    require_flags(fitted)
    given = (pert_key, control, context_key, None, separator, None, dose_key, vectors_key)
    how = (layer, gene_symbols, data_type, depth_key, species, min_matched)
    read = read_params(adata, fitted, dict(zip(READ, (*given, *how), strict=True)), split_key)
    records = records_of(adata, "perturbation") if model is None else {}
    refuse_overwrite({"uns": (key,)}, slots_read(read, records=records))
    screen = Screen.from_adata(adata, **read)
    controls = screen.profiles()
    refuse_other_scale(fitted, screen, controls)
    if pairs and screen.conditions.kind != "gene":
        msg = "pairs=True ranks pairs of genes, but the model was trained on compounds, which are not combined. Omit pairs=."
        raise OptionError(msg)
    asked = perturbed_genes(candidates or [], screen, fitted)
    fitted = with_compounds(fitted, [agent for agents in asked for agent in agents], screen.vectors)
    run = {"device": options.device, "n_controls": n_controls, "batch_tokens": options.batch_tokens, "seed": seed}
    search = Search(fitted, screen, controls, context_code(context, controls), metric, run)
    wanted = Wanted.of(target, target_key, adata, screen, controls, search.code, trained_on(fitted, screen.conditions))
    chosen = search.candidates(asked)
    refuse_unknown([gene for genes in chosen for gene in genes], fitted.vocab, species=screen.reading.species)
    seen = genes_seen(screen, fitted.vocab)
    with logg.step(f"ranking {len(chosen):,} perturbations by similarity to {wanted.name}") as step:
        found = search.recovery(chosen) if recovery else None
        content = {
            "ranking": search.ranking(chosen, wanted, max_pairs=max_pairs if pairs else 0),
            **({} if found is None else {"recovery": found, "recovery_summary": retrieval.summary(found)}),
            "params": {
                **(read | {name: screen.params[name] for name in ("control", "separator", "log_base")}),
                **{"context": search.context, "metric": metric},
                **{"target": wanted.name, "target_key": target_key, "target_trained_on": wanted.trained_on},
                **{"n_genes_compared": int(wanted.compared.sum()), "pairs": pairs, "max_pairs": max_pairs},
                **{"n_controls": n_controls, "rng": seed},
            },
            "weights": dict(fitted.provenance),
            "genes": seen,
            "version": __version__,
        }
        _report(content, wanted)
        results = Results(uns={key: (content, "ranked perturbations, recovery of held-out ones")})
        results.write(data, adata, mod=mod, step=step)
    return data if copy else None


def _check(*, n_controls: int, max_pairs: int, metric: str) -> None:
    for name, value in {"n_controls": n_controls, "max_pairs": max_pairs}.items():
        if value < 1:
            msg = f"{name}={value}: expected 1 or more."
            raise OptionError(msg)
    if metric not in retrieval.METRICS:
        msg = f"metric={metric!r}: choose one of {', '.join(map(repr, retrieval.METRICS))}."
        raise OptionError(msg)


def _report(content: dict[str, Any], wanted: Wanted) -> None:
    if wanted.trained_on:
        logg.warning(
            f"The target {wanted.name!r} was in the training data, so its recovery does not measure generalisation."
        )
    found = content.get("recovery_summary")
    if found is None:
        return
    if len(found) == 0:
        logg.info("    no held-out perturbations: ranking quality cannot be estimated")
        return
    first = found.iloc[0]
    ranks = ", ".join(f"{row.median_rank:g} ({row.method})" for row in found.itertuples())
    logg.info(
        f"    median rank of {first['n']} held-out perturbations among {first['n_candidates']:,}: {ranks}, {first['chance']:g} (chance)"
    )
