import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from scgalore.perturb.baselines.coexpression import Coexpression


@given(seed=st.integers(0, 1000))
def test_effects_are_slopes_of_least_squares_times_the_change(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.poisson(0.7, (40, 6)).astype(np.float32)
    genes, changes = np.array([4, 1]), rng.normal(size=2)
    effects = Coexpression.of(sp.csr_matrix(x)).effects(genes, changes)
    for row, (gene, change) in enumerate(zip(genes, changes, strict=True)):
        if x[:, gene].std() == 0:
            continue
        for target in range(6):
            slope = np.polyfit(x[:, gene].astype(float), x[:, target].astype(float), 1)[0]
            assert effects[row, target] == pytest.approx(slope * change, abs=1e-6)
        assert effects[row, gene] == pytest.approx(change)


def test_a_gene_that_does_not_vary_changes_nothing() -> None:
    x = np.random.default_rng(0).poisson(1.0, (20, 3)).astype(np.float32)
    x[:, 1] = 0
    assert (Coexpression.of(sp.csr_matrix(x)).effects(np.array([1]), np.array([2.0])) == 0).all()
