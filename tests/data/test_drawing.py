import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from scgalore.data.drawing import Blocks, Visits, Weighting, drawn, once

BOUNDS = np.array([0, 37, 37, 90, 101])  # the second source has no cells
GROUPS = [0, 0, 1, 1]


def weighting(blocks: Blocks, seed: int = 0) -> tuple[Weighting, np.ndarray]:
    """Some weights, and the probability of each cell."""
    rng = np.random.default_rng(seed)
    weights = rng.random((2, 3)) * [[1, 5, 0]]
    values = [rng.integers(0, 3, n).astype(np.int8) for n in np.diff(BOUNDS)]
    cells = np.concatenate([weights[group][of_source] for group, of_source in zip(GROUPS, values, strict=True)])
    return Weighting(weights, GROUPS, values, BOUNDS, blocks), cells / cells.sum()


def all_of(visits: Visits, n: int, pieces: list[int]) -> np.ndarray:
    cuts = np.unique([0, *pieces, n])
    return np.concatenate(
        [visits.between(int(start), int(stop))[0] for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
    )


@given(size=st.integers(1, 60))
def test_blocks_are_of_one_source(size: int) -> None:
    blocks = Blocks.of(BOUNDS, size)
    cells = np.concatenate([np.arange(*block) for block in zip(blocks.first, blocks.stop, strict=True)])
    assert cells.tolist() == list(range(101))
    source = np.searchsorted(BOUNDS, blocks.first, side="right")
    assert (source == np.searchsorted(BOUNDS, blocks.stop - 1, side="right")).all()
    assert (blocks.stop - blocks.first <= size).all()


@given(size=st.integers(1, 60), seed=st.none() | st.integers(0, 9), pieces=st.lists(st.integers(0, 101), max_size=5))
def test_each_comes_once_however_the_epoch_is_cut(size: int, seed: int | None, pieces: list[int]) -> None:
    visits = once(Blocks.of(BOUNDS, size), None if seed is None else (seed, 1))
    assert sorted(all_of(visits, 101, pieces)) == list(range(101))


@given(size=st.integers(1, 60), seed=st.integers(0, 9), pieces=st.lists(st.integers(0, 101), max_size=5))
@settings(max_examples=30)
def test_draws_do_not_hang_on_how_the_epoch_is_cut(size: int, seed: int, pieces: list[int]) -> None:
    blocks = Blocks.of(BOUNDS, size)
    weights, probability = weighting(blocks)
    visits = drawn(blocks, weights, (seed, 2), size=size)
    whole = visits.between(0, 101)
    assert sorted(all_of(visits, 101, pieces)) == whole[0].tolist()
    assert (probability[whole[0]] > 0).all()
    # No cell has the same number twice, so no two draws of it are alike.
    assert len(set(zip(*map(np.ndarray.tolist, whole), strict=True))) == 101


@pytest.mark.parametrize("size", [1, 8, 64])
def test_draws_are_independent_with_their_probabilities(size: int) -> None:
    blocks = Blocks.of(BOUNDS, size)
    weights, probability = weighting(blocks)
    n_epochs = 400
    counts = np.zeros(101)
    per_epoch = []
    for epoch in range(n_epochs):
        cells, _ = drawn(blocks, weights, (3, epoch), size=size).between(0, 101)
        found = np.bincount(cells, minlength=101)
        counts += found
        per_epoch.append(found[: int(blocks.stop[0])].sum())
    some = probability > 0
    assert counts[~some].sum() == 0
    assert chisquare(counts[some], probability[some] * counts.sum()).pvalue > 1e-3
    # The number of draws of a part of the cells varies as that of independent draws does.
    share = probability[: int(blocks.stop[0])].sum()
    expected = 101 * share * (1 - share)
    assert 0.75 * expected < np.var(per_epoch) < 1.3 * expected


def test_a_heavy_block_is_visited_all_over_the_epoch() -> None:
    bounds = np.array([0, 8, 8_000])
    blocks = Blocks.of(bounds, 8)
    weights = Weighting(np.array([[1 / 8], [1 / 7_992]]), [0, 1], None, bounds, blocks)
    visits = drawn(blocks, weights, (0, 0), size=8)
    shares = [(visits.between(start, start + 400)[0] < 8).mean() for start in range(0, 8_000, 400)]
    assert 0.3 < min(shares) < max(shares) < 0.7
