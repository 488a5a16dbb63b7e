"""Memory of the perturbation screen that a model was fine-tuned on, and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from scgalore._json import OBJECT, STRING, check_fields, nullable, read_json
from scgalore._options import NAMES, Kind, are
from scgalore._uns import to_uns
from scgalore.errors import WeightsError
from scgalore.perturb.baselines.choice import COLUMNS
from scgalore.perturb.baselines.dose import WEIGHTS, DoseEffects, Space
from scgalore.perturb.baselines.effects import QUESTIONS, Effects, Fitted
from scgalore.perturb.baselines.own import OwnGene
from scgalore.perturb.baselines.rules import GeneEffects, Rule
from scgalore.perturb.predictions.card import model_card
from scgalore.perturb.predictions.controls import ControlMeans
from scgalore.weights.checkpoint import read_safetensors
from scgalore.weights.finite import refuse_not_finite

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgalore.tasks.base import TaskModel

__all__ = ["PerturbationMemory", "memory_of", "read_memory"]

SCREEN, EFFECTS, STATS, CARD = "screen.json", "screen.safetensors", "training_stats.json", "README.md"
SCREEN_BYTES = 1 << 28  # names of genes and perturbations, for every context

CONTENT = {
    "genes": NAMES,
    "perturbations": Kind(
        "it must give a list of names for each split",
        lambda value: OBJECT.fits(value) and all(map(are(STRING.fits), value.values())),
    ),
    "params": OBJECT,
    "stats": OBJECT,
    "prior": nullable(STRING),
}
"""Required fields of ``screen.json``."""
CONTROL_MEANS, VECTORS = "control_means", "compound_vectors"


@dataclass(frozen=True)
class PerturbationMemory:
    """Information on the screen that a model stores with its weights.

    Attributes
    ----------
    genes
        Names of the measured genes.
    prior
        Prior that the network's output is added to, fitted to all but test cells, or ``None``.
    perturbations
        Canonical names by split.
    params
        Parameters for reading the screen and making the model.
    stats
        Statistics of the training run, and why it ended.
    choice
        Cross-validated scores by which the prior was chosen; ``None`` if it was named.
    controls
        Means of the control cells, to check the scale of other data; ``None`` in models of version 0.5.0.
    vectors
        Vectors of the compounds, one row per compound, or ``None``.
    """

    genes: tuple[str, ...] = field(repr=False)
    prior: Effects | None
    perturbations: dict[str, list[str]] = field(repr=False)
    params: dict[str, Any]
    stats: dict[str, Any]
    choice: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    controls: ControlMeans | None = field(default=None, repr=False, compare=False)
    vectors: pd.DataFrame | None = field(default=None, repr=False, compare=False)
    task: str = "perturbation"
    outlives_training: bool = False

    def to_config(self) -> dict[str, Any]:
        """Empty, since everything is in separate files."""
        return {}

    def files(
        self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
    ) -> dict[str, str | bytes]:
        """Content of the files: those that the model needs, and two for readers, statistics and model card.

        Parameters
        ----------
        provenance
            Provenance of the weights.
        evaluation
            Scores for the card, as written by :func:`scgalore.tl.evaluate_perturbation`.
        """
        content = {
            "genes": list(self.genes),
            "perturbations": self.perturbations,
            "params": to_uns(self.params),
            "stats": self.stats,
            "prior": None if self.prior is None else self.prior.name,
            "choice": None if self.choice is None else json.loads(self.choice.to_json(orient="records")),
        }
        arrays: dict[str, np.ndarray] = {}
        if self.controls is not None:
            content["controls"] = {
                "contexts": list(self.controls.contexts),
                "n_cells": self.controls.n_cells.tolist(),
            }
            arrays[CONTROL_MEANS] = np.ascontiguousarray(self.controls.means, dtype=np.float32)
        if self.vectors is not None:
            content["compounds"] = list(self.vectors.index)
            arrays[VECTORS] = np.ascontiguousarray(self.vectors.to_numpy(np.float64))
        if self.prior is not None:
            of_contexts = {"": self.prior.pooled, **{f"/{name}": part for name, part in self.prior.by_context.items()}}
            written: dict[int, dict[str, Any]] = {}
            content["effects"] = {context: _written(part, arrays, written) for context, part in of_contexts.items()}
        return {
            SCREEN: json.dumps(content, indent=1),
            EFFECTS: save(arrays),
            STATS: json.dumps(self.stats, indent=2) + "\n",
            CARD: model_card(
                self.params,
                self.stats,
                self.perturbations,
                dict(provenance),
                evaluation,
                choice=self.choice,
                vectors=self.vectors,
            ),
        }


def memory_of(model: TaskModel) -> PerturbationMemory | None:
    """Memory of the screen of a model; ``None`` if it was not fine-tuned on one."""
    return model.memory if isinstance(model.memory, PerturbationMemory) else None


def read_memory(folder: Path) -> PerturbationMemory | None:
    """Read the files of :meth:`PerturbationMemory.files`; ``None`` if the model was not trained on a screen.

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
        content = read_json(folder / SCREEN, max_bytes=SCREEN_BYTES)
        check_fields(content, CONTENT, where=folder / SCREEN)
        tensors = read_safetensors(folder / EFFECTS)
        refuse_not_finite(tensors, where=folder / EFFECTS)
        arrays = {name: tensor.numpy().copy() for name, tensor in tensors.items()}
        genes = tuple(content["genes"])
        return PerturbationMemory(
            genes=genes,
            prior=None if content["prior"] is None else _effects(content, arrays, genes),
            perturbations=content["perturbations"],
            params=content["params"],
            stats=content["stats"],
            choice=None if content.get("choice") is None else pd.DataFrame(content["choice"], columns=list(COLUMNS)),
            controls=_controls(content, arrays, genes),
            vectors=_vectors(content, arrays),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{folder / SCREEN} and {EFFECTS} are damaged or inconsistent ({error}). Save the model again."
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


def _vectors(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> pd.DataFrame | None:
    return None if "compounds" not in content else pd.DataFrame(arrays[VECTORS], index=content["compounds"])


TABLES = ("intercept", "unknown", "rows")
"""Arrays of a rule for genes."""

DOSE_TABLES = ("rows", "doses", "numbers")
"""Arrays of a rule for compounds; those of its space are the vectors and the control expression of contexts."""


def _written(fitted: Fitted, arrays: dict[str, np.ndarray], written: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Fitted recipe as JSON; large parts are added to the arrays, once for rules shared by contexts."""
    rules = []
    for weights, rule in zip(fitted.weights.T.tolist(), fitted.rules, strict=True):
        if id(rule) not in written:
            written[id(rule)] = _rule_written(rule, arrays)
        rules.append({**written[id(rule)], "weights": weights})
    number = len(arrays)
    if fitted.control is not None:
        arrays[f"{number}.control"] = np.ascontiguousarray(fitted.control)
    return {
        "rules": rules,
        "perturbed": sorted(fitted.perturbed),
        "measured": sorted(fitted.measured),
        "own": asdict(fitted.own),
        "several": fitted.several,
        "number": number,
    }


def _rule_written(rule: Rule, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    number = len(arrays)
    if isinstance(rule, GeneEffects):
        arrays |= {f"{number}.{name}": np.ascontiguousarray(getattr(rule, name)) for name in TABLES}
        return {"names": list(rule.names), "average": rule.average, "number": number}
    arrays |= {f"{number}.{name}": np.ascontiguousarray(getattr(rule, name)) for name in DOSE_TABLES}
    arrays[f"{number}.space_vectors"] = np.ascontiguousarray(rule.space.vectors)
    arrays[f"{number}.space_contexts"] = np.ascontiguousarray(rule.space.contexts)
    highest = None if np.isinf(rule.space.highest) else rule.space.highest
    space = {"lowest": rule.space.lowest, "highest": highest, "compounds": list(rule.space.compounds)}
    of_rows = {"names": list(rule.compounds), "contexts": rule.contexts.tolist()}
    return {"how": rule.how, **of_rows, "space": space, "number": number}


def _effects(content: dict[str, Any], arrays: dict[str, np.ndarray], genes: tuple[str, ...]) -> Effects:
    parts = {context: _fitted(part, arrays, len(genes)) for context, part in content["effects"].items()}
    pooled = parts.pop("")
    return Effects(content["prior"], genes, pooled, {context[1:]: part for context, part in parts.items()})


def _fitted(part: dict[str, Any], arrays: dict[str, np.ndarray], n: int) -> Fitted:
    # Up to version 0.7.0 a prior was a single rule, with its description in place of the list of rules.
    written = part.get("rules", [part])
    rules = [_rule(rule, arrays, n) for rule in written]
    weights = np.array([rule.get("weights", [1.0] * len(QUESTIONS)) for rule in written], dtype=np.float64)
    control = arrays.get(f"{part['number']}.control")
    if control is not None and control.shape != (n,):
        msg = f"control means of shape {control.shape} for {n} genes"
        raise ValueError(msg)
    return Fitted(
        tuple(rules),
        weights.reshape(len(rules), len(QUESTIONS)).T,
        frozenset(part["perturbed"]),
        frozenset(part.get("measured", ())),
        OwnGene(**part.get("own", {})),
        control,
        float(part.get("several", 1.0)),
    )


def _rule(rule: dict[str, Any], arrays: dict[str, np.ndarray], n: int) -> Rule:
    number, names = rule["number"], tuple(rule["names"])
    if "how" not in rule:
        intercept, unknown, rows = (arrays[f"{number}.{name}"] for name in TABLES)
        shapes = (intercept.shape, unknown.shape, rows.shape)
        if names and shapes != ((n,), (n,), (len(names), n)):
            msg = f"effects of shape {rows.shape} for {len(names)} names and {n} genes"
            raise ValueError(msg)
        return GeneEffects(intercept, unknown, names, rows, rule["average"])
    rows, doses, numbers = (arrays[f"{number}.{name}"] for name in DOSE_TABLES)
    vectors, controls = (arrays[f"{number}.space_{name}"] for name in ("vectors", "contexts"))
    compounds, contexts = tuple(rule["space"]["compounds"]), np.array(rule["contexts"], dtype=np.int64)
    if rows.shape != (len(names), n) or doses.shape != contexts.shape or doses.shape != (len(names),):
        msg = f"effects of shape {rows.shape} for {len(names)} compounds at doses and {n} genes"
        raise ValueError(msg)
    if rule["how"] not in WEIGHTS or len(vectors) != len(compounds) or contexts.max(initial=0) >= len(controls):
        msg = f"a rule of {rule['how']!r} with {len(vectors)} vectors of {len(compounds)} compounds"
        raise ValueError(msg)
    # Version 0.12.0 kept no highest dose.
    lowest, highest = float(rule["space"]["lowest"]), float(rule["space"].get("highest") or np.inf)
    space = Space(lowest, highest, compounds, vectors, controls)
    return DoseEffects(rule["how"], space, rows, names, doses, contexts, numbers)
