"""Networks that know sequencing batches: what is new starts without effect, and what is there stays."""

import numpy as np
import pytest
import torch

from scgalore.errors import OptionError
from scgalore.nn import CellEncoder, SCGPTConfig, SCGPTNetwork

PARTS = {"batch_norm": False, "adversary": True, "from_cell": True, "zeros": False}


def network_of(**config):
    torch.manual_seed(0)
    sizes = {"n_tokens": 30, "pad_id": 28, "d_model": 8, "n_heads": 2, "d_hid": 16, "n_layers": 2, "dropout": 0.0}
    return SCGPTNetwork(SCGPTConfig(**{**sizes, **config})).eval()


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    genes = torch.randint(0, 28, (6, 9), generator=generator)
    values = torch.randint(0, 50, (6, 9), generator=generator).float()
    return genes, values, torch.arange(6) % 2


def test_predictions_are_the_old_ones_before_training(tokens):
    genes, values, batches = tokens
    old = network_of()
    new = old.integration_variant(2, **PARTS, seed=0)
    encoded, before = new.encode(genes, values, batches=batches), old.encode(genes, values)
    torch.testing.assert_close(encoded.cell, before.cell)
    predicted = new.expressions(encoded, values, batches=batches)
    for way, (expression, _) in old.expressions(before, values).items():
        torch.testing.assert_close(predicted[way][0], expression)


def test_a_network_without_the_head_gets_it():
    variant = network_of(mvc=False).integration_variant(2, **{**PARTS, "zeros": True}, seed=0)
    assert variant.mvc_decoder is not None
    assert variant.decoder.zero_logit is not None


def test_further_batches_are_numbered_on_and_known_ones_stay(tokens):
    genes, values, batches = tokens
    first = network_of().integration_variant(2, **{**PARTS, "batch_norm": True}, seed=0)
    for bn in first.dsbn.bns:
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
    torch.nn.init.normal_(first.decoder.fc[0].weight)
    more = first.integration_variant(4, 2, **{**PARTS, "batch_norm": True}, seed=1)
    a, b = (n.encode(genes, values, batches=batches) for n in (first, more))
    torch.testing.assert_close(a.cell, b.cell)
    torch.testing.assert_close(
        first.expression(a, values, batches=batches)[0], more.expression(b, values, batches=batches)[0]
    )
    torch.testing.assert_close(first.discriminate(a), more.discriminate(b)[:, :2])
    mean = torch.stack([bn.running_mean for bn in first.dsbn.bns]).mean(dim=0)
    torch.testing.assert_close(more.dsbn.bns[3].running_mean, mean)


def test_batches_that_are_not_kept_start_anew():
    first = network_of().integration_variant(3, **{**PARTS, "batch_norm": True}, seed=0)
    first.dsbn.bns[0].running_mean.fill_(3)
    anew = first.integration_variant(2, **{**PARTS, "batch_norm": True}, seed=1)
    assert not anew.dsbn.bns[0].running_mean.any()
    assert not torch.equal(anew.batch_encoder.embedding.weight, first.batch_encoder.embedding.weight[:2])


def test_mixed_batches_are_embedded_as_homogeneous_ones(tokens):
    genes, values, batches = tokens
    network = network_of().integration_variant(2, **{**PARTS, "batch_norm": True}, seed=0)
    for number, bn in enumerate(network.dsbn.bns):
        bn.running_mean.fill_(number)
        bn.running_var.fill_(1 + number)
    mixed = network.encode(genes, values, batches=batches).cell
    for batch in (0, 1):
        rows = batches == batch
        own = network.encode(genes[rows], values[rows], batches=batches[rows]).cell
        torch.testing.assert_close(mixed[rows], own)
    assert not torch.allclose(mixed, network.encode(genes, values, batches=1 - batches).cell, atol=1e-3)
    packed = CellEncoder(network, torch.arange(30))(genes.ravel(), values.ravel(), [9] * 6, batches=batches)
    torch.testing.assert_close(packed, mixed, rtol=1e-4, atol=1e-5)


def test_a_norm_is_estimated_from_tokens(tokens):
    genes, values, _ = tokens
    network = network_of().integration_variant(2, **{**PARTS, "batch_norm": True}, seed=0)
    parts = [(genes.ravel()[:20], values.ravel()[:20]), (genes.ravel()[20:], values.ravel()[20:])]
    more = network.with_batches(3)
    more.estimate_norm(2, parts)
    x = network.add_values(network.encoder(genes), values).reshape(-1, 8)
    torch.testing.assert_close(more.dsbn.bns[2].running_mean, x.mean(dim=0))
    torch.testing.assert_close(more.dsbn.bns[2].running_var, x.var(dim=0))
    normed = more.normalise(x[None], torch.tensor([2]))[0]
    np.testing.assert_allclose(normed.mean(dim=0).detach(), 0, atol=1e-5)


def test_networks_of_perturbations_are_refused():
    with pytest.raises(OptionError, match="does not support batches"):
        network_of(perturbation=True).integration_variant(2, **PARTS, seed=0)
