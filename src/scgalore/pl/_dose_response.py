"""Predicted and measured effects of compounds over the dose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore._words import few
from scgalore.data.records import read_prediction_record
from scgalore.data.texts import same_label
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.perturb.labels.parsing import Agent
from scgalore.pl._axes import axes_or_new, finish, legend_right, set_title
from scgalore.pl._colors import tone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import Label, PathLike

STYLES = ("-", "--", ":", "-.")
"""Lines of genes, where compounds have the colours."""


@shared_parameters
def dose_response(
    adata: AnnData,
    genes: str | Sequence[str],
    compounds: Label | Sequence[Label] | None = None,
    *,
    context: str | None = None,
    key: str = PerturbationKeys().prediction,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Draw predicted and measured effects of compounds on some genes over the logarithm of the dose.

    Lines connect the doses predicted by :func:`scgalore.tl.predict_perturbation`; circles are measured effects, including those of training
    doses. For a smooth line, predict intermediate doses: ``["dexamethasone@0.3", "dexamethasone@3"]``.

    Parameters
    ----------
    {adata}
    genes
        One or more genes; with several compounds, at most four.
    compounds
        Compounds to draw; ``None`` draws all predicted compounds.
    context
        Cell type or line; may be omitted if there is only one.
    {key}
    {title}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. Colors represent compounds, or genes if there is only one compound.

    Raises
    ------
    MissingKeyError
        If there is no prediction under ``key``, or it does not have a gene, compound or context.
    DataError
        If ``adata`` is not an AnnData, or the predictions are for genes.
    OptionError
        If there are several contexts and ``context`` is ``None``, or more than four genes for several compounds.

    See Also
    --------
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.pl.perturbation_effect : Draw predicted against observed effects by gene.

    Examples
    --------
    Here ``adata`` contains predictions for compounds by :func:`scgalore.tl.predict_perturbation`.

    >>> import scgalore as sg
    >>> ax = sg.pl.dose_response(adata, ["FKBP5", "TSC22D3"], context="A549", show=False)
    """
    record = read_prediction_record(adata, key)
    if "dose" not in record["rows"]:
        msg = f"adata.uns[{key!r}] is a prediction of perturbed genes, which have no dose. Predict compounds, with pert_kind='compound'."
        raise DataError(msg)
    rows = record["rows"].astype({"compound": str, "context": str})
    context = _found([context], rows["context"], "context")[0] if context is not None else _only(rows["context"])
    rows = rows[rows["context"] == context]
    if compounds is None:
        compounds = list(rows["compound"].unique())
    elif isinstance(compounds, str | int | float):
        compounds = [compounds]
    named = _found(compounds, rows["compound"], "compounds")
    genes = _found([genes] if isinstance(genes, str) else list(genes), record["effects"].index, "genes")
    if len(named) > 1 and len(genes) > len(STYLES):
        msg = f"{len(genes)} genes of {len(named)} compounds: expected at most {len(STYLES)} genes, or one compound as compounds=."
        raise OptionError(msg)
    predicted = _by_dose(record["effects"], rows.index, context)
    observed = record.get("observed")
    measured = predicted.iloc[:0] if observed is None else _by_dose(observed, observed.columns, context)
    drawn = axes_or_new(ax, (4.6, 3.8))
    drawn.axhline(0, color=tone(drawn, 0.8), linewidth=0.8, zorder=0)
    for i, compound in enumerate(named):
        for j, gene in enumerate(genes):
            color = f"C{(i if len(named) > 1 else j) % 10}"
            style = STYLES[j] if len(named) > 1 else STYLES[0]
            name = compound if len(genes) == 1 else gene if len(named) == 1 else f"{compound}, {gene}"
            line, points = (table[table["compound"] == compound] for table in (predicted, measured))
            drawn.plot(
                line["dose"], line[gene], style, color=color, marker=".", markersize=4, linewidth=1.4, label=name
            )
            drawn.plot(points["dose"], points[gene], "o", color=color, markersize=6, fillstyle="none")
    drawn.plot([], [], "o", color=tone(drawn, 0.3), markersize=6, fillstyle="none", label="measured")
    drawn.set(xscale="log", xlabel="dose", ylabel="effect (log1p expression)")
    drawn.grid(visible=False)
    drawn.spines[["top", "right"]].set_visible(False)
    of = genes if len(genes) == 1 else named if len(named) == 1 else []
    set_title(drawn, title, ", ".join([*of, *([context] if context else [])]))
    legend_right(drawn, own=ax is None)
    return finish("dose_response", drawn, ax=ax, show=show, save=save, return_fig=return_fig)


def _found(asked: Sequence[Label], known: pd.Series | pd.Index, argument: str) -> list[str]:
    """Unique names, as spelled in the prediction."""
    names = list(dict.fromkeys(map(str, known)))
    found = [same_label(name, names) or str(name) for name in asked]
    if absent := [name for name in found if name not in set(names)]:
        msg = f"{argument}: {few(absent)} {'is' if len(absent) == 1 else 'are'} not in the prediction, which has {few(names, 5)}."
        raise MissingKeyError(msg)
    if not found:
        msg = f"{argument} is empty. Name at least one of {few(names, 5)}."
        raise OptionError(msg)
    return list(dict.fromkeys(found))


def _only(contexts: pd.Series) -> str:
    names = list(contexts.unique())
    if len(names) > 1:
        msg = f"There are predictions in {len(names)} contexts: {few(names, 5)}. Name one as context=."
        raise OptionError(msg)
    return str(names[0])


def _by_dose(effects: pd.DataFrame, labels: pd.Index, context: str) -> pd.DataFrame:
    """Effects of one context with columns ``compound`` and ``dose``, sorted by dose."""
    prefix = f"{context} | " if context else ""
    own = [str(label) for label in labels if str(label).startswith(prefix)]
    agents = pd.DataFrame([Agent.of(label.removeprefix(prefix)) for label in own], own, columns=["compound", "dose"])
    return effects[own].T.join(agents).sort_values("dose", kind="stable")
