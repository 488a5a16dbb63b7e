"""Training, predicted and observed perturbations in one plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scgalore._docs import shared_parameters
from scgalore._keys import PerturbationKeys
from scgalore.data.records import read_prediction_record, read_scores_record
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pl._axes import axes_or_new, finish, legend_right, set_title
from scgalore.pl._colors import palette_colors, tone
from scgalore.pl._points import name_points, robust_limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import PathLike
    from scgalore.pl._colors import Palette


@shared_parameters
def perturbation_embedding(
    adata: AnnData,
    *,
    key: str = PerturbationKeys().prediction,
    evaluation_key: str = PerturbationKeys().evaluation,
    context: str | None = None,
    n_labels: int = 10,
    title: str | None = None,
    palette: Palette | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Perturbations as points in the plane through control that captures most of the measured training effects.

    Grey points are training perturbations; coloured points are predictions, each joined by a thin line to its observed
    effect. The plane is fitted to the training perturbations, so effects of a new perturbation outside this plane are
    not visible; axis labels show the fraction of the training effects along each axis.

    A few outliers do not stretch the axes: they are drawn as triangles at the border, and the legend shows their number.

    Parameters
    ----------
    {adata}
    {key}
    evaluation_key
        Key of :func:`scgalore.tl.evaluate_perturbation`, for observed effects; without them, only predictions are
        drawn.
    context
        Cell type or line to draw; ``None`` draws all.
    n_labels
        Number of predictions to label: those farthest from control, as space permits.
    {title}
    palette
        Colors of the groups of predictions: a list of them, a dictionary, or the name of a matplotlib colormap.
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. Predictions are coloured by ``group`` of the split, if there are several.

    Raises
    ------
    MissingKeyError
        If there is no prediction under ``key``, or none in the context.
    DataError
        If ``adata`` is not an AnnData.
    OptionError
        If ``n_labels`` is negative, or ``palette`` contains something that is not a color.

    See Also
    --------
    scgalore.tl.predict_perturbation : Predict expression after perturbations.
    scgalore.tl.evaluate_perturbation : Score predicted perturbations next to baselines.
    scgalore.pl.perturbation_effect : Draw predicted against observed effects by gene.

    Examples
    --------
    Here ``adata`` contains predictions by :func:`scgalore.tl.predict_perturbation`.

    >>> import scgalore as sg
    >>> ax = sg.pl.perturbation_embedding(adata, show=False)
    """
    if n_labels < 0:
        msg = f"n_labels={n_labels}: expected 0 or more."
        raise OptionError(msg)
    result = _read(adata, key)
    training, predicted = _points(result, context)
    observed = _observed(adata, evaluation_key, key, result["directions"], predicted.index)
    drawn = axes_or_new(ax, (5.4, 4.6))
    groups = {str(name) or "predicted": rows for name, rows in predicted.groupby("group", sort=True)}
    colors = palette_colors(list(groups), palette, dict(zip(groups, _distinct(len(groups)), strict=True)))
    ends = np.concatenate([table[["x", "y"]].to_numpy(np.float64) for table in (training, predicted, observed)])
    around = np.concatenate([ends, np.zeros((1, 2))])  # control, which is at 0
    limits = [robust_limits(around[:, 0]), robust_limits(around[:, 1])]
    drawn.set(xlim=limits[0], ylim=limits[1])
    line: dict[str, Any] = {"color": tone(drawn, 0.85), "linewidth": 0.8, "zorder": 0}
    drawn.axhline(0, **line)
    drawn.axvline(0, **line)
    _scatter(drawn, training, 14, {"color": tone(drawn, 0.7), "linewidths": 0}, f"training ({len(training)})")
    for end, at in zip(predicted.loc[observed.index, ["x", "y"]].to_numpy(), observed.to_numpy(), strict=True):
        drawn.plot(*np.stack([end, at]).T, color=tone(drawn, 0.5), linewidth=0.6, zorder=1.5)
    for name, rows in groups.items():
        _scatter(drawn, rows, 22, {"color": colors[name], "linewidths": 0, "zorder": 3}, f"{name} ({len(rows)})")
    if len(observed):
        ring = {"facecolors": "none", "edgecolors": tone(drawn, 0.25), "linewidths": 0.7, "zorder": 2.5}
        _scatter(drawn, observed, 18, ring, f"observed ({len(observed)})")
    edge: dict[str, Any] = {"edgecolors": tone(drawn, 1), "linewidths": 0.8}
    drawn.scatter([0], [0], marker="P", s=70, color=tone(drawn, 0), label="control", zorder=4, **edge)
    n_outside = int(_outside(drawn, ends).any(axis=1).sum())
    if n_outside:
        drawn.scatter(
            [], [], marker="^", s=22, color=tone(drawn, 0.4), linewidths=0, label=f"beyond the axes ({n_outside})"
        )
    shares = [f"direction {i + 1} ({100 * share:.0f} %)" for i, share in enumerate(np.asarray(result["explained"]))]
    drawn.set(xlabel=shares[0], ylabel=shares[1])
    drawn.grid(visible=False)
    drawn.spines[["top", "right"]].set_visible(False)
    set_title(drawn, title)
    legend_right(drawn, own=ax is None)
    far = (predicted["x"] ** 2 + predicted["y"] ** 2).nlargest(n_labels).index
    places = _inside(drawn, predicted.loc[far, ["x", "y"]].to_numpy(np.float64))
    others = _inside(drawn, predicted[["x", "y"]].to_numpy(np.float64))
    name_points(drawn, places[:, 0], places[:, 1], list(map(str, far)), others=others)
    return finish("perturbation_embedding", drawn, ax=ax, show=show, save=save, return_fig=return_fig)


