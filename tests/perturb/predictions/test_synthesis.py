from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import false_discovery_control, mannwhitneyu

from scgalore.errors import DataError, OptionError
from scgalore.perturb.predictions import synthesis
from scgalore.perturb.predictions.synthesis import synthesise


def n_significant(cells: np.ndarray, control: np.ndarray) -> int:
    p = np.nan_to_num(mannwhitneyu(cells, control, axis=0).pvalue, nan=1.0)
    return int((false_discovery_control(p) < 0.05).sum())


def zeros_off(cells: np.ndarray, real: np.ndarray) -> float:
    """How far the shares of zeros are from the real ones, on average over genes."""
    return float(np.abs((cells == 0).mean(0) - (real == 0).mean(0)).mean())


def shifted(mean: np.ndarray, control: np.ndarray, n_cells: int) -> np.ndarray:
    rows = np.random.default_rng(0).integers(len(control), size=n_cells)
    return np.maximum(control[rows] + mean - control.mean(0), 0)


@pytest.fixture(scope="module")
def blood() -> dict[str, np.ndarray]:
    sc = pytest.importorskip("scanpy")
    reduced = sc.datasets.pbmc68k_reduced()
    kind = reduced.obs["bulk_labels"].astype(str).to_numpy()
    values = reduced.raw.X.toarray()
    return {name: values[kind == name] for name in np.unique(kind)}


@pytest.fixture(scope="module")
def k562(shared_data: Path) -> AnnData:
    path = shared_data / "perturbench_devel.h5ad"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    adata = ad.read_h5ad(path)
    return adata[adata.obs["cell_type"] == "k562"].copy()


def cells_of(adata: AnnData, perturbation: str) -> np.ndarray:
    return adata[adata.obs["perturbation"] == perturbation].X.toarray()


class TestControlMean:
    @pytest.mark.parametrize("n_cells", [10, 77, 240, 600])
    def test_no_gene_is_significant(self, blood: dict[str, np.ndarray], n_cells: int) -> None:
        control = blood["Dendritic"]
        for seed in range(3):
            cells = synthesise(control.mean(0), sp.csr_matrix(control), n_cells=n_cells, seed=seed).toarray()
            assert n_significant(cells, control) == 0

    @pytest.mark.parametrize("n_cells", [37, 100, 1000])
    def test_no_gene_is_significant_among_rare_ones(self, k562: AnnData, n_cells: int) -> None:
        control = cells_of(k562, "control")
        cells = synthesise(control.mean(0), sp.csr_matrix(control), n_cells=n_cells, seed=0).toarray()
        assert n_significant(cells, control) == 0

    def test_rounding_of_the_mean_breaks_no_ties(self) -> None:
        # Values on few levels, as logarithms of plain counts: a factor of 1.0000001 on all would look like an effect.
        control = np.log1p(np.random.default_rng(0).poisson(3, (400, 30))).astype(np.float32)
        mean = control.mean(0).astype(np.float32) * np.float32(1.000001)
        cells = synthesise(mean, sp.csr_matrix(control), n_cells=300, seed=0).toarray()
        assert n_significant(cells, control) == 0
        assert np.mean(np.isin(cells, control)) > 0.99

    def test_rare_genes_stay_rare_in_few_cells(self) -> None:
        rng = np.random.default_rng(1)
        control = sp.csr_matrix((rng.random((4000, 3000)) < 0.001).astype(np.float32))
        mean = np.asarray(control.mean(axis=0)).ravel()
        cells = synthesise(mean, control, n_cells=100, seed=0)
        assert cells.nnz / 100 == pytest.approx(control.nnz / 4000, rel=0.25)

    def test_as_many_cells_as_there_are_control_cells_are_these_cells(self, blood: dict[str, np.ndarray]) -> None:
        control = blood["CD19+ B"]
        cells = synthesise(control.mean(0), sp.csr_matrix(control), n_cells=len(control), seed=4).toarray()
        np.testing.assert_array_equal(np.sort((cells > 0).sum(1)), np.sort((control > 0).sum(1)))
        np.testing.assert_allclose(np.sort(cells, axis=0), np.sort(control, axis=0), atol=2e-3)


class TestRealPerturbations:
    def test_zeros_and_significant_genes_are_nearer_to_the_real_ones(self, k562: AnnData) -> None:
        control = cells_of(k562, "control")
        names = [name for name in k562.obs["perturbation"].unique() if name != "control"]
        zeros, significant = [], []
        for name in names:
            real = cells_of(k562, name)
            mean, n = real.mean(0), len(real)
            drawn = (
                synthesise(mean, sp.csr_matrix(control), n_cells=n, seed=1).toarray(),
                shifted(mean, control, n),
                np.tile(mean, (n, 1)),
            )
            zeros.append([zeros_off(cells, real) for cells in drawn])
            significant.append([n_significant(cells, control) for cells in (real, *drawn)])
        assert np.mean(zeros, axis=0)[0] < 0.01 < 0.1 < np.mean(zeros, axis=0)[1:].min()
        of_real, of_drawn, *of_others = np.mean(significant, axis=0)
        assert of_real / 2 < of_drawn < of_real * 2
        assert min(of_others) > of_real * 10

    def test_zeros_of_another_cell_type(self, blood: dict[str, np.ndarray]) -> None:
        control = blood["CD14+ Monocyte"]
        for name in ("CD19+ B", "CD56+ NK", "Dendritic", "CD34+"):
            real = blood[name]
            cells = synthesise(real.mean(0), sp.csr_matrix(control), n_cells=len(real), seed=0).toarray()
            assert zeros_off(cells, real) < zeros_off(shifted(real.mean(0), control, len(real)), real) / 4
            assert np.corrcoef(cells.std(0), real.std(0))[0, 1] > 0.8

    def test_genes_keep_what_they_have_in_common(self, blood: dict[str, np.ndarray]) -> None:
        control = blood["Dendritic"]
        cells = synthesise(control.mean(0) * 1.2, sp.csr_matrix(control), n_cells=400, seed=0).toarray()
        common = (control > 0).mean(0) > 0.3
        pairs = np.triu_indices(int(common.sum()), 1)
        theirs, ours = (np.corrcoef(values[:, common].T)[pairs] for values in (control, cells))
        assert np.corrcoef(theirs, ours)[0, 1] > 0.9


