"""Baselines for classification and regression: simple models on all genes, fitted to training and validation cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from scgalore.data.expression import LogExpression

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore.data.reading import Reading
    from scgalore.data.split import Split

    Classifier = Callable[[NDArray[np.float32], NDArray[np.int64], Split], NDArray[np.int64]]

__all__ = ["BASELINES", "LOGISTIC", "expression_of", "ridge"]


def scaled_logistic(x: NDArray[np.float32], codes: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Logistic regression on genes scaled to mean 0 and variance 1.

    Parameters
    ----------
    x
        Expression, shape ``(n_obs, n_genes)``.
    codes
        Class of each cell, shape ``(n_obs,)``; only those of training and validation cells are used.
    split
        Training, validation and test cells.

    Returns
    -------
    Predicted class of every cell.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return _fit_and_predict(make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)), x, codes, split)


def plain_logistic(x: NDArray[np.float32], codes: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Logistic regression on unscaled expression; see :func:`scaled_logistic`."""
    from sklearn.linear_model import LogisticRegression

    return _fit_and_predict(LogisticRegression(C=1.0, max_iter=2000), x, codes, split)


def _fit_and_predict(
    classifier: Any, x: NDArray[np.float32], codes: NDArray[np.int64], split: Split
) -> NDArray[np.int64]:
    with threadpool_limits(1, user_api="blas"):  # as in scgalore.tasks.linear.Logistic
        return classifier.fit(x[split.known], codes[split.known]).predict(x)


def majority(x: NDArray[np.float32], codes: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Most frequent class of training and validation cells, for every cell."""
    return np.full(len(x), np.bincount(codes[split.known]).argmax())


def neighbours(x: NDArray[np.float32], codes: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
    """Majority vote of the 15 nearest cells in 50 principal components; see :func:`scaled_logistic`."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier

    known = x[split.known]
    components = PCA(min(50, *(n - 1 for n in known.shape)) or 1, random_state=0).fit(known)
    classifier = KNeighborsClassifier(min(15, len(known))).fit(components.transform(known), codes[split.known])
    return classifier.predict(components.transform(x))


LOGISTIC = ("logistic regression, scaled genes", "logistic regression")
"""The two baselines that a fine-tuned model is compared with."""

BASELINES: dict[str, Classifier] = {
    LOGISTIC[0]: scaled_logistic,
    LOGISTIC[1]: plain_logistic,
    "15 nearest neighbours, 50 PCs": neighbours,
    "majority class": majority,
}
"""Baselines by name in the report."""


def expression_of(adata: AnnData, reading: Reading) -> NDArray[np.float32]:
    """Log-normalised expression of all genes, including those without a token, float32 ``(n_obs, n_genes)``.

    Parameters
    ----------
    adata
        Cells.
    reading
        How to read them.
    """
    expression = LogExpression.from_adata(adata, reading)
    return expression.rows(np.arange(adata.n_obs)).toarray()


def ridge(x: NDArray[np.float32], values: NDArray[np.float64], split: Split) -> NDArray[np.float64]:
    """Ridge regression on genes with mean 0 and variance 1, its penalty chosen by leave-one-out.

    Parameters
    ----------
    x
        Expression, shape ``(n_obs, n_genes)``.
    values
        Value of each cell, shape ``(n_obs,)``; only those of training and validation cells are used.
    split
        Training, validation and test cells.

    Returns
    -------
    Predicted value of every cell.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 6, 15)))
    return model.fit(x[split.known], values[split.known]).predict(x)
