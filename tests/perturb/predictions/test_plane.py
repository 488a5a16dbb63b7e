import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.screens import profiles_of, screen

from scgalore.perturb.predictions.plane import embed_in_plane, main_directions


@given(n=st.integers(1, 12), n_genes=st.integers(2, 12), seed=st.integers(0, 2**16))
def test_directions_are_the_first_singular_vectors(n: int, n_genes: int, seed: int) -> None:
    effects = np.random.default_rng(seed).normal(size=(n, n_genes))
    directions, explained = main_directions(effects)
    _, values, vectors = np.linalg.svd(effects)
    for i in range(min(2, n)):
        assert abs(vectors[i] @ directions[:, i]) == pytest.approx(1, abs=1e-6)
        assert explained[i] == pytest.approx(values[i] ** 2 / (values**2).sum())
        assert directions[np.abs(directions[:, i]).argmax(), i] > 0


def test_control_stays_at_the_origin_when_all_effects_agree() -> None:
    effects = np.outer([1.0, 2.0, 3.0], [3.0, 4.0])
    directions, explained = main_directions(effects)
    np.testing.assert_allclose(effects @ directions, [[5, 0], [10, 0], [15, 0]], atol=1e-12)
    np.testing.assert_allclose(explained, [1, 0], atol=1e-12)


@pytest.mark.parametrize("effects", [np.zeros((3, 4)), np.zeros((0, 4))])
def test_without_any_effect_everything_is_at_the_origin(effects: np.ndarray) -> None:
    directions, explained = main_directions(effects)
    assert not directions.any()
    assert not explained.any()


def test_held_out_cells_do_not_move_the_plane() -> None:
    adata = screen()
    training, test = profiles_of(adata, "train"), profiles_of(adata, "test")
    rows = pd.DataFrame({"perturbation": test.perturbations, "context": ""})
    made = embed_in_plane(training, rows, test.effects)
    other = embed_in_plane(training, rows, 3 * test.effects)
    pd.testing.assert_frame_equal(made["directions"], other["directions"])
    table = made["embedding"]
    assert table["method"].value_counts().to_dict() == {"training": len(training), "predicted": len(test)}
    places = table.loc[table["method"] == "predicted", ["x", "y"]]
    np.testing.assert_allclose(places, test.effects @ made["directions"], rtol=1e-4, atol=1e-5)


def test_without_training_effects_the_plane_is_that_of_the_predicted_ones() -> None:
    test = profiles_of(screen(), "test")
    rows = pd.DataFrame({"perturbation": test.perturbations, "context": ""})
    made = embed_in_plane(test.take([]), rows, test.effects)
    np.testing.assert_allclose(made["explained"], main_directions(test.effects)[1])
    assert set(made["embedding"]["method"]) == {"predicted"}
