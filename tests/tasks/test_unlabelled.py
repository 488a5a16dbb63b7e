"""Cells without labels: what a linear model learns from them, what it must not see, and what is refused before any work."""

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray

from scgalore.data.reading import Reading
from scgalore.data.split import Split
from scgalore.tasks.linear import LinearFit, fit_classes
from scgalore.tasks.unlabelled import THRESHOLD, fit_unlabelled

LOGS = Reading(data_type="log1p")
N_CLASSES, N_GENES = 4, 100
CLASSES = tuple("abcd")


def cells(n: int, seed: int = 0) -> tuple[AnnData, NDArray[np.int64]]:
    """``n`` cells of each class, told apart by many genes that each say little."""
    programs = np.random.default_rng(0).normal(0, 0.5, (N_CLASSES, N_GENES))
    codes = np.repeat(np.arange(N_CLASSES), n)
    noise = np.random.default_rng([seed, n]).normal(0, 1.3, (len(codes), N_GENES))
    adata = AnnData(np.clip(2 + programs[codes] + noise, 0, None).astype(np.float32))
    adata.var_names = [f"G{i:02d}" for i in range(N_GENES)]
    adata.obs_names = [f"{seed}-{n}-{i}" for i in range(adata.n_obs)]
    return adata, codes


def parts(n: int, validation: NDArray[np.int64] | None = None, test: NDArray[np.int64] | None = None) -> Split:
    none = np.empty(0, np.int64)
    validation, test = (none if rows is None else rows for rows in (validation, test))
    return Split(np.setdiff1d(np.arange(n), np.concatenate([validation, test])), validation, test)


def fits(adata: AnnData, codes: NDArray[np.int64], split: Split, others: AnnData) -> tuple[LinearFit, LinearFit]:
    """Without and with the others."""
    fit = fit_classes(adata, LOGS, codes, split, n_classes=N_CLASSES)
    return fit, fit_unlabelled(fit, adata, others, LOGS, codes, classes=CLASSES)


class TestLearning:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_few_labels_and_many_cells_without_make_a_better_model(self, seed: int) -> None:
        adata, codes = cells(5, seed)
        others, truth = cells(100, seed + 10)
        new, of_new = cells(200, seed + 20)
        before, after = fits(adata, codes, parts(len(codes)), others)
        right = [(fit.model.predict(new, LOGS).argmax(axis=1) == of_new).mean() for fit in (before, after)]
        assert right[1] > right[0] + 0.03
        report = after.unlabelled
        assert report["used"]
        assert report["n_used"] == report["classes"]["guessed"].sum() < report["n"] == len(truth)
        assert report["classes"]["labelled"].tolist() == [5] * N_CLASSES
        assert report["threshold"] == THRESHOLD
        assert not before.unlabelled

    def test_noise_is_not_learnt_from(self) -> None:
        """Where labelled cells that were left out are predicted worse, the first model stays."""
        rng = np.random.default_rng(2)
        codes = np.repeat(np.arange(N_CLASSES), 60)
        programs = rng.normal(size=(N_CLASSES, 60)) * 0.25
        adata = AnnData(np.clip(2 + programs[codes] + rng.normal(size=(len(codes), 60)), 0, None).astype(np.float32))
        noise = rng.normal(size=(400, 60)) @ rng.normal(size=(60, 60)) / np.sqrt(60)
        others = AnnData(np.clip(2 + noise, 0, None).astype(np.float32))
        before, after = fits(adata, codes, parts(len(codes)), others)
        report = after.unlabelled
        assert report["classes"]["guessed"].sum() > 0
        assert report["gain"] < -2 * report["gain_se"]
        assert not report["used"]
        assert report["n_used"] == 0
        assert after.model == before.model
        np.testing.assert_array_equal(after.predicted, before.predicted)

    def test_without_a_sure_guess_nothing_changes(self) -> None:
        adata, codes = cells(5)
        others = adata.copy()
        others.X = np.tile(adata.X.mean(axis=0), (len(codes), 1))
        before, after = fits(adata, codes, parts(len(codes)), others)
        assert not after.unlabelled["used"]
        assert after.model == before.model


class TestLeaks:
    def test_labels_of_validation_and_test_cells_reach_no_prediction_of_a_cell_that_was_left_out(self) -> None:
        adata, codes = cells(20)
        others, _ = cells(60, 1)
        validation, test = np.arange(0, 80, 8), np.arange(1, 80, 8)  # enough of the others for a temperature
        split = parts(80, validation, test)
        changed = codes.copy()
        changed[validation] = np.roll(codes[validation], 1)
        changed[test] = np.roll(codes[test], 1)
        one, other = (fits(adata, y, split, others)[1] for y in (codes, changed))
        assert one.unlabelled["used"]
        assert other.unlabelled["used"]
        np.testing.assert_array_equal(one.predicted[split.known], other.predicted[split.known])
        assert one.model != other.model  # which is fitted to validation cells: the comparison can tell

    def test_labels_of_test_cells_change_nothing(self) -> None:
        adata, codes = cells(8)
        others, _ = cells(60, 1)
        test = np.arange(1, 32, 8)
        changed = codes.copy()
        changed[test] = np.roll(codes[test], 1)
        one, other = (fits(adata, y, parts(32, test=test), others)[1] for y in (codes, changed))
        assert one.model == other.model
        np.testing.assert_array_equal(one.predicted, other.predicted)


class TestGenes:
    def test_order_and_further_genes_do_not_matter(self) -> None:
        adata, codes = cells(6)
        others, _ = cells(50, 1)
        more = others[:, np.random.default_rng(0).permutation(N_GENES)].copy()
        more = AnnData(np.c_[np.full(more.n_obs, 1.0), more.X].astype(np.float32))
        more.var_names = ["other", *others[:, np.random.default_rng(0).permutation(N_GENES)].var_names]
        one, other = (fits(adata, codes, parts(24), given)[1].model for given in (others, more))
        np.testing.assert_allclose(one.coef, other.coef, atol=1e-4)

    def test_missing_genes_are_at_their_mean(self) -> None:
        adata, codes = cells(6)
        others, _ = cells(50, 1)
        filled = others.copy()
        filled.X[:, 60:] = adata.X[:, 60:].mean(axis=0)
        one, other = (fits(adata, codes, parts(24), given)[1] for given in (others[:, :60].copy(), filled))
        assert one.unlabelled["n_used"] == other.unlabelled["n_used"] > 0
        np.testing.assert_allclose(one.model.coef, other.model.coef, atol=1e-3)

    def test_another_scale_is_brought_to_that_of_the_labelled_cells(self, caplog: pytest.LogCaptureFixture) -> None:
        adata, codes = cells(6)
        others, _ = cells(50, 1)
        larger = others.copy()
        larger.X = np.log1p(np.expm1(others.X) * 100)
        one, other = (fits(adata, codes, parts(24), given)[1] for given in (others, larger))
        assert "Normalise both alike" in caplog.text
        # The factor is found from the sums, which differ a little between samples.
        assert other.unlabelled["n_used"] == pytest.approx(one.unlabelled["n_used"], rel=0.2)
