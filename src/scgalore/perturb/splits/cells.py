"""Splits of cells instead of perturbations: at random, or by cell type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore.data.split import PARTS, random_split
from scgalore.data.texts import same_label
from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scgalore._typing import Label
    from scgalore.perturb.labels.conditions import Conditions

__all__ = ["rows_at_random", "rows_by_context"]


def rows_at_random(
    conditions: Conditions, *, seed: int, contexts: Sequence[str] | None, validation_size: float, test_size: float
) -> dict[str, NDArray[np.int64]]:
    """Split perturbed cells at random, stratified by perturbation and context.

    Parameters
    ----------
    conditions
        Perturbation of each cell.
    seed
        Random seed.
    contexts
        Cell type or line of each cell.
    validation_size, test_size
        Fractions of the cells.
    """
    perturbed = np.flatnonzero(conditions.codes > 0)
    strata = conditions.codes[perturbed]
    if contexts is not None:
        _, of_context = np.unique(np.asarray(contexts, dtype=str)[perturbed], return_inverse=True)
        strata = strata * len(perturbed) + of_context
    split = random_split(len(perturbed), validation_size=validation_size, test_size=test_size, strata=strata, seed=seed)
    return {part: perturbed[getattr(split, part)] for part in PARTS}


def rows_by_context(
    conditions: Conditions,
    *,
    seed: int,
    contexts: Sequence[str],
    validation_size: float,
    test_size: float,
    validation_contexts: Sequence[Label],
    test_contexts: Sequence[Label],
) -> dict[str, NDArray[np.int64]]:
    """Split perturbed cells by context; each context is in a single split.

    Parameters
    ----------
    conditions
        Perturbation of each cell.
    seed
        Random seed.
    contexts
        Cell type or line of each cell.
    validation_size, test_size
        Fractions of the contexts to draw if none are given, at least one each. One context is always in training, so
        data with two have no validation split.
    validation_contexts, test_contexts
        Contexts to hold out.

    Raises
    ------
    OptionError
        If a context does not exist or is in both splits.
    """
    of_cell = np.asarray(contexts, dtype=str)
    perturbed = conditions.codes > 0
    existing = [str(name) for name in np.unique(of_cell[perturbed])]
    validation_contexts, test_contexts = _named_contexts(existing, validation_contexts, test_contexts)
    named = {*validation_contexts, *test_contexts}
    drawn = np.random.default_rng(seed).permutation([name for name in existing if name not in named]).tolist()
    held: dict[str, list[str]] = {}
    for part, names, share in (
        ("test", test_contexts, test_size),
        ("validation", validation_contexts, validation_size),
    ):
        n = max(1, round(len(existing) * share)) if share and not names else 0
        n = min(n, max(len(drawn) - 1, 0))
        held[part], drawn = [*names, *drawn[:n]], drawn[n:]
    rows = {part: np.flatnonzero(perturbed & np.isin(of_cell, names)) for part, names in held.items()}
    others = np.isin(of_cell, [*held["test"], *held["validation"]])
    return {"train": np.flatnonzero(perturbed & ~others)} | rows


def _named_contexts(existing: list[str], *named: Sequence[Label]) -> list[list[str]]:
    """Contexts of both splits, as spelled in the data."""
    found = [[same_label(context, existing) or str(context) for context in of_part] for of_part in named]
    unknown = sorted({context for of_part in found for context in of_part} - set(existing))
    both = sorted(set(found[0]) & set(found[1]))
    if unknown or both:
        fault = f"no perturbed cell is in {', '.join(unknown)}" if unknown else f"{', '.join(both)} cannot be in both"
        msg = f"validation_contexts, test_contexts: {fault}; the contexts are {', '.join(existing[:10])}."
        raise OptionError(msg)
    return found
