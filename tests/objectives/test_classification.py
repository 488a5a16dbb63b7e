from dataclasses import replace

import pytest
import torch

from scgalore.objectives import Classification


def test_cross_entropy_by_hand(original):
    network, batch = original.network(), original.batch()
    logits = network.read_head("classes", network.encode(batch.genes, batch.values, batch.padding).cell)
    picked = logits.log_softmax(dim=1)[torch.arange(6), batch.targets["labels"]]
    loss = Classification(5)(network, batch)
    torch.testing.assert_close(loss.total, -picked.mean())
    assert loss.parts["accuracy"] == pytest.approx(
        (logits.argmax(dim=1) == batch.targets["labels"]).float().mean().item()
    )
    assert loss.n == 6
    assert loss.total.requires_grad
    assert not any(part.requires_grad for part in loss.parts.values())


def test_weights_of_classes(original):
    network, batch = original.network(), original.batch()
    weights = (1.0, 2.0, 0.0, 4.0, 0.5)
    logits = network.read_head("classes", network.encode(batch.genes, batch.values, batch.padding).cell)
    picked = logits.log_softmax(dim=1)[torch.arange(6), batch.targets["labels"]]
    weight = torch.tensor(weights)[batch.targets["labels"]]
    expected = -(picked * weight).sum() / weight.sum()
    torch.testing.assert_close(Classification(5, class_weights=weights)(network, batch).total, expected)
    torch.testing.assert_close(
        Classification(5, class_weights=weights)(network.double(), doubled(batch)).total, expected.double()
    )


def doubled(batch):
    return replace(batch, values=batch.values.double())


def test_label_smoothing(original):
    network, batch = original.network(), original.batch()
    logits = network.read_head("classes", network.encode(batch.genes, batch.values, batch.padding).cell).log_softmax(
        dim=1
    )
    sharp = -logits[torch.arange(6), batch.targets["labels"]].mean()
    expected = 0.9 * sharp - 0.1 * logits.mean()
    torch.testing.assert_close(Classification(5, label_smoothing=0.1)(network, batch).total, expected)


def test_it_can_be_learnt(original):
    network, batch = original.network(), original.batch()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = Classification(5)(network, batch)
        loss.total.backward()
        optimizer.step()
    assert loss.parts["accuracy"] == 1
    assert loss.total < 0.5


def test_batches_stay_as_they_are(original):
    batch = original.batch()
    assert Classification(5).corrupt(batch, seed=0, draw=0) is batch


def test_labels_are_needed(original):
    with pytest.raises(ValueError, match="labels=codes"):
        Classification(5)(original.network(), replace(original.batch(), targets={}))


def test_loss_at_its_own_labels_estimates_the_curvature(original):
    network, batch = original.network().eval(), original.batch()
    bias = network.cls_decoder.out_layer.bias
    probabilities = network.read_head("classes", network.encode(batch.genes, batch.values, batch.padding).cell).softmax(
        dim=1
    )
    exact = (probabilities * (1 - probabilities)).mean(dim=0)  # diagonal of the cross entropy's Hessian in the logits
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(300):
        loss, n = Classification(5).self_sampled(network, batch, generator)
        draws.append(n * torch.autograd.grad(loss, bias)[0].square())
    estimates = torch.stack(draws)
    error = estimates.std(dim=0) / len(draws) ** 0.5
    assert bool(((estimates.mean(dim=0) - exact).abs() < 5 * error).all())
