"""Reads which perturbation the user wants in which part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scgalore.data.split import PARTS
from scgalore.errors import OptionError
from scgalore.perturb.labels.control import CONTROL

if TYPE_CHECKING:
    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["parts_by_name"]

_PART_NAMES = {part: part for part in (*PARTS, "dropped")} | {"val": "validation", "valid": "validation"}


def parts_by_name(conditions: Conditions, parts: Mapping[str, Any] | None) -> dict[str, str]:
    """Part of each perturbation, by canonical name.

    Parameters
    ----------
    conditions
        The perturbations there are.
    parts
        Part to perturbations, or perturbation to part; perturbations as labels of the data or as their genes, by any name.
        Those that are not named train, if none is named for training.

    Raises
    ------
    OptionError
        If a part is unknown, a perturbation is left out or in two parts, or control is not in training.
    MissingKeyError
        If a perturbation does not exist.
    """
    part_of: dict[str, str] = {}
    for name, part in _pairs(parts):
        canonical = conditions.names[conditions.index(name)]
        if canonical == CONTROL and part != "train":
            msg = f"parts puts control into {part!r}; control cells are known at prediction and always train."
            raise OptionError(msg)
        if part_of.setdefault(canonical, part) != part:
            msg = f"parts puts {canonical!r} into both {part_of[canonical]!r} and {part!r}; expected one of them."
            raise OptionError(msg)
    part_of.pop(CONTROL, None)
    missing = [name for name in conditions.perturbations if name not in part_of]
    if missing and "train" in part_of.values():
        msg = (
            f"parts leaves out {len(missing)} perturbations, such as {', '.join(missing[:5])}. Name each, with 'dropped' "
            "for those to leave out; or name none for 'train', which then takes the rest."
        )
        raise OptionError(msg)
    return dict.fromkeys(missing, "train") | part_of


def _pairs(parts: Mapping[Any, Any] | None) -> list[tuple[Any, str]]:
    """Perturbation and part, from a mapping in either direction."""
    if not isinstance(parts, Mapping) or not parts:
        msg = (
            "kind='custom' needs parts=, a dictionary such as {'test': ['A', 'A+B']} or {'A': 'test', 'A+B': 'train'}."
        )
        raise OptionError(msg)
    values = list(parts.values())
    by_name = all(isinstance(value, str) for value in values)
    if not by_name and not all(isinstance(value, Iterable) and not isinstance(value, str) for value in values):
        msg = "parts mixes names and lists; expected part to list of perturbations, or perturbation to part."
        raise OptionError(msg)
    pairs = list(parts.items()) if by_name else [(name, part) for part, names in parts.items() for name in names]
    unknown = sorted({str(part) for _, part in pairs} - _PART_NAMES.keys())
    if unknown:
        msg = f"parts has {unknown[:5]}; expected the parts {', '.join(map(repr, _PART_NAMES))}."
        raise OptionError(msg)
    return [(name, _PART_NAMES[part]) for name, part in pairs]
