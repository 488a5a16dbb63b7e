import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import fisher_exact

from scgalore.networks.programs import activities, enrichment


def test_enrichment_is_fishers_test_with_the_rate_over_all_pairs():
    rng = np.random.default_rng(0)
    programs = rng.integers(-1, 3, 60)
    sets = {f"set{i}": np.sort(rng.choice(60, size, replace=False)) for i, size in enumerate((5, 12, 30))}
    sets["empty"] = np.array([], dtype=np.int64)
    table = enrichment(programs, 3, sets)
    for row in table.itertuples():
        inside = programs == row.program
        member = np.isin(np.arange(60), sets[row.gene_set])
        counts = [
            [(inside & member).sum(), (inside & ~member).sum()],
            [(~inside & member).sum(), (~inside & ~member).sum()],
        ]
        assert row.p == pytest.approx(fisher_exact(counts, alternative="greater")[1])
        assert (row.n_overlap, row.n_program, row.n_set) == (counts[0][0], inside.sum(), member.sum())
    assert table["p"].is_monotonic_increasing
    assert "empty" not in set(table["gene_set"])
    # Twelve tests: those without a gene in common have p = 1 and count.
    assert table["fdr"].iloc[0] == pytest.approx(min(table["p"] * 12 / np.arange(1, len(table) + 1)))


def test_activities_are_mean_z_scores():
    rng = np.random.default_rng(0)
    x = rng.poisson(1, (30, 6)).astype(np.float32)
    x[:, 5] = 2  # constant
    programs = np.array([0, 1, 0, -1, 1, 1])
    means, deviations = x.mean(axis=0, dtype=float), x.std(axis=0, ddof=1, dtype=float)
    chunks = ((at, sp.csr_matrix(x[at : at + 7])) for at in range(0, 30, 7))
    found = activities(chunks, 30, programs, 2, means, deviations)
    z = np.divide(x - means, deviations, out=np.zeros_like(x), where=deviations > 0)
    np.testing.assert_allclose(found, np.stack([z[:, programs == k].mean(axis=1) for k in (0, 1)], axis=1), atol=1e-5)
