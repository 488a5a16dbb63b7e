"""Class labels of cells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.texts import looks_missing, same_label, texts_of
from scgalore.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = [
    "class_codes",
    "class_colors",
    "class_names",
    "classes_of",
    "doubtful_labels",
    "encode_labels",
    "groups_of",
    "in_order",
    "refuse_measurement",
]

MOST_IN_FEW_CELLS = 20
"""Number of classes allowed in any column, regardless of the number of cells."""

NO_TYPE = frozenset(
    {"?", "", "unknown", "unk", "unassigned", "unclassified", "undefined", "unlabeled", "unlabelled", "unspecified"}
    | {"not assigned", "not available", "no label", "undetermined", "unannotated"}
)
"""Usual labels of cells of unknown type, without dashes and underscores."""


def encode_labels(adata: AnnData, key: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Read a column of ``adata.obs`` as class codes.

    Parameters
    ----------
    adata
        Cells.
    key
        Column with one label per cell.

    Returns
    -------
    Codes, int64 ``(n_obs,)``, and the name of each class, in the order of the codes: the order of a
    categorical column, otherwise sorted, numbers numerically.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If a label is missing, there is only one class, or the column looks like a measurement or cell names.
    """
    column, where = read_column(adata.obs, key), f"adata.obs[{key!r}]"
    classes = classes_of(column, where)
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no labels"
        msg = f"{where} has {found}; expected at least two classes."
        raise DataError(msg)
    refuse_measurement(column, where, n_classes=len(classes))
    return class_codes(column, classes), classes


