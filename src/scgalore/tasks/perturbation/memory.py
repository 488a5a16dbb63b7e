"""What a model keeps of the perturbation screen it was fine-tuned on, and the files it is saved to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scgalore._uns import to_uns
from scgalore.errors import WeightsError
from scgalore.perturb.baselines.effects import Effects, GeneEffects
from scgalore.perturb.predictions.card import model_card
from scgalore.perturb.predictions.controls import ControlMeans

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgalore.tasks.base import TaskModel

__all__ = ["PerturbationMemory", "memory_of", "read_memory"]

SCREEN, EFFECTS, STATS, CARD = "screen.json", "screen.safetensors", "training_stats.json", "README.md"
CONTROL_MEANS = "control_means"


@dataclass(frozen=True)
class PerturbationMemory:
    """What a model keeps of its screen in addition to the weights.

    Attributes
    ----------
    genes
        Names of the measured genes.
    prior
        Rule that the network's output is added to, fitted to everything but test cells; ``None`` without one.
    perturbations
        Canonical names by part of the split.
    params
        How the screen was read and the model was made.
    stats
        What the training run took and why it ended.
    controls
        Means of the control cells, which tell whether other data are on the same scale; ``None`` in models of version 0.5.0.
    """

    genes: tuple[str, ...] = field(repr=False)
    prior: Effects | None
    perturbations: dict[str, list[str]] = field(repr=False)
    params: dict[str, Any]
    stats: dict[str, Any]
    controls: ControlMeans | None = field(default=None, repr=False, compare=False)
    task: str = "perturbation"
    outlives_training: bool = False

    def to_config(self) -> dict[str, Any]:
        """Nothing: all of it is in files of its own."""
        return {}

    def files(
        self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
    ) -> dict[str, str | bytes]:
        """Content of the files: what the model needs again, and two for people, the statistics and the card.

        Parameters
        ----------
        provenance
            Of the weights.
        evaluation
            Scores for the card, as :func:`scgalore.tl.evaluate_perturbation` wrote them.
        """
        content = {
            "genes": list(self.genes),
            "perturbations": self.perturbations,
            "params": to_uns(self.params),
            "stats": self.stats,
            "prior": None if self.prior is None else self.prior.name,
        }
        arrays: dict[str, np.ndarray] = {}
        if self.controls is not None:
            content["controls"] = {
                "contexts": list(self.controls.contexts),
                "n_cells": self.controls.n_cells.tolist(),
            }
            arrays[CONTROL_MEANS] = np.ascontiguousarray(self.controls.means, dtype=np.float32)
        if self.prior is not None:
            parts = {"": self.prior.pooled, **{f"/{name}": part for name, part in self.prior.by_context.items()}}
            content["effects"] = {}
            for number, (context, part) in enumerate(parts.items()):
                content["effects"][context] = {"names": list(part.names), "average": part.average, "number": number}
                content["effects"][context]["perturbed"] = sorted(part.perturbed)
                for name in ("intercept", "unknown", "rows"):
                    arrays[f"{number}.{name}"] = np.ascontiguousarray(getattr(part, name))
        return {
            SCREEN: json.dumps(content, indent=1),
            EFFECTS: save(arrays),
            STATS: json.dumps(self.stats, indent=2) + "\n",
            CARD: model_card(self.params, self.stats, self.perturbations, dict(provenance), evaluation),
        }


def memory_of(model: TaskModel) -> PerturbationMemory | None:
    """What a model keeps of its screen; ``None`` if it was not fine-tuned on one."""
    return model.memory if isinstance(model.memory, PerturbationMemory) else None


def read_memory(folder: Path) -> PerturbationMemory | None:
    """Read what :meth:`PerturbationMemory.files` made; ``None`` where the model was not trained on a screen.

    Parameters
    ----------
    folder
        Folder of a checkpoint.

    Raises
    ------
    WeightsError
        If the files are damaged.
    """
    if not (folder / SCREEN).exists():
        return None
    try:
        content = json.loads((folder / SCREEN).read_text(encoding="utf-8"))
        arrays = load((folder / EFFECTS).read_bytes())
        genes = tuple(content["genes"])
        return PerturbationMemory(
            genes=genes,
            prior=None if content["prior"] is None else _effects(content, arrays, genes),
            perturbations=content["perturbations"],
            params=content["params"],
            stats=content["stats"],
            controls=_controls(content, arrays, genes),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        msg = f"{folder / SCREEN} and {EFFECTS} are damaged or do not belong together ({error}). Save the model again."
        raise WeightsError(msg) from error


def _controls(content: dict[str, Any], arrays: dict[str, np.ndarray], genes: tuple[str, ...]) -> ControlMeans | None:
    if "controls" not in content:
        return None
    contexts, n_cells = tuple(content["controls"]["contexts"]), np.array(content["controls"]["n_cells"], dtype=np.int64)
    means = arrays[CONTROL_MEANS]
    if means.shape != (len(contexts), len(genes)) or n_cells.shape != (len(contexts),):
        msg = f"control means of shape {means.shape} for {len(contexts)} contexts and {len(genes)} genes"
        raise ValueError(msg)
    return ControlMeans(genes, contexts, means, n_cells)


def _effects(content: dict[str, Any], arrays: dict[str, np.ndarray], genes: tuple[str, ...]) -> Effects:
    parts = {}
    for context, part in content["effects"].items():
        intercept, unknown, rows = (arrays[f"{part['number']}.{name}"] for name in ("intercept", "unknown", "rows"))
        shapes, n = (intercept.shape, unknown.shape, rows.shape), len(genes)
        if part["names"] and shapes != ((n,), (n,), (len(part["names"]), n)):
            msg = f"effects of shape {rows.shape} for {len(part['names'])} names and {n} genes"
            raise ValueError(msg)
        parts[context] = GeneEffects(
            intercept, unknown, tuple(part["names"]), rows, part["average"], frozenset(part["perturbed"])
        )
    pooled = parts.pop("")
    return Effects(content["prior"], genes, pooled, {context[1:]: part for context, part in parts.items()})
