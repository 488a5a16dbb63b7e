import numpy as np
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.networks.coexpression import correlations


def chunks(x, size):
    for start in range(0, len(x), size):
        yield start, sp.csr_matrix(x[start : start + size])


@given(st.integers(0, 1000), st.sampled_from([1, 7, 100]))
@settings(max_examples=20)
def test_correlations_are_numpys_in_each_group(seed, size):
    rng = np.random.default_rng(seed)
    x = (rng.gamma(2, size=(40, 6)) * (rng.random((40, 6)) < 0.6)).astype(np.float32)
    groups = rng.integers(-1, 2, 40)
    sources, targets = np.array([0, 3]), np.arange(6)
    found, n_cells = correlations(chunks(x, size), groups, sources, targets, n_groups=2)
    for group in (0, 1):
        here = x[groups == group]
        np.testing.assert_allclose(found[group], np.corrcoef(here.T)[sources], atol=1e-5)
        expressed = (here > 0).sum(axis=0)
        np.testing.assert_array_equal(n_cells[group], np.minimum.outer(expressed[sources], expressed))


def test_constant_genes_have_no_correlation():
    x = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    x[:, 0], x[:, 1] = 0, 0.1
    found, _ = correlations(chunks(x, 8), np.zeros(50, dtype=int), np.arange(3), np.arange(3), n_groups=2)
    assert np.isnan(found[0][:2]).all()
    assert np.isnan(found[0][:, :2]).all()
    assert found[0, 2, 2] == 1
    assert np.isnan(found[1]).all()
