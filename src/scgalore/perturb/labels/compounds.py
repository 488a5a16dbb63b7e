"""Compound and dose of each cell: drugs, cytokines and other stimuli."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from scgalore._words import few
from scgalore.data.texts import looks_missing, same_label, text_of, texts_of
from scgalore.errors import DataError
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.control import CONTROL, CONTROL_LABELS, find_controls
from scgalore.perturb.labels.parsing import JOINT, Agent, at_dose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from numpy.typing import NDArray

    from scgalore._typing import Control

__all__ = ["Compounds", "dosed_numbers", "dosed_texts"]

ONE_DOSE = 1.0
"""Dose of every compound in data without a column of doses."""


@dataclass(frozen=True)
class Compounds(Conditions):
    """The compound and dose of each cell; a perturbation is one compound at one dose, named like ``"dexamethasone@0.5"``.

    Attributes
    ----------
    has_doses
        Whether the data have doses; without doses, all compounds have dose 1.
    """

    kind: ClassVar[str] = "compound"

    has_doses: bool = False

    @classmethod
    def from_doses(
        cls, labels: Iterable[object] | pd.Series, doses: pd.Series | None = None, *, control: Control = None
    ) -> Self:
        """Read the compound and dose of each cell.

        Parameters
        ----------
        labels
            Name of a compound or label of control for each cell, ``(n_obs,)``. A label is always one compound,
            regardless of its characters.
        doses
            Dose of each cell, a positive number; 0 or missing for control. ``None`` gives all compounds the dose 1.
        control
            As for :meth:`~scgalore.perturb.labels.conditions.Conditions.from_labels`.

        Raises
        ------
        DataError
            If a dose is not a positive number, a compound has none, control or a cell without a label has one, or no or
            several labels look like control.
        OptionError
            If ``control`` is not among the labels.
        """
        texts = texts_of(labels)
        known = [text for text in dict.fromkeys(texts) if text is not None and not looks_missing(text)]
        controls = find_controls(known, control)
        left_out = {text for text in known if text in CONTROL_LABELS and text not in controls}
        compounds = [text for text in known if text not in controls and text not in left_out]
        is_compound = np.isin(texts.astype(str), compounds)
        numbers = np.where(is_compound, ONE_DOSE, np.nan) if doses is None else dosed_numbers(doses)
        if doses is not None:
            _check_doses(texts, numbers, is_compound, np.isin(texts.astype(str), list(left_out)), str(doses.name))
        by_text, unique = pd.factorize(dosed_texts(texts, None if doses is None else numbers))
        n_cells = np.bincount(by_text[by_text >= 0], minlength=len(unique))
        first = np.full(len(unique), len(texts))
        np.minimum.at(first, by_text[by_text >= 0], np.flatnonzero(by_text >= 0))
        name_of = {
            text: at_dose(texts[cell], numbers[cell]) if is_compound[cell] else CONTROL
            for text, cell in zip(unique, first, strict=True)
            if is_compound[cell] or texts[cell] in controls
        }
        spelled: dict[str, list[str]] = {CONTROL: []}
        for text, name in name_of.items():
            spelled.setdefault(name, []).append(text)
        place = {name: i for i, name in enumerate(spelled)}
        codes = np.array([*(place.get(name_of.get(text, ""), -1) for text in unique), -1], dtype=np.int64)[by_text]
        counts = dict(zip(unique.tolist(), n_cells.tolist(), strict=True))
        agents = tuple(() if name == CONTROL else (name,) for name in spelled)
        return cls(
            codes=codes,
            names=tuple(spelled),
            genes=agents,
            spellings=tuple(tuple(group) for group in spelled.values()),
            labels=tuple(name_of),
            written=tuple(() if name == CONTROL else (name,) for name in name_of.values()),
            controls=controls,
            separator=JOINT,
            n_cells=tuple(counts[text] for text in name_of),
            left_out={text: n for text, n in counts.items() if text not in name_of},
            has_doses=doses is not None,
        )

    def genes_of(self, label: object, *, separator: str | None = None) -> tuple[str, ...]:
        """Parse a label as a compound at a dose, ``()`` for control.

        Parameters
        ----------
        label
            ``"dexamethasone@0.5"``, at any dose, measured or not; the name of a compound alone in data without doses; a
            label of control.
        separator
            Not used: compounds are not combined.

        Raises
        ------
        DataError
            If the label does not name exactly one compound, has a dose for control, or has no positive dose.
        """
        text = text_of(label)
        if text is None or looks_missing(text):
            msg = f"{label!r} names no compound; write it as 'compound@dose', or name a label of control."
            raise DataError(msg)
        if (same_label(text, self.controls) or text) in (*self.controls, CONTROL):
            return ()
        compound, dose = Agent.of(text)
        self._refuse_no_compound(text, compound)
        if not self.has_doses:
            if dose not in (None, ONE_DOSE):
                msg = f"{text!r} names a dose, and these data have none. Pass the column of doses, dose_key=, or name {compound!r}."
                raise DataError(msg)
            return (at_dose(same_label(compound, self._compounds) or compound, ONE_DOSE),)
        if dose is None:
            doses = [name for name in self.perturbations if Agent.of(name).subject == compound]
            measured = f"; measured were {few(doses, 5)}" if doses else ""
            msg = f"{text!r} has no positive dose. Write it as 'compound@dose', with a dose in the unit of the data{measured}."
            raise DataError(msg)
        if dose <= 0:
            msg = f"{text!r} has the dose 0, at which a compound is control. Name a positive dose."
            raise DataError(msg)
        return (at_dose(compound, dose),)

    def name_of(self, gene: str) -> str:
        """Canonical name of a compound at a dose."""
        compound, dose = Agent.of(gene)
        return gene if dose is None else at_dose(compound, dose)

    def unknown(self, known: Callable[[str], bool] = lambda gene: False) -> dict[str, int]:
        """Empty: the name of a compound can be any text."""
        return {}

    def _refuse_no_compound(self, text: str, compound: str) -> None:
        """Raise an error for control at a dose, and for joined compounds."""
        if (same_label(compound, self.controls) or compound) in (*self.controls, CONTROL):
            msg = f"{text!r} is control with a dose, and control is no compound. Name a compound, or {compound!r} for control."
            raise DataError(msg)
        parts = [Agent.of(part.strip()) for part in text.split(JOINT)]
        are_compounds = all(part.subject in self._compounds for part in parts) or all(part.dose for part in parts)
        if len(parts) > 1 and are_compounds and compound not in self._compounds:
            msg = (
                f"{text!r} joins {len(parts)} compounds, and compounds are not combined. Predict one at a time; what a mixture does can be "
                "predicted if cells were given it, as a compound with a label of its own."
            )
            raise DataError(msg)

    @property
    def _compounds(self) -> list[str]:
        return list(dict.fromkeys(Agent.of(name).subject for name in self.perturbations))


def dosed_texts(labels: NDArray[np.object_], doses: NDArray[np.float64] | None) -> NDArray[np.object_]:
    """Label and dose of each cell as one text, ``(n_obs,)``; the label alone if there is no dose.

    Parameters
    ----------
    labels
        Text or ``None``, ``(n_obs,)``.
    doses
        ``(n_obs,)``, NaN or 0 for none; ``None`` if no cell has a dose.
    """
    if doses is None:
        return labels
    table = pd.DataFrame({"label": labels, "dose": np.where(doses > 0, doses, np.nan)})
    place, pairs = pd.factorize(pd.MultiIndex.from_frame(table))
    texts = [None if pd.isna(label) else label if pd.isna(dose) else at_dose(label, dose) for label, dose in pairs]
    return np.array([*texts, None], dtype=object)[place]


def dosed_numbers(doses: pd.Series) -> NDArray[np.float64]:
    """Doses as numbers, NaN for missing ones."""
    texts = pd.Series([None if text is None or looks_missing(text) else text for text in texts_of(doses)], dtype=object)
    numbers = pd.to_numeric(texts, errors="coerce")
    wrong = list(dict.fromkeys(texts[numbers.isna() & texts.notna()]))
    if wrong:
        msg = (
            f"adata.obs[{doses.name!r}] holds {few(wrong)}; a dose is a positive number, and missing or 0 for control."
        )
        raise DataError(msg)
    return numbers.to_numpy(np.float64)


def _check_doses(
    labels: NDArray[np.object_],
    doses: NDArray[np.float64],
    is_compound: NDArray[np.bool_],
    is_left_out: NDArray[np.bool_],
    key: str,
) -> None:
    """Raise an error for doses that do not match the labels."""
    has_label = np.array([label is not None and not looks_missing(label) for label in labels])
    is_control = has_label & ~is_compound & ~is_left_out
    faults = {
        "a dose that is negative or infinite": (doses < 0) | np.isinf(doses),
        "a compound and no dose": is_compound & np.isnan(doses),
        "a compound at dose 0, which is control": is_compound & (doses == 0),
        "control with a dose": is_control & (doses > 0),
        "a dose and no compound": ~has_label & (doses > 0),
    }
    for fault, cells in faults.items():
        if cells.any():
            first = int(np.argmax(cells))
            msg = (
                f"{int(cells.sum()):,} cells have {fault}, such as label {labels[first]!r} with adata.obs[{key!r}] = "
                f"{doses[first]:g}. Expected a positive dose for each compound, and 0 or a missing one for control; name "
                "control with control=, and correct the column or leave these cells out."
            )
            raise DataError(msg)
