"""Regression of each target on regulators by boosted trees, after GRNBoost2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore._progress import progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["boosted_importances"]


def boosted_importances(
    x: NDArray[np.float32], sources: NDArray[np.int64], targets: NDArray[np.int64], *, seed: int
) -> NDArray[np.float64]:
    """Importance of each regulator for the prediction of each target.

    Gradient boosting with scikit-learn, one model per target, as in GRNBoost2 (Moerman et al., Bioinformatics 2019,
    doi:10.1093/bioinformatics/bty916), with 100 trees and a learning rate of 0.1 instead of up to 5,000 and 0.01, which
    are too slow for thousands of targets. Each split considers a tenth of the regulators (at least three), each tree
    nine tenths of the cells.

    Parameters
    ----------
    x
        Expression, ``(n_cells, n_genes)``.
    sources, targets
        Columns of the genes. A regulator does not predict itself.
    seed
        Seed.

    Returns
    -------
    Importance of the regulator times the fraction of the target's variance explained by the trees in training,
    ``(n_sources, n_targets)``; 0 for constant targets and pairs of a gene with itself.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    found = np.zeros((len(sources), len(targets)))
    for at, target in progress(list(enumerate(targets)), label="targets"):
        kept = np.flatnonzero(sources != target)
        y = x[:, target].astype(np.float64)
        if len(kept) == 0 or y.min() == y.max():
            continue
        model = GradientBoostingRegressor(
            n_estimators=100,
            learning_rate=0.1,
            subsample=0.9,
            max_features=min(len(kept), max(3, len(kept) // 10)),
            random_state=seed,
        ).fit(x[:, sources[kept]], y)
        found[kept, at] = model.feature_importances_ * max(0.0, model.score(x[:, sources[kept]], y))
    return found
