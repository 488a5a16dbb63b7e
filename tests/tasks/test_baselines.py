import numpy as np
import pytest

from scgalore.data.split import random_split
from scgalore.tasks.baselines import BASELINES, LOGISTIC


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
