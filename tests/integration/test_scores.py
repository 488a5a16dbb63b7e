import numpy as np
import pytest
from tests.integration.reference import EMBEDDINGS, REFERENCE

from scgalore.integration.scores import BATCH_WEIGHT, BIO_WEIGHT, SCORES, batch_variance, score_embedding

BEFORE = batch_variance(REFERENCE.embeddings["before"], REFERENCE.batches)
BY_CHANCE = {"nmi", "ari"}
MEANS = {score.name for score in SCORES if score.group == "mean"}


def scored(name: str, seed: int = 0) -> dict[str, float]:
    return score_embedding(
        REFERENCE.embeddings[name], REFERENCE.batches, REFERENCE.labels, unintegrated_variance=BEFORE, seed=seed
    )


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_scores_are_those_of_scib_metrics(name: str) -> None:
    found, expected = scored(name), REFERENCE.scores[name]
    exact = {score.name for score in SCORES} - BY_CHANCE - MEANS
    assert exact <= expected.keys()
    assert {key: found[key] for key in exact} == pytest.approx({key: expected[key] for key in exact}, abs=1e-6)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_variance_between_batches_is_that_of_the_regression_on_all_components(name: str) -> None:
    found = batch_variance(REFERENCE.embeddings[name], REFERENCE.batches)
    assert found == pytest.approx(REFERENCE.scores[name]["batch_variance"], abs=1e-12)


def test_means_are_of_their_groups() -> None:
    found = scored("after")
    groups = {group: [found[s.name] for s in SCORES if s.group == group] for group in ("bio", "batch")}
    assert [len(group) for group in groups.values()] == [5, 5]
    assert found["bio"] == pytest.approx(np.mean(groups["bio"]))
    assert found["batch"] == pytest.approx(np.mean(groups["batch"]))
    assert found["total"] == pytest.approx(BIO_WEIGHT * found["bio"] + BATCH_WEIGHT * found["batch"])


def test_less_shift_between_batches_is_better_in_every_score_of_batches() -> None:
    before, after = scored("before"), scored("after")
    assert all(after[score.name] > before[score.name] for score in SCORES if score.group == "batch")


def test_clusters_that_are_the_labels_score_1() -> None:
    labels = np.repeat([0, 1, 2], 40)
    x = 100.0 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(120, 3))
    found = score_embedding(x, np.tile([0, 1], 60), labels, unintegrated_variance=0.5)
    assert [found["nmi"], found["ari"], found["clisi"]] == pytest.approx([1, 1, 1])
    assert found["asw_label"] > 0.98
    assert found["graph_connectivity"] > 0.95  # a cell that is nobody's neighbour is a piece of its own


def test_order_of_cells_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(REFERENCE.labels))
    x = REFERENCE.embeddings["after"][order]
    found = score_embedding(x, REFERENCE.batches[order], REFERENCE.labels[order], unintegrated_variance=BEFORE)
    expected = scored("after")
    assert {key: found[key] for key in expected.keys() - BY_CHANCE - MEANS} == pytest.approx(
        {key: expected[key] for key in expected.keys() - BY_CHANCE - MEANS}
    )


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert scored("before", seed=1) == scored("before", seed=1)


def test_labels_within_batches_leave_undefined_scores_out_of_the_mean() -> None:
    batches = REFERENCE.batches
    labels = batches * 2 + (np.arange(len(batches)) % 2)
    found = score_embedding(REFERENCE.embeddings["before"], batches, labels, unintegrated_variance=BEFORE)
    assert np.isnan([found[name] for name in ("bras", "asw_batch", "kbet")]).all()
    rest = [found[name] for name in ("ilisi", "graph_connectivity", "pcr_comparison")]
    assert found["batch"] == pytest.approx(np.mean(rest))


@pytest.mark.parametrize("n_obs", [4, 10, 91])
def test_few_cells_and_equal_cells_are_scored(n_obs: int) -> None:
    codes = np.arange(n_obs) % 2
    for x in (np.random.default_rng(0).normal(size=(n_obs, 3)), np.ones((n_obs, 3))):
        found = score_embedding(x, codes, (np.arange(n_obs) // 2) % 2, unintegrated_variance=0.0)
        assert np.isnan(found["pcr_comparison"])
        defined = [value for value in found.values() if not np.isnan(value)]
        # A perfect mixture of few cells may go a little beyond the ends of the scale.
        assert len(defined) >= 10
        assert all(-1 <= value <= 1.5 for value in defined)
