import numpy as np
import pytest
from scipy.stats import ttest_ind
from tests.screens import profiles_of, screen

from scgalore.perturb.scores.reference import centroids, gene_weights, pooled_means


def test_weights_are_squares_of_scaled_t_against_all_other_cells() -> None:
    adata = screen(contexts=("K562", "RPE1"))
    real, train = (profiles_of(adata, part, contexts=True) for part in ("test", "train"))
    weights = gene_weights(real, train)
    x, obs = adata.X.toarray(), adata.obs
    for i, (name, c) in enumerate(zip(real.perturbations, real.contexts, strict=True)):
        here = (obs["cell_line"] == real.context_names[c]).to_numpy()
        own = (obs["perturbation"] == name).to_numpy() & here
        t = np.abs(np.nan_to_num(ttest_ind(x[own], x[here & ~own], equal_var=False).statistic))
        np.testing.assert_allclose(weights[i], ((t - t.min()) / (t.max() - t.min())) ** 2, atol=1e-6)


def test_a_gene_that_no_cell_expresses_has_no_weight() -> None:
    adata = screen()
    x = adata.X.toarray()
    x[:, 7] = 0
    adata.X = x
    assert (gene_weights(profiles_of(adata, "test"), profiles_of(adata, "train"))[:, 7] == 0).all()


def test_a_single_cell_takes_the_variance_of_the_others() -> None:
    adata = screen()
    rows = np.flatnonzero(adata.obs["perturbation"] == "G05")
    adata = adata[np.setdiff1d(np.arange(adata.n_obs), rows[1:])].copy()
    real = profiles_of(adata, "test")
    weights = gene_weights(real, profiles_of(adata, "train"))[real.perturbations.index("G05")]
    x = adata.X.toarray()
    own = (adata.obs["perturbation"] == "G05").to_numpy()
    with np.errstate(invalid="ignore"):  # a gene that no cell expresses
        t = np.nan_to_num(np.abs(x[own][0] - x[~own].mean(axis=0)) / x[~own].std(axis=0, ddof=1))
    # The factor between t and this is the same for all genes.
    np.testing.assert_allclose(weights, ((t - t.min()) / (t.max() - t.min())) ** 2, rtol=1e-5, atol=1e-9)


def test_centroids_count_each_training_perturbation_once() -> None:
    adata = screen()
    train = profiles_of(adata, "train")
    found = centroids(train)
    assert found is not None
    np.testing.assert_allclose(found[0], train.means.mean(axis=0))


def test_a_context_without_training_perturbations_gets_the_mean_effect_of_the_others() -> None:
    adata = screen(contexts=("K562", "RPE1"))
    train = profiles_of(adata, "train", contexts=True)
    seen = train.take(np.flatnonzero(train.contexts == 0))
    found = centroids(seen)
    assert found is not None
    np.testing.assert_allclose(found[1], train.control_means[1] + seen.effects.mean(axis=0))
    assert centroids(seen.take([])) is None


def test_pooled_means_are_over_all_rows() -> None:
    adata = screen()
    test, train = profiles_of(adata, "test"), profiles_of(adata, "train")
    expected = np.concatenate([test.means, train.means]).mean(axis=0)
    np.testing.assert_allclose(pooled_means(test, train)[0], expected)
    assert pooled_means(train)[0] != pytest.approx(expected)
