"""Score a small embedding with scib-metrics, and correct it with harmonypy, for tests of ``scgalore.integration``; writes ``tests/integration/scib_metrics.json``.

Needs scib-metrics and harmonypy, which are not dependencies, in a virtual environment of its own, with
``pip install scib-metrics==0.5.10 harmonypy==0.0.10``::

    JAX_ENABLE_X64=1 JAX_PLATFORMS=cpu python scripts/reference_integration_scores.py

Neighbours are exact, so that scores can be compared digit by digit.
"""

import json
from importlib.metadata import version
from pathlib import Path

import harmonypy
import numpy as np
import pandas as pd
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from scib_metrics.utils import principal_component_regression
from sklearn.neighbors import NearestNeighbors

TARGET = Path(__file__).parents[1] / "tests" / "integration" / "scib_metrics.json"
# Cells of each label (rows) in each batch: a label of one batch, one of few cells, one alone.
N_CELLS = [[30, 40, 25], [20, 0, 30], [0, 35, 0], [3, 2, 2], [40, 12, 20], [0, 0, 1]]
N_DIMS = 6


def main() -> None:
    """Make the embeddings, score them, and write both."""
    rng = np.random.default_rng(0)
    pairs = [(label, batch) for label, row in enumerate(N_CELLS) for batch, n in enumerate(row) for _ in range(n)]
    labels, batches = np.array(pairs)[rng.permutation(len(pairs))].T
    centres = rng.normal(size=(len(N_CELLS), N_DIMS)) * 1.8
    shifts = rng.normal(size=(3, N_DIMS))
    noise = rng.normal(size=(len(pairs), N_DIMS))
    embeddings = {
        "before": (centres[labels] + shifts[batches] + noise).round(3),
        "after": (centres[labels] + 0.15 * shifts[batches] + noise).round(3),
    }
    scored = {name: score(x, embeddings["before"], batches, labels) for name, x in embeddings.items()}
    content = {
        "versions": {
            name: version(name) for name in ("scib-metrics", "jax", "harmonypy", "umap-learn", "scikit-learn")
        },
        "batches": batches.tolist(),
        "labels": labels.tolist(),
        "embeddings": {name: x.tolist() for name, x in embeddings.items()},
        "scores": scored,
        "harmony": [corrected(embeddings["before"], batches, seed).round(3).tolist() for seed in range(2)],
    }
    TARGET.write_text(json.dumps(content) + "\n", encoding="utf-8")


def score(x: np.ndarray, before: np.ndarray, batches: np.ndarray, labels: np.ndarray) -> dict:
    """All scores that do not depend on chance, with those of each cell or label that some are means of."""
    distances, indices = NearestNeighbors(n_neighbors=89, algorithm="brute").fit(x).kneighbors()
    own = np.arange(len(x))[:, None]
    neighbors = NeighborsResults(np.hstack([own, indices]), np.hstack([np.zeros(own.shape), distances]))
    graph = neighbors.subset_neighbors(50).knn_graph_connectivities
    kbet, by_label = scib_metrics.kbet_per_label(neighbors.subset_neighbors(50), batches, labels, return_df=True)
    found = {
        "asw_label": scib_metrics.silhouette_label(x, labels),
        "isolated_labels": scib_metrics.isolated_labels(x, labels, batches),
        "clisi": scib_metrics.clisi_knn(neighbors, labels),
        "bras": scib_metrics.bras(x, labels, batches),
        "ilisi": scib_metrics.ilisi_knn(neighbors, batches),
        "kbet": kbet,
        "graph_connectivity": scib_metrics.graph_connectivity(neighbors.subset_neighbors(15), labels),
        "pcr_comparison": scib_metrics.pcr_comparison(before, x, batches, categorical=True),
        "asw_batch": scib_metrics.silhouette_batch(x, labels, batches),
        "batch_variance": principal_component_regression(x, batches, categorical=True),
        "kbet_without_labels": scib_metrics.kbet(neighbors.subset_neighbors(50), batches)[0],
    }
    return {
        **{name: float(value) for name, value in found.items()},
        "kbet_by_label": [None if np.isnan(value) else float(value) for value in by_label["kBET"]],
        "connectivity_sums": np.asarray(graph.sum(axis=1)).ravel().astype(float).round(6).tolist(),
        "lisi_of_batches": scib_metrics.lisi_knn(neighbors, batches)[:20].astype(float).tolist(),
    }


def corrected(x: np.ndarray, batches: np.ndarray, seed: int) -> np.ndarray:
    """By the version of harmonypy that follows the paper; from its second on it penalises batches otherwise."""
    obs = pd.DataFrame({"batch": batches.astype(str)})
    return harmonypy.run_harmony(x, obs, "batch", random_state=seed, verbose=False).Z_corr.T


if __name__ == "__main__":
    main()
