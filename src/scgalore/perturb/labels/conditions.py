"""Which genes were perturbed in each cell, read from labels in any of the spellings in use."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

__all__ = ["CONTROL", "CONTROL_LABELS", "Conditions", "canonical_name", "genes_as_written", "parse_condition"]

CONTROL = "control"
"""Name of the unperturbed state in results, whatever its label in the data."""

# Case matters: CTRL (chymotrypsin like) is a human gene.
CONTROL_LABELS = (
    CONTROL,
    "Control",
    "ctrl",
    "Ctrl",
    "non-targeting",
    "Non-targeting",
    "Non-Targeting",
    "nontargeting",
    "non_targeting",
    "NT",
    "negctrl",
    "NegCtrl",
    "neg_ctrl",
    "unperturbed",
)
"""Labels taken for control where the user names none."""

JOINT = "+"
"""Stands between the genes of a canonical name."""


def canonical_name(genes: Iterable[str]) -> str:
    """Name of a perturbation: its genes, sorted and joined by ``+``; :data:`CONTROL` for none.

    Parameters
    ----------
    genes
        Symbols, in any order.
    """
    return JOINT.join(sorted(genes)) or CONTROL


def parse_condition(text: str, *, control: str | None = None, separator: str | None = None) -> tuple[str, ...]:
    """Genes of one label, sorted; ``()`` for control.

    Parameters
    ----------
    text
        ``"A"``, ``"A+ctrl"``, ``"ctrl+A"``, ``"A+B"``, or the same with another separator.
    control
        Label of control; ``None`` takes each of :data:`CONTROL_LABELS` for control.
    separator
        What stands between genes; ``"+"`` when left out.

    Raises
    ------
    DataError
        If a part is empty or a gene occurs twice.
    OptionError
        If the separator is empty.

    Examples
    --------
    >>> parse_condition("MAP2K6+KLF1"), parse_condition("ctrl+KLF1"), parse_condition("ctrl")
    (('KLF1', 'MAP2K6'), ('KLF1',), ())
    """
    controls = CONTROL_LABELS if control is None else (control,)
    return tuple(sorted(genes_as_written(text, controls=controls, separator=_joint(separator))))


def genes_as_written(text: str, *, controls: Sequence[str], separator: str) -> tuple[str, ...]:
    """Genes of one label in the order of the label; ``()`` for control.

    Parameters
    ----------
    text
        The label.
    controls
        What stands for control, alone or as a part.
    separator
        What stands between the parts.

    Raises
    ------
    DataError
        If a part is empty, a gene occurs twice, or a gene holds a ``+`` that is not the separator.
    """
    parts = _parts(text.strip(), controls, separator)
    genes = tuple(part for part in parts if part not in controls)
    fault = ""
    if not all(genes):
        fault = "has an empty part"
    elif len(set(genes)) < len(genes):
        fault = "names a gene twice"
    elif any(JOINT in gene for gene in genes):
        fault = f"holds a {JOINT!r}, which the separator {separator!r} leaves inside a gene name"
    if fault:
        msg = (
            f"The label {text!r} {fault}; expected a gene, genes joined by {separator!r}, or a label of control. "
            "Correct the label, or pass control= or separator= if they were not recognised."
        )
        raise DataError(msg)
    return genes


@dataclass(frozen=True)
class Conditions:
    """The perturbation of each cell.

    Attributes
    ----------
    codes
        Position in ``names`` for each cell, int64 ``(n_obs,)``; -1 where the label is missing.
    names
        Canonical names: :data:`CONTROL`, then the perturbations by first appearance.
    genes
        Genes of each name, sorted; ``()`` for control.
    spellings
        Labels found for each name, by first appearance.
    labels
        All labels found, by first appearance in the data.
    written
        Genes of each of ``labels``, in its own order.
    control
        Label of control in the data.
    separator
        What stands between the genes in the labels.
    """

    codes: NDArray[np.int64] = field(repr=False)
    names: tuple[str, ...]
    genes: tuple[tuple[str, ...], ...] = field(repr=False)
    spellings: tuple[tuple[str, ...], ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    written: tuple[tuple[str, ...], ...] = field(repr=False)
    control: str
    separator: str

    @classmethod
    def from_labels(
        cls,
        labels: Sequence[str | float | None] | ArrayLike,
        *,
        control: str | None = None,
        separator: str | None = None,
    ) -> Self:
        """Read the label of each cell.

        Parameters
        ----------
        labels
            One label for each cell, ``(n_obs,)``; NaN and None are cells without one.
        control
            Label of control; ``None`` finds the one of :data:`CONTROL_LABELS` that occurs.
        separator
            What stands between genes. ``None`` finds it: ``"+"`` where a label holds one; ``"_"`` where most labels that
            hold one are made of other labels.

        Raises
        ------
        DataError
            If no cell or several labels are control, or a label does not parse.
        OptionError
            If ``control`` is not among the labels, or the separator is empty.
        """
        by_label, found = pd.factorize(pd.Series(np.asarray(labels, dtype=object)))
        texts = tuple(str(label) for label in found)
        named = _control_label(texts, control)
        between = _separator(texts, named) if separator is None else _joint(separator)
        # Labels such as "A+ctrl" name control by a word of their own, which need not be the label of control cells.
        controls = tuple(dict.fromkeys((named, *CONTROL_LABELS)))
        written = tuple(genes_as_written(text, controls=controls, separator=between) for text in texts)
        spelled: dict[tuple[str, ...], list[str]] = {(): []}
        for text, genes in zip(texts, written, strict=True):
            spelled.setdefault(tuple(sorted(genes)), []).append(text)
        position = {text: i for i, group in enumerate(spelled.values()) for text in group}
        of_label = np.array([*(position[text] for text in texts), -1], dtype=np.int64)  # code -1 takes the last
        return cls(
            codes=of_label[by_label],
            names=tuple(canonical_name(genes) for genes in spelled),
            genes=tuple(spelled),
            spellings=tuple(tuple(group) for group in spelled.values()),
            labels=texts,
            written=written,
            control=named,
            separator=between,
        )

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Names without control."""
        return self.names[1:]

    def rows(self, name: str) -> NDArray[np.int64]:
        """Cells of a perturbation, or of control, sorted.

        Parameters
        ----------
        name
            Canonical name, or any of the labels found.

        Raises
        ------
        MissingKeyError
            If there is none of that name.
        """
        return np.flatnonzero(self.codes == self.index(name)).astype(np.int64)

    def index(self, name: str) -> int:
        """Position of a perturbation in ``names``.

        Parameters
        ----------
        name
            Canonical name, or any of the labels found.

        Raises
        ------
        MissingKeyError
            If there is none of that name; the message has similar ones.
        """
        if name not in self._index:
            close = get_close_matches(str(name), self.names, n=5) or list(self.names[:5])
            msg = f"No perturbation {name!r} among {len(self.names) - 1:,}; similar names: {', '.join(close)}."
            raise MissingKeyError(msg)
        return self._index[name]

    @cached_property
    def _index(self) -> dict[str, int]:
        of_spelling = {text: i for i, group in enumerate(self.spellings) for text in group}
        return of_spelling | {name: i for i, name in enumerate(self.names)}


