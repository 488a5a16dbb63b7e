import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData

from scgalore.data.reading import Reading
from scgalore.data.split import random_split
from scgalore.tasks.baselines import BASELINES, LOGISTIC, expression_of


@pytest.mark.parametrize("method", [*LOGISTIC, "15 nearest neighbours, 50 PCs"])
def test_classifiers_learn_from_the_training_cells_only(method: str) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 300)
    x = (rng.normal(size=(300, 8)) + 3 * np.eye(8)[codes]).astype(np.float32)
    split = random_split(300, test_size=0.2, validation_size=0.0, strata=codes)
    predicted = BASELINES[method](x, codes, split)
    assert predicted.shape == (300,)
    assert (predicted[split.test] == codes[split.test]).mean() > 0.9
    spoilt = codes.copy()
    spoilt[split.test] = 0
    np.testing.assert_array_equal(BASELINES[method](x, spoilt, split), predicted)


def test_majority_is_that_of_the_known_cells() -> None:
    codes = np.array([0, 0, 0, 1, 1, 1, 1])
    split = random_split(7, test_size=0.3, validation_size=0.0, seed=1)
    split = type(split)(np.array([0, 1, 2, 3]), np.array([], dtype=np.int64), np.array([4, 5, 6]))
    assert BASELINES["majority class"](np.zeros((7, 1), dtype=np.float32), codes, split).tolist() == [0] * 7


@pytest.mark.parametrize("layer", [None, "counts"])
def test_baselines_see_all_genes_log_normalised(layer: str | None) -> None:
    rng = np.random.default_rng(0)
    adata = AnnData(rng.poisson(3, (20, 6)).astype(np.float32))
    expected = adata.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    if layer is not None:
        adata.layers[layer], adata.X = adata.X, np.zeros_like(adata.X)
    np.testing.assert_allclose(expression_of(adata, Reading(layer)), expected.X, rtol=1e-5)
