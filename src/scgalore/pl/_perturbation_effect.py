"""Predicted and observed effect of a perturbation by gene."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_prediction_record, read_scores_record
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import tone
from scgalore.pl._points import name_points

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike


@shared_parameters
def perturbation_effect(
    adata: AnnData,
    perturbation: str,
    *,
    context: str | None = None,
    n_labels: int = 12,
    key: str = PerturbationKeys().evaluation,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Predicted against observed effect on every gene, as differences of mean log-normalised expression from control.

    Parameters
    ----------
    {adata}
    perturbation
        Perturbation, for example ``"KLF1+MAP2K6"``; the order of the genes does not matter.
    context
        Cell type or line, if there are several.
    n_labels
        Number of genes to label: those with the largest effects, as space permits.
    {key}
    {title}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. Genes on the dashed line are predicted exactly. The title has the Pearson
    correlation of the two, if it was among the metrics.

    Raises
    ------
    MissingKeyError
        If there are no scores under ``key``, or the perturbation is not among them.
    OptionError
        If ``n_labels`` is negative.

    See Also
    --------
    scgalore.tl.evaluate_perturbation : Score predicted perturbations next to baselines.
    scgalore.get.perturbation_effects : Read predicted effects as a table.
    scgalore.pl.perturbation_scores : Draw scores with baselines and ceiling.

    Examples
    --------
    Here ``adata`` contains scores by :func:`scgalore.tl.evaluate_perturbation`.

    >>> import scgalore as sg
    >>> ax = sg.pl.perturbation_effect(adata, "KLF1+MAP2K6", show=False)
    """
    if n_labels < 0:
        msg = f"n_labels={n_labels}: expected 0 or more."
        raise OptionError(msg)
    result = read_scores_record(adata, key)
    observed, predicted = _effects(adata, result, perturbation, context)
    drawn = axes_or_new(ax, (4.6, 4.4))
    largest = observed.abs().combine(predicted.abs(), max)
    low, high = min(observed.min(), predicted.min(), 0), max(observed.max(), predicted.max(), 0)
    margin = 0.12 * (high - low) or 1.0
    span = (low - margin, high + margin)
    drawn.axline((0, 0), slope=1, color=tone(drawn, 0.6), linestyle="--", linewidth=0.8, zorder=0)
    drawn.axhline(0, color=tone(drawn, 0.85), linewidth=0.8, zorder=0)
    drawn.axvline(0, color=tone(drawn, 0.85), linewidth=0.8, zorder=0)
    named = largest[largest > 0].nlargest(n_labels).index
    drawn.scatter(observed, predicted, s=8, color=tone(drawn, 0.6), linewidths=0)
    drawn.scatter(observed[named], predicted[named], s=14, color="C0", linewidths=0)
    drawn.set(xlim=span, ylim=span, aspect="equal")
    drawn.set(xlabel="observed effect (log1p expression)", ylabel="predicted effect (log1p expression)")
    drawn.grid(visible=False)
    drawn.spines[["top", "right"]].set_visible(False)
    set_title(drawn, title, f"{observed.name}\n{_score(result, str(observed.name))}{len(observed):,} genes")
    name_points(drawn, observed[named], predicted[named], list(map(str, named)))
    return finish("perturbation_effect", drawn, ax=ax, show=show, save=save, return_fig=return_fig)


def _effects(
    adata: AnnData, result: Mapping[str, Any], perturbation: str, context: str | None
) -> tuple[pd.Series, pd.Series]:
    observed, source = result["observed"], result["params"]["key"]
    # As written, since the name of a compound may contain a +, or with its genes sorted.
    names = [perturbation, "+".join(sorted(perturbation.split("+")))]
    wanted = names if context is None else [f"{context} | {name}" for name in names]
    row = next((label for label in wanted if label in observed), None)
    if row is None:
        labels = [str(label) for label in observed]
        close = get_close_matches(wanted[-1], labels, n=5, cutoff=0.4) or labels[:5]
        msg = f"{wanted[-1]!r} is not among the {len(labels)} scored perturbations; similar ones: {', '.join(close)}."
        raise MissingKeyError(msg)
    effects = read_prediction_record(adata, source)["effects"] if source in adata.uns else None
    if effects is None or row not in effects:
        msg = f"adata.uns[{source!r}] no longer contains the scored prediction. Call sg.tl.predict_perturbation(adata) again."
        raise MissingKeyError(msg)
    return observed[row], effects.loc[observed.index, row]


def _score(result: Mapping[str, Any], label: str) -> str:
    table = result["scores"]
    context, _, name = label.rpartition(" | ")
    of_row = (table["perturbation"].astype(str) == name) & (table["context"].astype(str) == context)
    of_model = (table["method"].astype(str) == "model") & (table["metric"].astype(str) == "pearson_delta")
    value = table.loc[of_row & of_model, "value"]
    return f"Pearson {value.iloc[0]:.2f}, " if len(value) else ""
