"""Confusion matrix of true and predicted labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

from scgalore import _logging as logg
from scgalore._docs import shared_parameters
from scgalore._keys import UNKNOWN
from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.labels import in_order
from scgalore.data.texts import looks_missing, same_label, texts_of
from scgalore.errors import DataError, OptionError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import class_colors, ink_on, palette_colors
from scgalore.pl._results import label_keys, read_result

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scgalore._typing import PathLike
    from scgalore.pl._colors import Palette

Part = Literal["train", "validation", "test", "all"]


@shared_parameters
def confusion_matrix(
    adata: AnnData,
    *,
    key: str = "finetune",
    labels_key: str | None = None,
    part: Part = "test",
    normalize: bool = True,
    title: str | None = None,
    cmap: str = "Blues",
    palette: Palette | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """True labels in rows, predicted ones in columns.

    Parameters
    ----------
    {adata}
    {key}
    labels_key
        Column of ``adata.obs`` with the true labels; ``None`` uses the column the model was fine-tuned on. Cells
        without a label are excluded. Labels are compared as text: 1, 1.0 and ``"1"`` are one class.
    part
        Cells to count: held-out cells (``"test"``), those of another split, or ``"all"``.
    normalize
        Whether to write and colour percentages of each row, instead of numbers of cells.
    {title}
    {cmap}
    palette
        Colors of the classes, drawn next to their names: a list of them, a dictionary, or the name of a matplotlib
        colormap. ``None`` uses those in ``adata.uns[f"{labels_key}_colors"]``, where scanpy keeps them, if there are
        any.
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown. Numbers of cells are shown next to
    the names of the rows; squares without cells are blank. The title has the accuracy, unless no true label is a class
    of the model. Cells that
    :func:`scgalore.tl.annotate` called unknown are the last column; they count neither as right nor as wrong.

    Raises
    ------
    MissingKeyError
        If there are no predictions under ``key``, or a column of ``adata.obs`` does not exist.
    OptionError
        If ``part`` is not a split, ``labels_key`` is required, or ``palette`` contains something that is not a color.
    DataError
        If the split has no cells.

    See Also
    --------
    scgalore.tl.finetune : Fine-tune a model on your cells.
    scgalore.tl.annotate : Predict labels or values of new cells.
    scgalore.pl.history : Draw losses and scores by epoch.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.tl.finetune(adata, "scgpt-mini", labels_key="bulk_labels", max_epochs=1)
    >>> ax = sg.pl.confusion_matrix(adata, show=False)
    """
    result = read_result(adata, key)
    labels_key, classes = _labels_key(result, labels_key, key), texts_of(list(result.get("classes", ()))).tolist()
    truth, predicted = _labels(adata, key, labels_key, part, classes)
    labelled = predicted != UNKNOWN if "unknown" in result else np.ones(len(predicted), dtype=bool)
    counts = _count(truth, predicted, order=classes, labelled=labelled)
    if not labelled.any():
        accuracy = "all unknown"
    elif np.isin(truth, [*classes, *predicted]).any():
        others = "" if labelled.all() else f"{np.sum(~labelled):,} unknown, otherwise "
        accuracy = f"{others}accuracy {np.mean((truth == predicted)[labelled]):.3f}"
    else:  # for example clusters, which can be compared with classes but not scored
        accuracy = "no label in common"
        logg.warning(
            f"No label of adata.obs[{labels_key!r}] is a class of the model, so the accuracy is undefined: the labels are "
            f"{few(in_order(truth))}, the classes {few(classes or in_order(predicted))}."
        )
    size = _figure_size(list(counts.columns))
    drawn = axes_or_new(ax, size)
    names = [str(name) for name in counts.index]
    colors = palette_colors(names, palette, class_colors(adata, labels_key, names))
    set_title(drawn, title, f"{_cells(len(truth), part)}, {accuracy}")
    _draw(drawn, counts, normalize=normalize, cmap=cmap)
    _mark_classes(drawn, names, list(counts.columns), colors)
    return finish("confusion_matrix", drawn, ax=ax, show=show, save=save, return_fig=return_fig)


def _labels_key(result: Mapping[str, Any], labels_key: str | None, key: str) -> str:
    labels_key = labels_key or result["params"].get("labels_key")
    if labels_key is None:
        msg = f"The call that wrote adata.uns[{key!r}] had no labels. Pass labels_key=, the column of adata.obs with the true labels."
        raise OptionError(msg)
    return labels_key


def _labels(
    adata: AnnData, key: str, labels_key: str, part: str, classes: list[str]
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """True and predicted labels of the labelled cells of a split, as text; classes as spelled by the model."""
    if part not in get_args(Part):
        msg = f"part={part!r}: choose one of {', '.join(map(repr, get_args(Part)))}."
        raise OptionError(msg)
    keys = label_keys(key)
    advice = {
        labels_key: "Pass the column with the true labels as labels_key.",
        keys.label: "Labels are predicted by sg.tl.finetune(adata, labels_key=...) and sg.tl.annotate(adata, model).",
        keys.split: "Pass part='all' to count all cells.",
    }
    for column in [labels_key, keys.label] + [keys.split] * (part != "all"):
        read_column(adata.obs, column, hint=advice[column])
    truth, predicted = (_spelled(texts_of(adata.obs[column]), classes) for column in (labels_key, keys.label))
    chosen = np.array([text is not None and not looks_missing(text) for text in truth]) & ~pd.isna(predicted)
    if part != "all":
        chosen &= (adata.obs[keys.split] == part).to_numpy()
    if not chosen.any():
        parts = dict(adata.obs[keys.split].value_counts()) if keys.split in adata.obs else {}
        sizes = ", ".join(f"{name!r}: {n}" for name, n in parts.items())
        msg = f"No labelled cell belongs to part={part!r}; adata.obs[{keys.split!r}] has {{{sizes}}}."
        raise DataError(msg)
    return truth[chosen], predicted[chosen]


def _spelled(texts: NDArray[np.object_], classes: list[str]) -> NDArray[np.object_]:
    codes, found = pd.factorize(texts)
    return np.array([*(same_label(text, classes) or text for text in found), None], dtype=object)[codes]


def _count(
    truth: NDArray[np.object_], predicted: NDArray[np.object_], *, order: list[str], labelled: NDArray[np.bool_]
) -> pd.DataFrame:
    """Number of cells by true (row) and predicted (column) class, for the classes that occur, in the model's order.

    Cells without a predicted label are in an extra last column.
    """
    seen = {*truth.tolist(), *predicted[labelled].tolist()}
    names = [name for name in order if name in seen]
    names += in_order(seen.difference(names))
    table = pd.crosstab(truth[labelled], predicted[labelled]).reindex(index=names, columns=names, fill_value=0)
    if not labelled.all():
        counts = pd.Series(truth[~labelled]).value_counts().reindex(names, fill_value=0)
        table.insert(len(names), UNKNOWN, counts.to_numpy(), allow_duplicates=True)
    return table.astype(np.int64)


def _cells(n: int, part: str) -> str:
    return f"{n:,} {'' if part == 'all' else part + ' '}cell{'s' if n > 1 else ''}"


def _figure_size(names: list[str]) -> tuple[float, float]:
    squares = max(2.5, 0.36 * len(names))
    longest = 0.08 * max(map(len, names))  # inches, in the usual font size
    return squares + longest + 1.6, squares + 0.7 * longest + 1.1


def _draw(ax: Axes, counts: pd.DataFrame, *, normalize: bool, cmap: str) -> None:
    numbers = counts.to_numpy()
    n_row = numbers.sum(axis=1)
    shown = 100 * numbers / np.maximum(n_row, 1)[:, None] if normalize else numbers
    image = ax.imshow(shown, cmap=cmap, vmin=0, vmax=100 if normalize else None)
    ax.set_xticks(
        range(len(counts.columns)), labels=list(counts.columns), rotation=45, ha="right", rotation_mode="anchor"
    )
    ax.set_yticks(range(len(counts)), labels=[f"{name} ({n:,})" for name, n in zip(counts.index, n_row, strict=True)])
    ax.set(xlabel="predicted" + (" (% of the true class)" if normalize else " (cells)"), ylabel="true (cells)")
    ax.set_xticks(np.arange(-0.5, len(counts.columns)), minor=True)
    ax.set_yticks(np.arange(-0.5, len(counts)), minor=True)
    ax.grid(visible=False, which="major")  # scanpy's figure settings turn the grid on
    ax.grid(which="minor", color="0.9", linewidth=0.5)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    square = _square(ax, numbers.shape)
    for name in (*ax.get_xticklabels(), *ax.get_yticklabels()):
        name.set_fontsize(min(name.get_fontsize(), max(0.9 * square, 4)))
    fontsize = float(np.clip(0.36 * square, 3, 9))
    for row, column in np.argwhere(numbers):
        value = shown[row, column]
        text = f"{numbers[row, column]:,}" if not normalize else "<1" if value < 0.5 else f"{value:.0f}"
        color = ink_on(image.cmap(image.norm(value)))
        ax.text(column, row, text, ha="center", va="center", fontsize=fontsize, color=color)


def _square(ax: Axes, shape: tuple[int, ...]) -> float:
    """Width of a square in typographic points, before names take room from the axes."""
    box = ax.get_window_extent()
    return min(box.width, box.height) / max(shape) * 72 / ax.figure.dpi


def _mark_classes(ax: Axes, rows: list[str], columns: list[str], colors: dict[str, str]) -> None:
    """Put the color of each class between its name and the squares."""
    if not colors:
        return
    size = min(0.7 * _square(ax, (len(rows), len(columns))), 8)  # points
    figure: Any = ax.figure
    left = offset_copy(ax.get_yaxis_transform(), figure, x=-size / 2 - 2, units="points")
    below = offset_copy(ax.get_xaxis_transform(), figure, y=-size / 2 - 2, units="points")
    marks = [(0, i, colors.get(name), left) for i, name in enumerate(rows)]
    marks += [(i, 0, colors.get(name), below) for i, name in enumerate(columns)]
    for x, y, color, transform in marks:
        if color is not None:
            square: dict[str, Any] = {"marker": "s", "markersize": size, "markeredgewidth": 0, "color": color}
            ax.add_artist(Line2D([x], [y], linestyle="none", transform=transform, clip_on=False, **square))
    ax.tick_params(which="major", length=0, pad=size + 4)
