"""Plane through control that best fits measured effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

__all__ = ["embed_in_plane", "main_directions"]


def main_directions(effects: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two orthogonal directions that capture the largest fraction of the effects.

    These are the first right singular vectors of the effects. The effects are not centred, since they are
    differences from control, which is the origin of the plane.

    Parameters
    ----------
    effects
        One row per perturbation, ``(n, n_genes)``.

    Returns
    -------
    Directions of unit norm ``(n_genes, 2)``, each with its largest entry positive; 0 if the effects span less than a
    plane. And the fraction of the sum of squares along each, ``(2,)``.
    """
    n, n_genes = effects.shape
    directions, explained = np.zeros((n_genes, 2)), np.zeros(2)
    total = float((effects**2).sum())
    if total == 0:
        return directions, explained
    # Uses the smaller of the two Gram matrices: a screen has thousands of genes and often a few dozen perturbations.
    small = effects @ effects.T if n < n_genes else effects.T @ effects
    values, vectors = np.linalg.eigh(small)
    for i in range(min(2, len(values))):
        value, vector = values[-1 - i], vectors[:, -1 - i]
        if value <= 1e-12 * total:
            break
        direction = effects.T @ vector / np.sqrt(value) if n < n_genes else vector
        directions[:, i] = direction * np.sign(direction[np.argmax(np.abs(direction))])
        explained[i] = value / total
    return directions, explained


def embed_in_plane(training: Profiles, predicted: pd.DataFrame, effects: NDArray[np.float64]) -> dict[str, Any]:
    """Place training and predicted perturbations in the plane of the measured training effects.

    Parameters
    ----------
    training
        Measured profiles, which define the directions. Without any, predicted effects define them.
    predicted
        Columns ``perturbation`` and ``context`` of each row of ``effects``.
    effects
        Predicted effects, ``(n, n_genes)``.

    Returns
    -------
    ``embedding``, a table with ``method`` (``"training"`` or ``"predicted"``), ``perturbation``, ``context``, ``x`` and
    ``y``; ``explained`` and ``directions`` (a table, genes in rows) from :func:`main_directions`. Coordinates are dot
    products of effects with the directions.
    """
    import pandas as pd

    directions, explained = main_directions(training.effects if len(training) else effects)
    of_training = pd.DataFrame(
        {"perturbation": training.perturbations, "context": [training.context_names[c] for c in training.contexts]}
    )
    tables = {"training": (of_training, training.effects), "predicted": (predicted, effects)}
    parts = [
        pd.DataFrame(
            {
                "method": method,
                "perturbation": rows["perturbation"].to_numpy(dtype=object),
                "context": rows["context"].to_numpy(dtype=object),
                **dict(zip("xy", (values @ directions).T, strict=True)),
            }
        )
        for method, (rows, values) in tables.items()
    ]
    return {
        "embedding": pd.concat(parts, ignore_index=True),
        "explained": explained,
        "directions": pd.DataFrame(directions.astype(np.float32), index=list(training.genes), columns=["x", "y"]),
    }
