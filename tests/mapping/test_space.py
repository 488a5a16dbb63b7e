import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import DataError
from scgalore.mapping.space import Space, blocks


def embedding(n: int = 300, d: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 5).astype(np.float32)


@given(st.integers(0, 50), st.integers(1, 20))
def test_blocks_cover_all_once(n: int, size: int) -> None:
    parts = [np.arange(n)[part] for part in blocks(n, size)]
    assert np.concatenate([*parts, np.arange(0)]).tolist() == list(range(n))
    assert all(0 < len(part) <= size for part in parts)


@pytest.mark.parametrize(("asked", "kept"), [(4, 4), (99, 12), (None, 12)])
def test_axes_are_centred_and_half_whitened(asked: int | None, kept: int) -> None:
    cells = embedding()
    space = Space.fit(cells, asked)
    directions, norms = space(cells)
    inside = directions * norms[:, None]
    assert inside.shape == (300, kept) == (300, space.n_components)
    np.testing.assert_allclose(inside.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-5)
    # The variance of an axis is the square root of what it was, and the axes are uncorrelated.
    variances = np.sort(np.linalg.eigvalsh(np.cov(cells.T)))[::-1][:kept]
    np.testing.assert_allclose(np.cov(inside.T), np.diag(np.sqrt(variances)), atol=1e-3 * variances[0] ** 0.5)


def test_axes_that_do_not_vary_are_left_out() -> None:
    cells = embedding()
    cells[:, 3] = cells[:, 4]
    assert Space.fit(cells, None).n_components == 11


def test_a_mean_cell_has_no_direction_and_no_nan() -> None:
    space = Space.fit(embedding(), None)
    directions, norms = space(space.mean[None])
    assert np.isfinite(directions).all()
    assert norms[0] < 1e-5


def test_equal_embeddings_are_refused() -> None:
    with pytest.raises(DataError, match="same embedding"):
        Space.fit(np.ones((10, 4), dtype=np.float32), None)
