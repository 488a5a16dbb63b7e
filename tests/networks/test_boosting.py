import numpy as np

from scgalore.networks.boosting import boosted_importances


def test_the_regulator_of_each_target_is_found():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 8)).astype(np.float32)
    x[:, 6] = np.sin(x[:, 2]) + 0.1 * rng.normal(size=150)
    x[:, 7] = x[:, 4] ** 2 + 0.1 * rng.normal(size=150)
    sources, targets = np.arange(6), np.array([6, 7, 0, 2])
    found = boosted_importances(x, sources, targets, seed=0)
    assert found.shape == (6, 4)
    assert found[:, 0].argmax() == 2
    assert found[:, 1].argmax() == 4
    assert found[0, 2] == 0
    assert found[2, 3] == 0
    assert found[:, :2].max() > 2 * found[:, 2].max()
    np.testing.assert_array_equal(found, boosted_importances(x, sources, targets, seed=0))


def test_constant_targets_and_a_lone_regulator():
    x = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    x[:, 2] = 1
    found = boosted_importances(x, np.array([0]), np.array([0, 1, 2]), seed=0)
    assert found[0, 0] == 0
    assert found[0, 1] > 0
    assert found[0, 2] == 0