def _distinct(n: int) -> list[str]:
    """Colors of ``n`` groups: those of the style if they are enough."""
    from matplotlib import rcParams

    cycle = rcParams["axes.prop_cycle"].by_key().get("color", ["C0"])
    if n <= len(cycle):
        return cycle[:n]
    return list(palette_colors([str(i) for i in range(n)], "tab20" if n <= 20 else "gist_rainbow", {}).values())


def _limits(ax: Axes) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
    return low, high


def _outside(ax: Axes, points: np.ndarray) -> np.ndarray:
    """Whether coordinates are outside of the limits: -1, 0 or 1 for below, inside and above."""
    low, high = _limits(ax)
    return (points > high).astype(int) - (points < low).astype(int)


def _inside(ax: Axes, points: np.ndarray) -> np.ndarray:
    """Points, with those outside moved to the border."""
    low, high = _limits(ax)
    room = 0.015 * (high - low)
    return np.where(_outside(ax, points) == 0, points, np.clip(points, low + room, high - room))


def _scatter(ax: Axes, table: pd.DataFrame, size: float, look: Mapping[str, Any], label: str) -> None:
    """Draw points, those outside of the limits as triangles at the border that point towards them."""
    points = table[["x", "y"]].to_numpy(np.float64)
    sides = _outside(ax, points)
    within = ~sides.any(axis=1)
    ax.scatter(points[within, 0], points[within, 1], s=size, label=label, **look)
    for point, (right, up) in zip(_inside(ax, points)[~within], sides[~within], strict=True):
        marker = (">" if right > 0 else "<") if right else ("^" if up > 0 else "v")
        ax.scatter(point[0], point[1], s=1.6 * size, marker=marker, clip_on=False, **look)


def _read(adata: AnnData, key: str) -> Mapping[str, Any]:
    result = read_prediction_record(adata, key)
    absent = sorted({"embedding", "explained", "directions"} - set(result))
    if absent:
        msg = f"adata.uns[{key!r}] has no {absent[0]!r}. Call sg.tl.predict_perturbation(adata) again."
        raise MissingKeyError(msg)
    return result


def _points(result: Mapping[str, Any], context: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training points, and predicted points by row label."""
    table = result["embedding"].astype(dict.fromkeys(("method", "perturbation", "context"), str))
    training = table[table["method"] == "training"]
    predicted = table[table["method"] == "predicted"].set_axis(result["rows"].index, axis=0)
    predicted = predicted.assign(group=result["rows"]["group"].astype(str))
    if context is None:
        return training, predicted
    inside = predicted[predicted["context"] == context]
    if len(inside) == 0:
        found = ", ".join(map(repr, predicted["context"].unique()))
        msg = f"There is no prediction in context={context!r}; choose from {found}."
        raise MissingKeyError(msg)
    return training[training["context"] == context], inside


def _observed(adata: AnnData, evaluation_key: str, key: str, directions: pd.DataFrame, rows: pd.Index) -> pd.DataFrame:
    """Observed positions of predicted perturbations, if this prediction was scored."""
    result = read_scores_record(adata, evaluation_key) if evaluation_key in adata.uns else None
    if result is None or result["params"].get("key") != key:
        return pd.DataFrame(columns=["x", "y"])
    effects = result["observed"]
    known = directions.index.intersection(effects.index)
    found = rows.intersection(effects.columns)
    places = effects.loc[known, found].to_numpy().T @ directions.loc[known].to_numpy()
    return pd.DataFrame(places, index=found, columns=["x", "y"])
