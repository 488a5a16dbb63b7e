import numpy as np
import pytest
from tests.screens import screen

from scgalore.data.expression import LogExpression
from scgalore.perturb.scores.halves import cell_draws, disjoint_halves, in_drawn_order

N_NAMES = 3
GROUP = np.repeat([0, 1, 2, 3, 4, 5, -1], [6, 5, 1, 1, 4, 2, 3])
"""Context 0: control, two perturbations. Context 1: a single control cell."""


def test_halves_are_disjoint_and_of_equal_size() -> None:
    draws = np.random.default_rng(0).random(len(GROUP))
    first, second = disjoint_halves(GROUP, draws, n_names=N_NAMES)
    assert not (first & second).any()
    for code, size in ((0, 3), (1, 2), (2, 0)):
        own = np.equal(GROUP, code)
        assert (first & own).sum() == (second & own).sum() == size


def test_contexts_that_cannot_halve_their_controls_are_left_out() -> None:
    first, second = disjoint_halves(GROUP, np.linspace(0, 1, len(GROUP)), n_names=N_NAMES)
    assert not (first | second)[GROUP >= 3].any()
    assert not (first | second)[GROUP < 0].any()


def test_halves_follow_the_cells_and_not_their_order() -> None:
    adata = screen()
    order = np.random.default_rng(1).permutation(adata.n_obs)
    group = adata.obs["perturbation"].cat.codes.to_numpy(np.int64)
    group = np.where(adata.obs["perturbation"] == "control", 0, group + 1)
    draws, moved = (cell_draws(LogExpression.from_adata(x), 3) for x in (adata, adata[order].copy()))
    np.testing.assert_array_equal(moved, draws[order])
    n = int(group.max()) + 1
    for half, other in zip(
        disjoint_halves(group, draws, n_names=n), disjoint_halves(group[order], moved, n_names=n), strict=True
    ):
        np.testing.assert_array_equal(half[order], other)


def test_another_seed_draws_anew() -> None:
    expression = LogExpression.from_adata(screen())
    assert (cell_draws(expression, 0) != cell_draws(expression, 1)).all()


@pytest.mark.parametrize("most", [None, 2])
def test_the_first_drawn_are_kept(most: int | None) -> None:
    draws = np.array([0.5, 0.1, 0.9, 0.3])
    assert in_drawn_order(np.array([0, 2, 3]), draws, most).tolist() == [3, 0, 2][:most]
