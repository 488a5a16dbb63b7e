"""Training, predicted and observed perturbations in one plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.transforms import Bbox

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_prediction_record, read_scores_record
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pl._axes import axes_or_new, show_or_return

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes

# Where a label is tried beside its point, in points.
OFFSETS = [(4, 3), (-4, 3), (4, -9), (-4, -9), (0, 6), (0, -12)]


@shared_parameters
def perturbation_embedding(
    adata: AnnData,
    *,
    key: str = PerturbationKeys().prediction,
    evaluation_key: str = PerturbationKeys().evaluation,
    context: str | None = None,
    n_labels: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Perturbations as points in the plane through control that holds most of the measured training effects.

    Grey points were measured in training; coloured ones are predicted, a thin line joins each to where it was observed. The
    plane belongs to the training perturbations, so what a new perturbation does beside it is not seen here; the labels of the
    axes have the share of the training effects that is.

    Parameters
    ----------
    {adata}
    {key}
    evaluation_key
        Key of :func:`scgalore.tl.evaluate_perturbation`, which has the observed effects; predictions without are drawn alone.
    context
        Cell type or line to draw; ``None`` draws all.
    n_labels
        How many predictions to name, as far as there is room: those farthest from control.
    {ax}
    {show}

    Returns
    -------
    The axes, or ``None`` if the figure was shown. Predictions are coloured by ``group`` of the split, if there are several.

    Raises
    ------
    MissingKeyError
        If there is no prediction under ``key``, or it has nothing in the context.
    DataError
        If ``adata`` is no AnnData.
    OptionError
        If ``n_labels`` is negative.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.pl.perturbation_embedding(adata)  # doctest: +SKIP
    """
    if n_labels < 0:
        msg = f"n_labels={n_labels}: expected 0 or more."
        raise OptionError(msg)
    result = _read(adata, key)
    training, predicted = _points(result, context)
    observed = _observed(adata, evaluation_key, key, result["directions"], predicted.index)
    drawn = axes_or_new(ax, (5.4, 4.6))
    drawn.axhline(0, color="0.92", linewidth=0.8, zorder=0)
    drawn.axvline(0, color="0.92", linewidth=0.8, zorder=0)
    drawn.scatter(training["x"], training["y"], s=14, color="0.75", linewidths=0, label=f"training ({len(training)})")
    for end, at in zip(predicted.loc[observed.index, ["x", "y"]].to_numpy(), observed.to_numpy(), strict=True):
        drawn.plot(*np.stack([end, at]).T, color="0.5", linewidth=0.6, zorder=1.5)
    for i, (group, rows) in enumerate(predicted.groupby("group", sort=True)):
        name = f"{str(group) or 'predicted'} ({len(rows)})"
        drawn.scatter(rows["x"], rows["y"], s=22, color=f"C{i % 10}", linewidths=0, label=name, zorder=3)
    if len(observed):
        drawn.scatter(
            observed["x"], observed["y"], s=18, facecolors="none", edgecolors="0.25", linewidths=0.7, zorder=2.5,
            label=f"observed ({len(observed)})",
        )  # fmt: skip
    drawn.scatter([0], [0], marker="P", s=60, color="black", linewidths=0, label="control", zorder=4)
    shares = [f"direction {i + 1} ({100 * share:.0f} %)" for i, share in enumerate(np.asarray(result["explained"]))]
    drawn.set(xlabel=shares[0], ylabel=shares[1])
    drawn.grid(visible=False)
    drawn.spines[["top", "right"]].set_visible(False)
    drawn.margins(0.08)
    drawn.legend(fontsize=7, frameon=False, loc="best")
    _name(drawn, predicted, n_labels)
    return show_or_return(drawn, show=show, own_figure=ax is None)


def _read(adata: AnnData, key: str) -> Mapping[str, Any]:
    result = read_prediction_record(adata, key)
    absent = sorted({"embedding", "explained", "directions"} - set(result))
    if absent:
        msg = f"adata.uns[{key!r}] has no {absent[0]!r}. Call sg.tl.predict_perturbation(adata) again."
        raise MissingKeyError(msg)
    return result


def _points(result: Mapping[str, Any], context: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training points, and predicted ones by the label of their row."""
    table = result["embedding"].astype(dict.fromkeys(("method", "perturbation", "context"), str))
    training = table[table["method"] == "training"]
    predicted = table[table["method"] == "predicted"].set_axis(result["rows"].index, axis=0)
    predicted = predicted.assign(group=result["rows"]["group"].astype(str))
    if context is None:
        return training, predicted
    inside = predicted[predicted["context"] == context]
    if len(inside) == 0:
        found = ", ".join(map(repr, predicted["context"].unique()))
        msg = f"Nothing was predicted in context={context!r}; there is {found}."
        raise MissingKeyError(msg)
    return training[training["context"] == context], inside


def _observed(adata: AnnData, evaluation_key: str, key: str, directions: pd.DataFrame, rows: pd.Index) -> pd.DataFrame:
    """Where predicted perturbations were observed, as far as this prediction was scored."""
    result = read_scores_record(adata, evaluation_key) if evaluation_key in adata.uns else None
    if result is None or result["params"].get("key") != key:
        return pd.DataFrame(columns=["x", "y"])
    effects = result["observed"]
    known = directions.index.intersection(effects.index)
    found = rows.intersection(effects.columns)
    places = effects.loc[known, found].to_numpy().T @ directions.loc[known].to_numpy()
    return pd.DataFrame(places, index=found, columns=["x", "y"])


def _name(ax: Axes, points: pd.DataFrame, n_labels: int) -> None:
    """Write names beside the points farthest from control; one that fits nowhere is left out."""
    far = (points["x"] ** 2 + points["y"] ** 2).nlargest(n_labels).index
    if len(far) == 0:
        return
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    frame, places = ax.get_window_extent(), ax.transData.transform(points[["x", "y"]].to_numpy(np.float64))
    taken = [Bbox.from_extents(*(place - 4), *(place + 4)) for place in places]
    legend = ax.get_legend()
    taken += [] if legend is None else [legend.get_window_extent()]
    for label in far:
        at = (float(points.loc[label, "x"]), float(points.loc[label, "y"]))
        for dx, dy in OFFSETS:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = ax.annotate(str(label), at, (dx, dy), textcoords="offset points", ha=side, fontsize=7)
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