def groups_of(adata: AnnData, key: str | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Groups of cells that are analysed separately.

    Parameters
    ----------
    adata
        Cells.
    key
        Column of ``adata.obs``; ``None`` puts all cells into one group, ``"all"``.

    Returns
    -------
    Code of the group of each cell, -1 for cells without a label, int64 ``(n_obs,)``, and the names of the groups.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If no cell has a label, or the column looks like a measurement or cell names.
    """
    if key is None:
        return np.zeros(adata.n_obs, dtype=np.int64), ("all",)
    column, where = read_column(adata.obs, key, asked="groupby"), f"adata.obs[{key!r}]"
    labelled = np.array([text is not None and not looks_missing(text) for text in texts_of(column)])
    if not labelled.any():
        msg = f"{where} has no label for any cell. Pass another column as groupby=, or None for all cells in one group."
        raise DataError(msg)
    named = column[labelled]
    names = classes_of(named, where)
    refuse_measurement(named, where, n_classes=len(names))
    codes = np.full(adata.n_obs, -1, dtype=np.int64)
    codes[labelled] = class_codes(named, names)
    return codes, names


def classes_of(column: pd.Series, where: str) -> tuple[str, ...]:
    """Names of the classes in a column: in the order of a categorical column, otherwise sorted by :func:`in_order`.

    Parameters
    ----------
    column
        One label per cell, of any type: 1, 1.0 and "1" are the same label.
    where
        Name of the column in messages.

    Raises
    ------
    DataError
        If a label is missing, or is a text for missing values such as ``"nan"``.
    """
    texts = texts_of(column)
    words = sorted({text for text in texts if text is not None and looks_missing(text)})
    n_missing = int(np.isin(texts, words).sum() + pd.isna(texts).sum())
    if n_missing:
        _refuse_missing(n_missing, words, column, where)
    # The order of a categorical is kept, so that plots of labels and predictions use the same colours.
    if isinstance(column.dtype, pd.CategoricalDtype):
        first = np.unique(column.cat.codes, return_index=True)[1]
        return tuple(dict.fromkeys(texts[first]))
    return in_order(texts)


def _refuse_missing(n_missing: int, words: Sequence[str], column: pd.Series, where: str) -> None:
    labels = f"adata.obs[{str(column.name)!r}]"
    chosen, hint, called = f"{labels}.notna()", "", ""
    if words:
        chosen += f" & ~{labels}.isin({words})"
        called = f" ({few(words)} counts as missing)"
        hint = f" If {words[0]!r} is a class, rename it."
    msg = (
        f"{n_missing:,} of {len(column):,} cells have no label in {where}{called}. Train on the labelled ones, "
        f"adata[{chosen}], and label the others with sg.tl.annotate; unlabelled= also uses them for training.{hint}"
    )
    raise DataError(msg)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Unique names, sorted; numerically if all are numbers, so that 2 comes before 10.

    Parameters
    ----------
    names
        Texts of labels.
    """
    once = set(names)
    try:
        return tuple(sorted(once, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(once))


def class_names(classes: Iterable[object]) -> tuple[str, ...]:
    """Names of classes listed by the user, as text.

    Parameters
    ----------
    classes
        Names of any type, in the order of their codes.

    Raises
    ------
    OptionError
        If a name is missing or duplicated.
    """
    listed = list(classes)
    names = texts_of(listed)
    once = tuple(dict.fromkeys(name for name in names if name is not None))
    if len(once) < len(names):
        msg = f"classes={listed}: expected unique names of classes (1, 1.0 and '1' are the same name)."
        raise OptionError(msg)
    return once


def class_codes(column: pd.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Position of each label among the classes, -1 for other labels.

    Parameters
    ----------
    column
        One label per cell, of any type.
    classes
        Names of the classes.
    """
    place: dict[str | None, int] = {name: code for code, name in enumerate(classes)}
    codes, found = pd.factorize(pd.Series(column))
    # Label by label: texts_of needs the whole column to decide whether all labels are whole numbers.
    of_label = [place.get(same_label(label, classes), -1) for label in found]
    return np.array([*of_label, -1], dtype=np.int64)[codes]  # the code of a missing label is -1


def class_colors(adata: AnnData, key: str, classes: Sequence[str]) -> NDArray[np.str_] | None:
    """Colour of each class, if the categories of the labels have scanpy colours.

    Parameters
    ----------
    adata
        Cells.
    key
        Column of ``obs`` with the labels.
    classes
        Names of the classes.
    """
    column, colors = adata.obs[key], adata.uns.get(f"{key}_colors")
    if not isinstance(column.dtype, pd.CategoricalDtype) or not isinstance(colors, np.ndarray | list | tuple):
        return None
    of_category = class_codes(column.cat.categories.to_series(), classes)
    places = {code: place for place, code in reversed(list(enumerate(of_category.tolist())))}
    if len(colors) < len(of_category) or not places.keys() >= set(range(len(classes))):
        return None
    return np.array([str(colors[places[code]]) for code in range(len(classes))])


def doubtful_labels(classes: Sequence[str], counts: NDArray[np.int64], where: str) -> list[str]:
    """Warnings about doubtful classes, with numbers of cells and advice.

    Parameters
    ----------
    classes
        Names of the classes.
    counts
        Number of cells of each class, int64 ``(n_classes,)``.
    where
        Name of the labels in messages.
    """
    n_of = dict(zip(classes, counts.tolist(), strict=True))
    of_form: dict[str, list[str]] = {}
    for name in classes:
        of_form.setdefault(" ".join(name.lower().split()), []).append(name)
    alike = [names for names in of_form.values() if len(names) > 1]
    blank = [name for (name, *others) in of_form.values() if not others and name != name.strip()]
    untyped = [name for name in classes if " ".join(re.split(r"[\s_-]+", name.lower())).strip() in NO_TYPE]
    single = [name for name, n in n_of.items() if n == 1]
    found = []
    if untyped:
        found.append(
            f"{where} has the class {_counted(untyped, n_of)}, which would be learned like a cell type. Exclude these cells "
            "and label them with sg.tl.annotate(adata, model)."
        )
    if alike:
        groups = "; ".join(" and ".join(_counted([name], n_of) for name in names) for names in alike[:3])
        found.append(
            f"{where} has classes that differ only in case and spaces: {groups}. They are learned as different classes; "
            "use one spelling if they are the same."
        )
    if blank:
        found.append(
            f"{where} has labels with leading or trailing spaces: {_counted(blank, n_of)}. Remove them with .str.strip()."
        )
    if single:
        found.append(
            f"{where} has classes with a single cell ({len(single):,} in total), too few for training and testing: {few(single)}. Merge "
            "them with others, or exclude them."
        )
    return found


def _counted(names: Sequence[str], n_of: dict[str, int]) -> str:
    shown = [f"{name!r} ({n_of[name]:,} {'cell' if n_of[name] == 1 else 'cells'})" for name in names[:5]]
    return ", ".join(shown) + (", ..." if len(names) > 5 else "")


def refuse_measurement(column: pd.Series, where: str, *, n_classes: int) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a column looks like a measurement or like names of cells."""
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    share = 0.1 if is_number else 0.5  # names with fewer repetitions are barcodes, not classes
    if n_classes > max(MOST_IN_FEW_CELLS, share * len(column)):
        what = "numbers" if is_number else "names"
        msg = (
            f"{where} has {n_classes:,} different {what} in {len(column):,} cells; expected "
            "classes, such as cell types. A measurement can be divided into classes with pandas.cut."
        )
        raise DataError(msg)
