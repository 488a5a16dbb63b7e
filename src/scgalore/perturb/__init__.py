"""Perturbations: conditions, splits, profiles, baselines, predicted cells and scores. Plain NumPy, without a network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgalore.perturb.card import model_card, score_table
    from scgalore.perturb.challenge import write_vcc
    from scgalore.perturb.conditions import Conditions, parse_condition
    from scgalore.perturb.effects import BASELINES, PRIORS, fit_effects
    from scgalore.perturb.gears import split_by_genes, split_by_hits, split_by_labels, split_singles_by_genes
    from scgalore.perturb.profiles import Profiles
    from scgalore.perturb.screen import Screen
    from scgalore.perturb.splits import split_conditions
    from scgalore.perturb.synthesis import synthesise

__all__ = [
    "BASELINES",
    "PRIORS",
    "Conditions",
    "Profiles",
    "Screen",
    "fit_effects",
    "model_card",
    "parse_condition",
    "score_table",
    "split_by_genes",
    "split_by_hits",
    "split_by_labels",
    "split_conditions",
    "split_singles_by_genes",
    "synthesise",
    "write_vcc",
]

_HOMES = {
    "card": ("model_card", "score_table"),
    "challenge": ("write_vcc",),
    "conditions": ("Conditions", "parse_condition"),
    "effects": ("BASELINES", "PRIORS", "fit_effects"),
    "gears": ("split_by_genes", "split_by_hits", "split_by_labels", "split_singles_by_genes"),
    "profiles": ("Profiles",),
    "screen": ("Screen",),
    "splits": ("split_conditions",),
    "synthesis": ("synthesise",),
}


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): most who import one module of this room need no other.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"scgalore.perturb.{module}"), name)
    msg = f"module 'scgalore.perturb' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
