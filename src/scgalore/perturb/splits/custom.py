"""Custom splits of perturbations."""

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
    """Split of each perturbation, by canonical name.

    Parameters
    ----------
    conditions
        Perturbations in the data.
    parts
        Dictionary from split to perturbations, or from perturbation to split; perturbations are labels of the data or
        their genes, by any name. Perturbations that are not listed are in training, if none is listed for training.

    Raises
    ------
    OptionError
        If a split is unknown, a perturbation is missing or in two splits, or control is not in training.
    MissingKeyError
        If a perturbation does not exist.
    """
    part_of: dict[str, str] = {}
    for name, part in _pairs(parts):
        canonical = conditions.names[conditions.index(name)]
        if canonical == CONTROL and part != "train":
            msg = f"parts assigns control to {part!r}, but control cells are always in 'train'."
            raise OptionError(msg)
        if part_of.setdefault(canonical, part) != part:
            msg = f"parts assigns {canonical!r} to both {part_of[canonical]!r} and {part!r}; expected one of them."
            raise OptionError(msg)
    part_of.pop(CONTROL, None)
    missing = [name for name in conditions.perturbations if name not in part_of]
    if missing and "train" in part_of.values():
        msg = (
            f"parts lacks {len(missing)} perturbations, such as {', '.join(missing[:5])}. List each, with 'dropped' "
            "for those to exclude; or list none for 'train', which then contains the rest."
        )
        raise OptionError(msg)
    return dict.fromkeys(missing, "train") | part_of


def _pairs(parts: Mapping[Any, Any] | None) -> list[tuple[Any, str]]:
    """Pairs of perturbation and split, from a mapping in either direction."""
    if not isinstance(parts, Mapping) or not parts:
        msg = (
            "kind='custom' needs parts=, a dictionary such as {'test': ['A', 'A+B']} or {'A': 'test', 'A+B': 'train'}."
        )
        raise OptionError(msg)
    values = list(parts.values())
    by_name = all(isinstance(value, str) for value in values)
    if not by_name and not all(isinstance(value, Iterable) and not isinstance(value, str) for value in values):
        msg = "parts mixes names and lists; expected a dictionary from split to list of perturbations, or from perturbation to split."
        raise OptionError(msg)
    pairs = list(parts.items()) if by_name else [(name, part) for part, names in parts.items() for name in names]
    unknown = sorted({str(part) for _, part in pairs} - _PART_NAMES.keys())
    if unknown:
        msg = f"parts has {unknown[:5]}; expected {', '.join(map(repr, _PART_NAMES))}."
        raise OptionError(msg)
    return [(name, _PART_NAMES[part]) for name, part in pairs]
