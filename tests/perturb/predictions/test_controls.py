"""Control cells of one scale are told from those of another, whatever cells they are."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scgalore.errors import DataError
from scgalore.perturb.predictions.controls import ControlMeans, most_allowed

Cells = NDArray[np.float64]

SCALES: dict[str, Callable[[Cells], Cells]] = {
    "base 2": lambda x: x / np.log(2),
    "base 10": lambda x: x / np.log(10),
    "a tenth of the sum": lambda x: np.log1p(np.expm1(x) / 10),
    "a third of the sum": lambda x: np.log1p(np.expm1(x) / 3),
    "ten times the sum": lambda x: np.log1p(np.expm1(x) * 10),
    "a hundred times the sum": lambda x: np.log1p(np.expm1(x) * 100),
    "two logarithms": np.log1p,
    "no logarithm": np.expm1,
    "halved": lambda x: x / 2,
}


def means_of(x: Cells, name: str = "") -> ControlMeans:
    genes = tuple(f"g{i}" for i in range(x.shape[1]))
    return ControlMeans(genes, (name,), x.mean(axis=0, keepdims=True), np.array([len(x)]))


def is_same_scale(one: ControlMeans, other: ControlMeans) -> bool:
    try:
        one.refuse_other_scale(other, what="", advice="")
    except DataError:
        return False
    return True


def logged(counts: NDArray[np.float64]) -> Cells:
    return np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * 1e4)


@pytest.fixture(scope="session")
def groups(shared_data: Path) -> dict[str, dict[str, Cells]]:
    """Cells of real data on one scale each, by what they differ in otherwise."""
    found: dict[str, dict[str, Cells]] = {}
    screen = ad.read_h5ad(shared_data / "perturbench_devel.h5ad")
    control = screen[screen.obs["condition"].astype(str).str.lower() == "control"]
    found["line"] = {
        str(line): control[control.obs["cell_type"] == line].X.toarray() for line in control.obs["cell_type"].unique()
    }
    kang = ad.read_h5ad(shared_data / "kang18_pbmc_ifnb_muscat.h5ad")
    x = logged(np.asarray(kang.X.toarray(), dtype=np.float64))
    found |= {
        key: {str(label): x[kang.obs[key] == label] for label in kang.obs[key].unique()}
        for key in ("cluster_id", "sample_id", "group_id")
    }
    assays = ad.read_h5ad(shared_data / "pbmc_3assays_symphony.h5ad")
    found["assay"] = {str(a): assays[assays.obs["batch"] == a].X.toarray() for a in assays.obs["batch"].unique()}
    assert len(found["line"]) == 4
    return found


class TestRealData:
    def test_other_cells_are_on_the_same_scale(self, groups: dict[str, dict[str, Cells]]) -> None:
        for cells in groups.values():
            for one, other in combinations(cells, 2):
                assert is_same_scale(means_of(cells[one]), means_of(cells[other])), (one, other)
                assert is_same_scale(means_of(cells[one], "a"), means_of(cells[other], "b")), (one, other)

    @pytest.mark.parametrize("n", [1, 5, 20, 50])
    def test_so_are_halves_and_few_cells(self, groups: dict[str, dict[str, Cells]], n: int) -> None:
        rng = np.random.default_rng(n)
        wrong, drawn = 0, 0
        for cells in groups.values():
            for x in cells.values():
                for _ in range(20):
                    order = rng.permutation(len(x))
                    if len(x) >= 2 * n:
                        drawn += 1
                        wrong += not is_same_scale(means_of(x[order[:n]]), means_of(x[order[n:]]))
        assert drawn > 150
        assert wrong <= 0.002 * drawn

    @pytest.mark.parametrize("scale", SCALES)
    def test_other_scales_are_found_in_the_same_cells(self, groups: dict[str, dict[str, Cells]], scale: str) -> None:
        for cells in groups.values():
            for name, x in cells.items():
                assert not is_same_scale(means_of(x), means_of(SCALES[scale](x))), name
                assert not is_same_scale(means_of(SCALES[scale](x)), means_of(x)), name

    @pytest.mark.parametrize("scale", ["a tenth of the sum", "ten times the sum", "base 10", "no logarithm", "halved"])
    def test_and_in_the_other_half(self, groups: dict[str, dict[str, Cells]], scale: str) -> None:
        for cells in groups.values():
            for name, x in cells.items():
                if len(x) >= 40:
                    assert not is_same_scale(means_of(x[::2]), means_of(SCALES[scale](x[1::2]))), name


positive = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).gamma(0.5, 1.0, (30, 12)))


@given(positive, st.floats(0.05, 20))
def test_a_factor_is_measured_and_refused_in_both_directions(x: Cells, factor: float) -> None:
    slope, n_cells = means_of(x).slope_to(means_of(factor * x))
    assert slope == pytest.approx(factor)
    assert n_cells == 30
    assert is_same_scale(means_of(x), means_of(factor * x)) == (max(factor, 1 / factor) <= most_allowed(30))


@given(positive, positive)
def test_it_is_the_same_from_both_sides(x: Cells, y: Cells) -> None:
    there, back = means_of(x).slope_to(means_of(y))[0], means_of(y).slope_to(means_of(x))[0]
    assert there * back == pytest.approx(1)


def test_contexts_are_matched_by_name() -> None:
    x = np.random.default_rng(0).gamma(1.0, 1.0, (2, 20))
    genes = tuple(f"g{i}" for i in range(20))
    before = ControlMeans(genes, ("a", "b"), np.stack([x[0], 3 * x[1]]), np.array([50, 50]))
    swapped = ControlMeans(genes, ("b", "a"), np.stack([3 * x[1], x[0]]), np.array([50, 50]))
    assert before.slope_to(swapped)[0] == pytest.approx(1)
    alone = ControlMeans(genes, ("b",), 6 * x[1:], np.array([10]))
    assert before.slope_to(alone) == pytest.approx((2, 10))


def test_genes_are_matched_by_name_or_place() -> None:
    x = np.random.default_rng(0).gamma(1.0, 1.0, (40, 20))
    here = means_of(x)
    order = np.random.default_rng(1).permutation(20)[:15]
    other = ControlMeans(
        tuple(f"g{i}" for i in order), ("",), 2 * x.mean(axis=0, keepdims=True)[:, order], np.array([40])
    )
    assert here.slope_to(other)[0] == pytest.approx(2)
    renamed = ControlMeans(tuple(f"other{i}" for i in order), ("",), other.means, other.n_cells)
    assert here.slope_to(renamed, columns=order)[0] == pytest.approx(2)
    assert here.slope_to(renamed) == (1.0, 0.0)  # nothing to compare


@pytest.mark.parametrize("n_cells", [(0, 5), (5, 0), (0, 0)])
def test_contexts_without_control_say_nothing(n_cells: tuple[int, int]) -> None:
    genes = tuple(f"g{i}" for i in range(20))
    one, other = (
        ControlMeans(genes, (name,), np.ones((1, 20)), np.array([n])) for name, n in zip("ab", n_cells, strict=True)
    )
    assert one.slope_to(other) == (1.0, 0.0)


def test_the_message_says_by_how_much() -> None:
    x = np.random.default_rng(0).gamma(1.0, 1.0, (40, 20))
    with pytest.raises(DataError, match=r"is 0\.25 times that of home\. .* Go home\."):
        means_of(x).refuse_other_scale(means_of(x / 4), what="that of home", advice="Go home.")
