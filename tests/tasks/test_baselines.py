import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

from scgalore.data.reading import Reading
from scgalore.data.split import random_split
from scgalore.tasks.baselines import BASELINES, LOGISTIC, seen_genes


@pytest.mark.parametrize("method", LOGISTIC)
def test_logistic_regression_learns_from_the_training_cells_only(method: str) -> None:
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


def test_majority_is_that_of_the_training_cells() -> None:
    codes = np.array([0, 0, 0, 1, 1, 1, 1])
    split = random_split(7, test_size=0.3, validation_size=0.0, seed=1)
    split = type(split)(np.array([0, 1, 2, 3]), np.array([], dtype=np.int64), np.array([4, 5, 6]))
    assert BASELINES["majority class"](np.zeros((7, 1), dtype=np.float32), codes, split).tolist() == [0] * 7


@pytest.mark.parametrize("layer", [None, "counts"])
def test_baselines_see_log_normalised_genes_that_the_model_knows(layer: str | None) -> None:
    rng = np.random.default_rng(0)
    adata = AnnData(rng.poisson(3, (20, 6)).astype(np.float32), var=pd.DataFrame({"symbol": list("ABCDEF")}))
    adata.uns["finetune"] = {"genes": {"dropped": ["B", "E"]}}
    expected = adata.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    if layer is not None:
        adata.layers[layer], adata.X = adata.X, np.zeros_like(adata.X)
    found = seen_genes(adata, "finetune", Reading(layer, gene_symbols="symbol"))
    np.testing.assert_allclose(found, expected.X[:, [0, 2, 3, 5]], rtol=1e-5)
