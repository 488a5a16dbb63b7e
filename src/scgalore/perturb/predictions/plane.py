"""The plane through control in which measured effects lie best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from scgalore.perturb.labels.profiles import Profiles

__all__ = ["embed_in_plane", "main_directions"]


def main_directions(effects: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two orthogonal directions that hold the largest share of the effects.

    These are the first right singular vectors of the effects as they are. Their mean is not taken out, since effects are
    differences from control, which is then the origin of the plane.

    Parameters
    ----------
    effects
        One perturbation a row, ``(n, n_genes)``.

    Returns
    -------
    Directions of unit norm ``(n_genes, 2)``, each with its largest entry positive; 0 where the effects span less than a plane.
    And the share of the sum of squares along each, ``(2,)``.
    """
    n, n_genes = effects.shape
    directions, explained = np.zeros((n_genes, 2)), np.zeros(2)
    total = float((effects**2).sum())
    if total == 0:
        return directions, explained
    # By the smaller of the two products: a screen has thousands of genes and often a few dozen perturbations.
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
        Measured; the directions are theirs alone. Without any, they are those of the predicted effects.
    predicted
        Columns ``perturbation`` and ``context`` of each row of ``effects``.
    effects
        Predicted, ``(n, n_genes)``.

    Returns
    -------
    ``embedding``, a table with ``method`` (``"training"`` or ``"predicted"``), ``perturbation``, ``context``, ``x`` and ``y``;
    ``explained`` and ``directions`` (a table, genes in rows) as :func:`main_directions` finds them. An effect's dot product
    with the directions is its place.
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