matrices = st.tuples(st.integers(1, 12), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, shape, elements=st.sampled_from([0, 0, 0.5, 0.75, 2, 5.5])),
        arrays(np.float64, shape[1], elements=st.floats(-1, 8)),
    )
)


class TestMean:
    @given(data=matrices, n_cells=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
    def test_mean_is_met_and_values_are_clean(
        self, data: tuple[np.ndarray, np.ndarray], n_cells: int, seed: int
    ) -> None:
        control, mean = data
        cells = synthesise(mean, sp.csr_matrix(control), n_cells=n_cells, seed=seed)
        assert cells.shape == (n_cells, len(mean))
        assert cells.dtype == np.float32
        assert np.isfinite(cells.data).all()
        assert cells.data.min(initial=1) > 0
        wanted = np.maximum(mean, 0)
        drawn = cells.toarray().astype(np.float64)
        several = (drawn > 0).sum(0) >= 2  # so it was expected in half a cell and more
        np.testing.assert_allclose(drawn.mean(0)[several], wanted[several], rtol=1e-5)
        assert (drawn[:, wanted == 0] == 0).all()

    def test_negative_means_are_zero_and_zeros_are_not_stored(self) -> None:
        control = sp.csr_matrix(np.ones((5, 3), dtype=np.float32))
        cells = synthesise([-0.5, 0.0, 1.0], control, n_cells=4, seed=0)
        assert cells.nnz == 4
        np.testing.assert_array_equal(cells.toarray(), [[0, 0, 1]] * 4)

    def test_rare_genes_are_right_on_average(self) -> None:
        control = sp.csr_matrix(np.eye(200, dtype=np.float32) * 2)  # each gene in one cell of 200
        mean = np.full(200, 0.01)
        total = sum(synthesise(mean, control, n_cells=20, seed=seed).toarray().mean(0) for seed in range(200))
        assert np.mean(total) / 200 == pytest.approx(0.01, rel=0.05)

    def test_genes_that_no_control_cell_expresses(self) -> None:
        control = np.zeros((50, 3), dtype=np.float32)
        control[:, 0] = np.linspace(0.5, 1.5, 50)
        for mean in (0.01, 0.3, 4.0):
            cells = synthesise([1, mean, 0], sp.csr_matrix(control), n_cells=200, seed=0).toarray()
            assert cells[:, 1].mean() == pytest.approx(mean, rel=1e-5)
            assert (cells[:, 1] > 0).mean() == pytest.approx(1 - np.exp(-mean), abs=0.01)
            assert not cells[:, 2].any()

    def test_control_cells_without_any_count(self) -> None:
        cells = synthesise([0.2, 0], sp.csr_matrix((3, 2), dtype=np.float32), n_cells=50, seed=0)
        np.testing.assert_allclose(cells.toarray().mean(0), [0.2, 0], rtol=1e-5)

    def test_one_cell_from_one_control_cell(self) -> None:
        control = sp.csr_matrix(np.array([[2.0, 0.0, 1.0]], dtype=np.float32))
        cells = synthesise([3.0, 0.0, 1.0], control, n_cells=1, seed=0)
        np.testing.assert_allclose(cells.toarray(), [[3, 0, 1]])


class TestDraws:
    def test_seed_decides(self, blood: dict[str, np.ndarray]) -> None:
        control = sp.csr_matrix(blood["CD19+ B"])
        mean = blood["CD56+ NK"].mean(0)
        one, again, other = (synthesise(mean, control, n_cells=40, seed=seed).toarray() for seed in (1, 1, 2))
        assert (one == again).all()
        assert (one != other).any()

    def test_memory_blocks_do_not_matter(self, blood: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
        control = sp.csr_matrix(blood["CD19+ B"])
        mean = blood["CD56+ NK"].mean(0)
        whole = synthesise(mean, control, n_cells=40, seed=1).toarray()
        monkeypatch.setattr(synthesis, "_BLOCK", 7)
        assert (synthesise(mean, control, n_cells=40, seed=1).toarray() == whole).all()

    def test_control_is_left_alone(self) -> None:
        control = sp.csr_matrix(np.array([[0.0, 1.0], [2.0, 3.0]], dtype=np.float32))
        control.data[0] = 0  # a stored zero
        before = control.copy()
        synthesise([1, 2], control, n_cells=5, seed=0)
        assert (control.data == before.data).all()
        assert control.nnz == before.nnz


@pytest.mark.parametrize(
    ("mean", "control", "n_cells", "error", "message"),
    [
        ([1.0], np.zeros((0, 1)), 5, DataError, "no control cells"),
        ([1.0, 2.0], np.ones((3, 1)), 5, DataError, r"shape \(2,\) and control \(3, 1\)"),
        ([np.nan], np.ones((3, 1)), 5, DataError, "NaN"),
        ([1.0], -np.ones((3, 1)), 5, DataError, "negative"),
        ([1.0], np.ones((3, 1)), 0, OptionError, "n_cells=0"),
    ],
)
def test_bad_input_is_refused(
    mean: list[float], control: np.ndarray, n_cells: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        synthesise(mean, sp.csr_matrix(control), n_cells=n_cells, seed=0)
