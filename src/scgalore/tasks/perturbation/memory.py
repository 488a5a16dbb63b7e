"""What a model remembers of a perturbation screen, in files beside its weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from scgalore._uns import to_uns
from scgalore.errors import WeightsError
from scgalore.tasks.perturbation.fitting import ScreenMemory
from scgalore.perturb.baselines.effects import Effects, GeneEffects
from scgalore.perturb.predictions.card import model_card

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_screen", "screen_files"]

SCREEN, EFFECTS, STATS, CARD = "screen.json", "screen.safetensors", "training_stats.json", "README.md"


def screen_files(
    memory: ScreenMemory, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
) -> dict[str, str | bytes]:
    """Content of the files: what the model needs again, and two for people, the statistics and the card.

    Parameters
    ----------
    memory
        What to write.
    provenance
        Of the weights.
    evaluation
        Scores for the card, as :func:`scgalore.tl.evaluate_perturbation` wrote them.
    """
    content = {
        "genes": list(memory.genes),
        "perturbations": memory.perturbations,
        "params": to_uns(memory.params),
        "stats": memory.stats,
        "prior": None if memory.prior is None else memory.prior.name,
    }
    arrays: dict[str, np.ndarray] = {}
    if memory.prior is not None:
        parts = {"": memory.prior.pooled, **{f"/{name}": part for name, part in memory.prior.by_context.items()}}
        content["effects"] = {}
        for number, (context, part) in enumerate(parts.items()):
            content["effects"][context] = {"names": list(part.names), "average": part.average, "number": number}
            content["effects"][context]["perturbed"] = sorted(part.perturbed)
            for name in ("intercept", "unknown", "rows"):
                arrays[f"{number}.{name}"] = np.ascontiguousarray(getattr(part, name))
    return {
        SCREEN: json.dumps(content, indent=1),
        EFFECTS: save(arrays),
        STATS: json.dumps(memory.stats, indent=2) + "\n",
        CARD: model_card(memory.params, memory.stats, memory.perturbations, dict(provenance), evaluation),
    }


def read_screen(folder: Path) -> ScreenMemory | None:
    """Read what :func:`screen_files` made; ``None`` where the model was not trained on a screen.

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
        return ScreenMemory(
            genes=genes,
            prior=None if content["prior"] is None else _effects(content, arrays, genes),
            perturbations=content["perturbations"],
            params=content["params"],
            stats=content["stats"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        msg = f"{folder / SCREEN} and {EFFECTS} are damaged or do not belong together ({error}). Save the model again."
        raise WeightsError(msg) from error


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
