"""A linear model on other data: fewer genes, another order or scale, and a file."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from tests.tasks.test_linear import labelled, parts

from scgalore.data.reading import AS_IT_IS, Reading
from scgalore.tasks import linear_model
from scgalore.tasks.linear import fit_classes
from scgalore.tasks.linear_model import LinearModel


class TestOtherData:
    @pytest.fixture
    def fitted(self, pbmc: AnnData) -> tuple[AnnData, LinearModel]:
        adata, codes, train, _ = labelled(pbmc)
        return adata, fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1).model

    def test_order_and_further_genes_do_not_matter(self, fitted: tuple[AnnData, LinearModel]) -> None:
        adata, model = fitted
        expected = model.predict(adata, AS_IT_IS)
        more = adata[:, ::-1].copy()
        more.var_names = [f"other{i}" if i % 3 == 0 else name for i, name in enumerate(more.var_names)]
        fewer = adata[:, np.isin(adata.var_names, more.var_names)].copy()
        np.testing.assert_allclose(model.predict(adata[:, ::-1].copy(), AS_IT_IS), expected, atol=1e-4)
        np.testing.assert_allclose(model.predict(more, AS_IT_IS), model.predict(fewer, AS_IT_IS), atol=1e-4)

    def test_absent_genes_are_expected_from_the_others(self, fitted: tuple[AnnData, LinearModel]) -> None:
        adata, model = fitted
        lacking = adata[:, ::3].copy()
        x = lacking.X.toarray().astype(np.float64)
        place = {name: i for i, name in enumerate(model.genes)}
        there = np.array([place[name] for name in linear_model.standardise(list(lacking.var_names))])
        absent = np.setdiff1d(np.arange(len(model.genes)), there)
        loadings = model.loadings.astype(np.float64)
        covariance = loadings @ loadings.T + np.diag(model.noise.astype(np.float64))
        weights = np.linalg.solve(covariance[np.ix_(there, there)], covariance[np.ix_(there, absent)])
        expected = np.zeros((len(x), len(model.genes)))
        expected[:, there] = x
        expected[:, absent] = model.mean[absent] + (x - model.mean[there]) @ weights
        outputs = expected @ model.coef + model.intercept
        np.testing.assert_allclose(model.predict(lacking, AS_IT_IS), outputs, atol=1e-3)

    def test_few_genes_predict_as_well_as_a_model_of_these_alone(self, pbmc: AnnData) -> None:
        adata, codes, train, rest = labelled(pbmc, 700)
        model = fit_classes(adata, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1).model
        right: list[float] = []
        alone: list[float] = []
        at_mean: list[float] = []
        mean_alone = replace(model, loadings=model.loadings[:, :0])  # as a file of version 0.12.0 is read
        for seed in range(3):
            genes = np.random.default_rng(seed).permutation(adata.n_vars)[:200]
            few = adata[:, genes].copy()
            own = fit_classes(few, AS_IT_IS, codes, parts(train), n_classes=codes.max() + 1).model
            for found, one in ((right, model), (alone, own), (at_mean, mean_alone)):
                found.append((one.predict(few[rest].copy(), AS_IT_IS).argmax(axis=1) == codes[rest]).mean())
        assert np.mean(right) > np.mean(alone) - 0.03
        assert np.mean(right) > np.mean(at_mean) + 0.1

    def test_a_file_of_version_0_12_0_has_the_mean_of_absent_genes(self, fitted: tuple[AnnData, LinearModel]) -> None:
        adata, model = fitted
        arrays = linear_model.load(model.to_bytes())
        old = {name: array for name, array in arrays.items() if name not in ("loadings", "noise")}
        read = LinearModel.from_bytes(linear_model.save(old), len(model.intercept))
        np.testing.assert_array_equal(read.predict(adata, AS_IT_IS), model.predict(adata, AS_IT_IS))
        filled = adata.copy()
        x = filled.X.toarray()
        place = {name: i for i, name in enumerate(model.genes)}
        x[:, 0] = model.mean[place[linear_model.standardise([adata.var_names[0]])[0]]]
        filled.X = x
        lacking = read.predict(adata[:, 1:].copy(), AS_IT_IS)
        np.testing.assert_allclose(lacking, read.predict(filled, AS_IT_IS), atol=1e-4)

    def test_counts_scaled_to_another_sum_are_brought_back(
        self, fitted: tuple[AnnData, LinearModel], caplog: pytest.LogCaptureFixture
    ) -> None:
        adata, model = fitted
        expected = model.predict(adata, AS_IT_IS)
        other = adata.copy()
        other.X.data = np.log1p(np.expm1(other.X.data) * 20)
        found = model.predict(other, Reading(data_type="log1p"))
        assert "times that of the training data" in caplog.text
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.99

    def test_counts_and_their_logarithms_agree(self) -> None:
        rng = np.random.default_rng(0)
        counts = AnnData(rng.poisson(rng.gamma(1, 2, 400), (60, 400)).astype(np.float32))
        codes = rng.integers(0, 3, 60)
        model = fit_classes(counts, AS_IT_IS, codes, parts(np.arange(60)), n_classes=3).model
        logged = counts.copy()
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        np.testing.assert_allclose(model.predict(logged, AS_IT_IS), model.predict(counts, AS_IT_IS), atol=1e-3)

    def test_a_file_keeps_every_bit(self, fitted: tuple[AnnData, LinearModel]) -> None:
        adata, model = fitted
        again = LinearModel.from_bytes(model.to_bytes(), len(model.intercept))
        assert again == model
        np.testing.assert_array_equal(again.predict(adata, AS_IT_IS), model.predict(adata, AS_IT_IS))

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda content, n: (b"", n),
            lambda content, n: (content[:-10], n),
            lambda content, n: (content, n + 1),
            lambda content, n: (linear_model.save({"coef": np.zeros((2, n), np.float32)}), n),
        ],
        ids=["empty", "cut", "classes", "others"],
    )
    def test_another_file_is_refused(self, fitted: tuple[AnnData, LinearModel], spoil: Any) -> None:
        model = fitted[1]
        with pytest.raises(ValueError, match="it holds no linear model|its arrays do not fit"):
            LinearModel.from_bytes(*spoil(model.to_bytes(), len(model.intercept)))

    def test_numbers_that_are_not_finite_are_refused(self, fitted: tuple[AnnData, LinearModel]) -> None:
        model = fitted[1]
        model.coef[0, 0] = math.nan
        with pytest.raises(ValueError, match="not finite"):
            LinearModel.from_bytes(model.to_bytes(), len(model.intercept))