def _joint(separator: str | None) -> str:
    if separator == "":
        msg = "separator is empty; expected what stands between the genes of a label, such as '+' or '_'."
        raise OptionError(msg)
    return JOINT if separator is None else separator


def _parts(text: str, controls: Sequence[str], separator: str) -> list[str]:
    """Pieces of a label; names of control are taken off first, since they may hold the separator ("non_targeting")."""
    if text in controls:
        return [text]
    for control in controls:
        if text.endswith(separator + control):
            return [*_parts(text[: -len(separator + control)], controls, separator), control]
        if text.startswith(control + separator):
            return [control, *_parts(text[len(control + separator) :], controls, separator)]
    return [part.strip() for part in text.split(separator)]


def _control_label(labels: tuple[str, ...], control: str | None) -> str:
    if control is not None:
        if control in labels:
            return control
        close = get_close_matches(str(control), labels, n=5) or list(labels[:5])
        msg = f"control={control!r} is none of the {len(labels):,} labels; similar ones: {', '.join(close)}."
        raise OptionError(msg)
    found = [label for label in labels if label in CONTROL_LABELS]
    if len(found) == 1:
        return found[0]
    if not found:
        msg = (
            f"No label of control among {', '.join(labels[:5])}{', ...' if labels[5:] else ''}: looked for "
            f"{', '.join(CONTROL_LABELS)}. Name it with control=."
        )
    else:
        msg = (
            f"Several labels look like control: {', '.join(found)}. Give them one name, or name the one with control=."
        )
    raise DataError(msg)


def _separator(labels: tuple[str, ...], control: str) -> str:
    if any(JOINT in label for label in labels):
        return JOINT
    # "KLF1_guide1" must stay one name, so a pair counts only if one of its parts is a label of its own.
    alone = {label for label in labels if "_" not in label} | {control}
    pairs = [label for label in labels if "_" in label and label not in (control, *CONTROL_LABELS)]
    n_made_of_labels = sum(not alone.isdisjoint(_parts(label, (control,), "_")) for label in pairs)
    return "_" if pairs and 2 * n_made_of_labels >= len(pairs) else JOINT
