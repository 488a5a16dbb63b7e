import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.objectives.losses import (
    elastic_similarity,
    masked_mse,
    masked_relative_error,
    negative_log_bernoulli,
)

# The original program ---------------------------------------------------------------------------------------------


def test_losses_of_the_original(original, agree):
    z = {name: torch.from_numpy(array) for name, array in original.arrays("losses").items()}
    agree("losses/masked_mse", masked_mse(z["input"], z["target"], z["mask"]), z["masked_mse"])
    ours = negative_log_bernoulli(z["probs"], z["target"], z["mask"])
    agree("losses/neg_log_bernoulli", ours, z["neg_log_bernoulli"])
    ours = masked_relative_error(z["input"], z["target"], z["mask"])
    agree("losses/masked_relative_error", ours, z["masked_relative_error"])


def test_losses_of_cell_embeddings_of_the_original(original, agree):
    theirs, batch = original.arrays("base"), original.batch()
    cell = original.network().encode(batch.genes, batch.values, batch.padding).cell
    agree("base/loss_ecs", elastic_similarity(cell, 0.8), theirs["loss_ecs"])


# What the losses are ----------------------------------------------------------------------------------------------

MASKED = {"mse": masked_mse, "relative-error": masked_relative_error, "bernoulli": negative_log_bernoulli}


def table(seed):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.rand(4, 5, generator=generator) * 0.9 + 0.05  # also probabilities
    target = torch.randint(0, 4, (4, 5), generator=generator).float()
    return prediction, target, torch.rand(4, 5, generator=generator) < 0.5


@pytest.mark.parametrize("loss", MASKED.values(), ids=MASKED)
@given(st.integers(0, 10_000))
@settings(deadline=None)
def test_only_masked_positions_count(loss, seed):
    prediction, target, mask = table(seed)
    mask[0, 0] = True
    expected = loss(prediction[mask], target[mask], torch.ones(int(mask.sum()), dtype=torch.bool))
    torch.testing.assert_close(loss(prediction, target, mask), expected)
    other = loss(torch.where(mask, prediction, 0.5), torch.where(mask, target, 3.0), mask)
    torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("loss", MASKED.values(), ids=MASKED)
def test_nothing_masked_teaches_nothing(loss):
    prediction, target, mask = table(0)
    prediction.requires_grad_()
    value = loss(prediction, target, torch.zeros_like(mask))
    value.backward()
    assert value == 0
    assert not prediction.grad.any()


def test_errors_by_hand():
    prediction, target = torch.tensor([[1.0, 5.0, 9.0]]), torch.tensor([[2.0, 2.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    assert masked_mse(prediction, target, mask) == pytest.approx((1 + 9) / 2)
    assert masked_relative_error(prediction, target, mask) == pytest.approx((0.5 + 1.5) / 2, rel=1e-5)
    nonzero = torch.tensor([[0.5, 0.25, 0.9]])
    assert negative_log_bernoulli(nonzero, target, mask) == pytest.approx((0.6931472 + 1.3862944) / 2)
    flipped = negative_log_bernoulli(nonzero, torch.tensor([[0.0, 2.0, 0.0]]), mask)
    assert flipped == pytest.approx((0.6931472 + 1.3862944) / 2)


def test_elastic_similarity_by_hand():
    cells = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])  # similar, and opposite: the latter counts as 0
    expected = (2 * (1 - 0.4**2) + 7 * (1 - 0.6**2)) / 9
    assert elastic_similarity(cells, 0.6) == pytest.approx(expected)


def test_elastic_similarity_does_not_see_the_length_of_embeddings():
    cells = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    scaled = cells * torch.tensor([[0.1], [1.0], [2.0], [30.0], [4.0]])
    torch.testing.assert_close(elastic_similarity(scaled, 0.3), elastic_similarity(cells, 0.3))
