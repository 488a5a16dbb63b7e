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
"""Classes that any column may have, however few cells there are."""

NO_TYPE = frozenset(
    {"?", "", "unknown", "unk", "unassigned", "unclassified", "undefined", "unlabeled", "unlabelled", "unspecified"}
    | {"not assigned", "not available", "no label", "undetermined", "unannotated"}
)
"""What people call cells whose type they do not know, without dashes and underscores."""


def encode_labels(adata: AnnData, key: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Read a column of ``adata.obs`` as class codes.

    Parameters
    ----------
    adata
        Cells.
    key
        Column with one label for each cell.

    Returns
    -------
    Codes, int64 ``(n_obs,)``, and the name of each class, in the order of the codes: that of a
    categorical column, otherwise sorted, numbers as numbers.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If a label is missing, if there is only one class, or if the column looks like a measurement or a name of cells.
    """
    column, where = read_column(adata.obs, key), f"adata.obs[{key!r}]"
    classes = classes_of(column, where)
    if len(classes) < 2:
        found = f"one class only, {classes[0]!r}" if classes else "no label"
        msg = f"{where} holds {found}; there is nothing to tell apart."
        raise DataError(msg)
    refuse_measurement(column, where, n_classes=len(classes))
    return class_codes(column, classes), classes


def groups_of(adata: AnnData, key: str | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Groups of cells that are looked at apart.

    Parameters
    ----------
    adata
        Cells.
    key
        Column of ``adata.obs``; ``None`` puts all cells into one group, ``"all"``.

    Returns
    -------
    Number of the group of each cell, -1 for cells without a label, int64 ``(n_obs,)``, and the names of the groups.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    DataError
        If no cell has a label, or the column looks like a measurement or a name of cells.
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
    """Names of the classes in a column: in the order of a categorical column, otherwise as :func:`in_order` has them.

    Parameters
    ----------
    column
        One label for each cell, of any type: 1, 1.0 and "1" are one label.
    where
        What to call the column in messages.

    Raises
    ------
    DataError
        If a label is missing, or is a word for missing such as ``"nan"``.
    """
    texts = texts_of(column)
    words = sorted({text for text in texts if text is not None and looks_missing(text)})
    n_missing = int(np.isin(texts, words).sum() + pd.isna(texts).sum())
    if n_missing:
        _refuse_missing(n_missing, words, column, where)
    # A categorical's own order is kept, so that plots of labels and predictions use the same colours.
    if isinstance(column.dtype, pd.CategoricalDtype):
        first = np.unique(column.cat.codes, return_index=True)[1]
        return tuple(dict.fromkeys(texts[first]))
    return in_order(texts)


def _refuse_missing(n_missing: int, words: Sequence[str], column: pd.Series, where: str) -> None:
    labels = f"adata.obs[{str(column.name)!r}]"
    chosen, hint, called = f"{labels}.notna()", "", ""
    if words:
        chosen += f" & ~{labels}.isin({words})"
        called = f" ({few(words)} counts as none)"
        hint = f" If {words[0]!r} is a class of yours, give it another name."
    msg = (
        f"{n_missing:,} of {len(column):,} cells have no label in {where}{called}. Train on the labelled ones, "
        f"adata[{chosen}], and label the others with sg.tl.annotate; with unlabelled= a model of classes learns from them, too.{hint}"
    )
    raise DataError(msg)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, sorted; as numbers where all of them are numbers, so that 2 comes before 10.

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
    """Names of classes that a user lists, as text.

    Parameters
    ----------
    classes
        Names of any type, in the order of their codes.

    Raises
    ------
    OptionError
        If one is missing or comes twice.
    """
    listed = list(classes)
    names = texts_of(listed)
    once = tuple(dict.fromkeys(name for name in names if name is not None))
    if len(once) < len(names):
        msg = f"classes={listed}: each must be the name of a class, and none may come twice (1, 1.0 and '1' are one name)."
        raise OptionError(msg)
    return once


def class_codes(column: pd.Series, classes: Sequence[str]) -> NDArray[np.int64]:
    """Position of each label among the classes, -1 for a label that is none of them.

    Parameters
    ----------
    column
        One label for each cell, of any type.
    classes
        Names of the classes.
    """
    place: dict[str | None, int] = {name: code for code, name in enumerate(classes)}
    codes, found = pd.factorize(pd.Series(column))
    # Label by label: some rows of a column do not tell whether all of it is whole numbers, as texts_of asks.
    of_label = [place.get(same_label(label, classes), -1) for label in found]
    return np.array([*of_label, -1], dtype=np.int64)[codes]  # the code of a missing label is -1


def class_colors(adata: AnnData, key: str, classes: Sequence[str]) -> NDArray[np.str_] | None:
    """Colour of each class, where scanpy has given colours to the categories of the labels.

    Parameters
    ----------
    adata
        Cells.
    key
        Column of ``obs`` with their labels.
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
    """Warnings of classes that are probably none: each says how many cells there are, and what to do.

    Parameters
    ----------
    classes
        Names of the classes.
    counts
        Cells of each class, int64 ``(n_classes,)``.
    where
        What to call the labels.
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
            f"{where} has the class {_counted(untyped, n_of)}, which would be learned like a type of cells. Leave these cells "
            "out, and label them with sg.tl.annotate(adata, model)."
        )
    if alike:
        groups = "; ".join(" and ".join(_counted([name], n_of) for name in names) for names in alike[:3])
        found.append(
            f"{where} has classes that differ in nothing but case and blanks: {groups}. They are learned as different classes; "
            "write them alike if they are one."
        )
    if blank:
        found.append(
            f"{where} has labels that begin or end with a blank: {_counted(blank, n_of)}. Strip them, .str.strip()."
        )
    if single:
        found.append(
            f"{where} has classes of one cell ({len(single):,} in all), which is too few to learn from and to test on: {few(single)}. Join "
            "them with others, or leave them out."
        )
    return found


def _counted(names: Sequence[str], n_of: dict[str, int]) -> str:
    shown = [f"{name!r} ({n_of[name]:,} {'cell' if n_of[name] == 1 else 'cells'})" for name in names[:5]]
    return ", ".join(shown) + (", ..." if len(names) > 5 else "")


def refuse_measurement(column: pd.Series, where: str, *, n_classes: int) -> None:
    """Raise :class:`~scgalore.errors.DataError` if a column looks like a measurement or like names of cells."""
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    share = 0.1 if is_number else 0.5  # names that repeat less than this are barcodes, not classes
    if n_classes > max(MOST_IN_FEW_CELLS, share * len(column)):
        what = "numbers" if is_number else "names"
        msg = (
            f"{where} holds {n_classes:,} different {what} in {len(column):,} cells; expected "
            "classes, such as cell types. A measurement can be cut into classes with pandas.cut."
        )
        raise DataError(msg)
