"""Perturbations: conditions, splits, profiles, baselines, predicted cells and scores. Plain NumPy, without a network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scgalore.perturb.baselines.choice import Choice, choose_prior
    from scgalore.perturb.baselines.effects import BASELINES, COMPOUND_BASELINES, COMPOUND_PRIORS, PRIORS, fit_rule
    from scgalore.perturb.baselines.of_profiles import ProfileModel, fit_effects
    from scgalore.perturb.labels.conditions import Conditions
    from scgalore.perturb.labels.parsing import parse_condition
    from scgalore.perturb.labels.profiles import Profiles
    from scgalore.perturb.labels.screen import Screen
    from scgalore.perturb.predictions.card import model_card, score_table
    from scgalore.perturb.predictions.challenge import write_vcc
    from scgalore.perturb.predictions.synthesis import synthesise
    from scgalore.perturb.splits.gears import split_by_genes, split_by_hits, split_by_labels, split_singles_by_genes
    from scgalore.perturb.splits.split import split_conditions

__all__ = [
    "BASELINES",
    "COMPOUND_BASELINES",
    "COMPOUND_PRIORS",
    "PRIORS",
    "Choice",
    "Conditions",
    "ProfileModel",
    "Profiles",
    "Screen",
    "choose_prior",
    "fit_effects",
    "fit_rule",
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
    "predictions.card": ("model_card", "score_table"),
    "predictions.challenge": ("write_vcc",),
    "labels.conditions": ("Conditions",),
    "labels.parsing": ("parse_condition",),
    "baselines.effects": ("BASELINES", "COMPOUND_BASELINES", "COMPOUND_PRIORS", "PRIORS", "fit_rule"),
    "baselines.choice": ("Choice", "choose_prior"),
    "baselines.of_profiles": ("ProfileModel", "fit_effects"),
    "splits.gears": ("split_by_genes", "split_by_hits", "split_by_labels", "split_singles_by_genes"),
    "labels.profiles": ("Profiles",),
    "labels.screen": ("Screen",),
    "splits.split": ("split_conditions",),
    "predictions.synthesis": ("synthesise",),
}


def __getattr__(name: str) -> Any:
    # Loaded on first use (PEP 562): importing one module of this subpackage rarely requires the others.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"scgalore.perturb.{module}"), name)
    msg = f"module 'scgalore.perturb' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
