"""Each part of the loss has its weight, and one with a weight of 0 is left out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scgalore.data.sampler import BatchRequest
from scgalore.errors import OptionError
from scgalore.objectives import Integration, MaskedExpression
from scgalore.objectives.losses import elastic_similarity

OFF = {"tokens": 0.0, "cell": 0.0, "similarity": 0.0, "adversary": 0.0}


@pytest.fixture
def network(model):
    how = {"batch_norm": False, "adversary": True, "from_cell": True, "zeros": True}
    return model.network.integration_variant(3, **how, seed=0)


@pytest.fixture
def batch(few, model):
    codes = np.arange(few.n_obs) % 3
    cells = model.cells(few).with_conditions(batches=codes).with_targets(labels=codes % 2)
    return cells.batch(BatchRequest(np.arange(12)))


def loss_of(network, batch, **weights):
    objective = Integration(**{**OFF, **weights})
    return objective(network, objective.corrupt(batch, seed=0, draw=0))


def test_total_is_the_weighted_sum(network, batch):
    weights = {"tokens": 0.5, "cell": 2.0, "zeros": 3.0, "similarity": 4.0, "adversary": 5.0, "classes": 6.0}
    loss = loss_of(network, batch, **weights, n_classes=0)
    parts = {name: float(part) for name, part in loss.parts.items()}
    masked = 0.5 * parts["mse"] + 2 * parts["mse_from_cell"] + 3 * (parts["zeros"] + parts["zeros_from_cell"])
    assert parts["reconstruction"] == pytest.approx(masked, rel=1e-5)
    assert float(loss.total) == pytest.approx(masked + 4 * parts["similarity"] + 5 * parts["adversary"], rel=1e-5)


def test_parts_are_those_of_the_original(network, batch):
    loss = loss_of(network, batch, tokens=1.0, cell=1.0, similarity=1.0, adversary=1.0)
    hidden = Integration().corrupt(batch, seed=0, draw=0)
    masked = MaskedExpression()(network, hidden)
    assert float(loss.parts["mse"]) == pytest.approx(float(masked.parts["mse"]))
    assert float(loss.parts["mse_from_cell"]) == pytest.approx(float(masked.parts["mse_from_cell"]))
    encoded = network.encode(hidden.genes, hidden.values, hidden.padding, batches=hidden.conditions["batches"])
    assert float(loss.parts["similarity"]) == pytest.approx(float(elastic_similarity(encoded.cell, 0.8)), rel=1e-4)
    guessed = F.cross_entropy(network.discriminate(encoded), hidden.conditions["batches"])
    assert float(loss.parts["adversary"]) == pytest.approx(float(guessed), rel=1e-4)


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ({"tokens": 1.0}, {"mse", "reconstruction"}),
        ({"cell": 1.0}, {"mse_from_cell", "reconstruction"}),
        ({"cell": 1.0, "zeros": 1.0}, {"mse_from_cell", "zeros_from_cell", "reconstruction"}),
        ({"similarity": 1.0}, {"similarity", "reconstruction"}),
        ({"adversary": 1.0}, {"adversary", "batch_accuracy", "reconstruction"}),
    ],
)
def test_a_weight_of_zero_leaves_a_part_out(network, batch, weights, parts):
    assert set(loss_of(network, batch, **weights).parts) == parts


def test_the_adversary_pushes_the_embedding_the_other_way(network, batch):
    objective = Integration(**{**OFF, "adversary": 1.0})
    objective(network, objective.corrupt(batch, seed=0, draw=0)).total.backward()
    body = network.value_encoder.linear2.weight
    reversed_gradient = body.grad.clone()
    network.zero_grad()
    hidden = objective.corrupt(batch, seed=0, draw=0)
    encoded = network.encode(hidden.genes, hidden.values, hidden.padding, batches=hidden.conditions["batches"])
    F.cross_entropy(network.grad_reverse_discriminator(encoded.cell), hidden.conditions["batches"]).backward()
    torch.testing.assert_close(reversed_gradient, -body.grad, rtol=1e-3, atol=1e-7)


def test_cells_without_a_label_count_nothing(network, batch):
    network.put_heads(network.fresh_heads({"classes": 2}, seed=0))
    some = batch.with_targets(labels=torch.where(torch.arange(12) < 5, batch.targets["labels"], -1))
    hidden = Integration(n_classes=2).corrupt(some, seed=0, draw=0)
    found = loss_of(network, some, tokens=1.0, n_classes=2).parts["classes"]
    encoded = network.encode(hidden.genes, hidden.values, hidden.padding, batches=hidden.conditions["batches"])
    logits = network.read_head("classes", encoded.cell)[:5]
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, some.targets["labels"][:5])), rel=1e-4)
    none = batch.with_targets(labels=torch.full((12,), -1))
    assert float(loss_of(network, none, tokens=1.0, n_classes=2).parts["classes"]) == 0


def test_what_chooses_an_epoch():
    assert Integration().monitor == "validation_reconstruction"
    assert Integration(tokens=0, cell=0).monitor == "validation_loss"
    assert Integration(tokens=0, cell=0, n_classes=2).monitor == "validation_reconstruction"


def test_a_batch_without_batches_is_refused(network, batch, few, model):
    plain = model.cells(few).batch(BatchRequest(np.arange(4)))
    with pytest.raises(ValueError, match='the condition "batches"'):
        loss_of(network, plain, tokens=1.0)
    with pytest.raises(OptionError, match="mask_ratio=1.5"):
        Integration(mask_ratio=1.5)


def test_several_batches_in_a_step_weigh_as_one(batch):
    objective = Integration()
    hidden = objective.corrupt(batch, seed=0, draw=0)
    assert objective.weight(hidden) == int(hidden.targets["masked"].sum())
    assert Integration(tokens=0, cell=0).weight(hidden) == len(batch)
