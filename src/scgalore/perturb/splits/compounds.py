"""Splits by compound or by dose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore._words import few
from scgalore.data.texts import same_label
from scgalore.errors import OptionError
from scgalore.perturb.labels.parsing import Agent, at_dose

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMPOUND_GROUPS", "parts_by_compound", "parts_by_dose"]

COMPOUND_GROUPS = ("unseen_compound", "unseen_dose")
"""Groups of test perturbations: compound in no other split, or in another split at other doses."""


def parts_by_compound(
    names: Sequence[str],
    *,
    seed: int,
    validation_size: float,
    test_size: float,
    validation_compounds: Sequence[str],
    test_compounds: Sequence[str],
) -> dict[str, str]:
    """Split by compound; all doses of a compound are in a single split.

    Parameters
    ----------
    names
        Compounds at doses.
    seed
        Random seed.
    validation_size, test_size
        Fractions of the compounds to draw if none are given, at least one each; one is always in training.
    validation_compounds, test_compounds
        Compounds to hold out.

    Raises
    ------
    OptionError
        If a compound does not exist or is in both splits.
    """
    of_name = {name: Agent.of(name).subject for name in names}
    held = {
        "validation": _found("validation_compounds", validation_compounds, of_name.values()),
        "test": _found("test_compounds", test_compounds, of_name.values()),
    }
    return _parts(of_name, held, {"validation": validation_size, "test": test_size}, seed)


def parts_by_dose(
    names: Sequence[str],
    *,
    seed: int,
    validation_size: float,
    test_size: float,
    validation_doses: Sequence[str],
    test_doses: Sequence[str],
) -> dict[str, str]:
    """Split by dose; all compounds at a dose are in a single split.

    Parameters
    ----------
    names
        Compounds at doses.
    seed
        Random seed.
    validation_size, test_size
        Fractions of the doses to draw if none are given, at least one each; one is always in training.
    validation_doses, test_doses
        Doses to hold out.

    Raises
    ------
    OptionError
        If a dose does not exist or is in both splits.
    """
    of_name = {name: _dose(Agent.of(name).dose) for name in names}
    asked = {"validation_doses": validation_doses, "test_doses": test_doses}
    found = {}
    for option, doses in asked.items():
        try:
            texts = [_dose(float(dose)) for dose in doses]
        except ValueError as error:
            msg = f"{option}={list(doses)!r}: expected doses, as numbers."
            raise OptionError(msg) from error
        found[option.removesuffix("_doses")] = _found(option, texts, of_name.values())
    return _parts(of_name, found, {"validation": validation_size, "test": test_size}, seed)


def _dose(dose: float | None) -> str:
    """Canonical text of a dose."""
    return "" if dose is None else at_dose("", dose).removeprefix("@")


def _found(option: str, asked: Sequence[str], existing: object) -> list[str]:
    """Names as spelled in the data."""
    names = list(dict.fromkeys(existing))  # type: ignore[call-overload]
    found = [same_label(name, names) or name for name in asked]
    unknown = [name for name in found if name not in names]
    if unknown:
        msg = f"{option}: no perturbed cell has {few(unknown, 3)}; choose from {few(names, 10)}."
        raise OptionError(msg)
    return found


def _parts(of_name: dict[str, str], held: dict[str, list[str]], shares: dict[str, float], seed: int) -> dict[str, str]:
    both = sorted(set(held["validation"]) & set(held["test"]))
    if both:
        msg = f"{few(both, 3)} cannot be in validation and test."
        raise OptionError(msg)
    existing = sorted(set(of_name.values()))
    named = {*held["validation"], *held["test"]}
    drawn = np.random.default_rng(seed).permutation([name for name in existing if name not in named]).tolist()
    part_of = {name: part for part, names in held.items() for name in names}
    for part in ("test", "validation"):  # with two, only the test split gets one
        n = max(1, round(len(existing) * shares[part])) if shares[part] and not held[part] else 0
        n = min(n, max(len(drawn) - 1, 0))
        part_of |= dict.fromkeys(drawn[:n], part)
        drawn = drawn[n:]
    return {name: part_of.get(group, "train") for name, group in of_name.items()}
