"""The loss of RNA and proteins together."""

from operator import itemgetter
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgalore.data.tokenizer import Tokenizer
from scgalore.data.tokens import PROTEIN, TokenBatch, TokenizerConfig
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import MaskedExpression, Multiomic
from scgalore.objectives.multiomic import from_rna

N_GENES, N_PROTEINS = 8, 4
OBJECTIVE = Multiomic(N_PROTEINS, MaskedExpression(0.5), n_bins=11)


@pytest.fixture
def network() -> SCGPTNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"d_model": 8, "n_heads": 2, "d_hid": 8, "n_layers": 1, "dropout": 0.0}
        config = SCGPTConfig(
            n_tokens=14, pad_id=9, heads={"proteins": N_PROTEINS, "joint": N_PROTEINS}, n_modalities=5, **sizes
        )
        return SCGPTNetwork(config).eval()


@pytest.fixture
def batch() -> TokenBatch:
    x = np.random.default_rng(0).poisson(2, (6, N_GENES + N_PROTEINS)).astype(np.float32)
    ids = [*range(N_GENES), *range(10, 10 + N_PROTEINS)]
    tokens = Tokenizer(ids, cls_id=8, pad_id=9, config=TokenizerConfig(n_bins=11), first_protein=10)
    made = tokens.pad(tokens.encode(sp.csr_matrix(x), np.arange(len(x))))
    proteins = torch.randn(6, N_PROTEINS, generator=torch.Generator().manual_seed(0))
    return made.with_targets(proteins=proteins, prior=proteins / 2)


def test_proteins_are_predicted_from_rna_alone(network: SCGPTNetwork, batch: TokenBatch) -> None:
    corrupted = OBJECTIVE.corrupt(batch, seed=0, draw=0)
    found = from_rna(network, corrupted)
    for row in range(len(batch)):
        rna = (batch.conditions["modalities"][row] != PROTEIN) & ~batch.padding[row]
        alone = network.encode(batch.genes[row][rna][None], batch.values[row][rna][None]).cell
        expected = network.read_head("proteins", alone)[0] + batch.targets["prior"][row]
        torch.testing.assert_close(found[row], expected)


def test_both_modalities_are_hidden_and_scored_apart(network: SCGPTNetwork, batch: TokenBatch) -> None:
    corrupted = OBJECTIVE.corrupt(batch, seed=0, draw=0)
    loss = OBJECTIVE(network, corrupted)
    variance = np.arange(1, 11).var()  # of bins that are equally frequent
    masked, is_protein = corrupted.targets["masked"], corrupted.conditions["modalities"] == PROTEIN
    predictions = OBJECTIVE.masked.predictions(network, corrupted)
    assert set(predictions) == {"", "_from_cell"}
    for way, (prediction, _) in predictions.items():
        error = (prediction - batch.values).square().detach()
        for kind, here in (("rna", masked & ~is_protein), ("protein", masked & is_protein)):
            assert here.any()
            of_cells = [
                error[row][here[row]].mean() if here[row].any() else torch.zeros(()) for row in range(len(batch))
            ]
            torch.testing.assert_close(loss.parts[f"mse_{kind}{way}"], torch.stack(of_cells).mean() / variance)
    torch.testing.assert_close(loss.total, torch.stack(list(loss.parts.values())).sum())
    assert loss.n == len(batch)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 2.0), (3.0, 0.0, 0.0), (3.0, 2.0, 5.0)])
def test_the_total_is_the_weighted_sum(
    network: SCGPTNetwork, batch: TokenBatch, weights: tuple[float, float, float]
) -> None:
    corrupted = OBJECTIVE.corrupt(batch, seed=0, draw=0)
    parts = OBJECTIVE(network, corrupted).parts
    masked = sum(float(part) for name, part in parts.items() if name.startswith("mse_"))
    weighted = Multiomic(N_PROTEINS, OBJECTIVE.masked, 11, *weights)
    of_heads = (masked, float(parts["joint_error"]), float(parts["protein_error"]))
    expected = sum(weight * part for weight, part in zip(weights, of_heads, strict=True))
    assert float(weighted(network, corrupted).total.detach()) == pytest.approx(expected)


def test_the_loss_of_a_batch_is_that_of_its_parts(network: SCGPTNetwork, batch: TokenBatch) -> None:
    corrupted = OBJECTIVE.corrupt(batch, seed=0, draw=0)
    parts = [corrupted._each(itemgetter(rows)) for rows in (slice(2), slice(2, 6))]
    total = sum(OBJECTIVE.weight(part) * OBJECTIVE(network, part).total for part in parts) / OBJECTIVE.weight(corrupted)
    torch.testing.assert_close(total, OBJECTIVE(network, corrupted).total)


def test_all_proteins_are_read_from_what_is_visible_of_both(network: SCGPTNetwork, batch: TokenBatch) -> None:
    corrupted = OBJECTIVE.corrupt(batch, seed=0, draw=0)
    cell = network.encode(corrupted.genes, corrupted.values, corrupted.padding).cell
    expected = (network.read_head("joint", cell) - batch.targets["proteins"]).square().mean()
    torch.testing.assert_close(OBJECTIVE(network, corrupted).parts["joint_error"], expected.detach())


def test_example_is_what_the_loss_reads(network: SCGPTNetwork, batch: TokenBatch) -> None:
    bare = TokenBatch(batch.genes, batch.values, batch.padding, batch.cells, batch.keys)
    assert torch.isfinite(OBJECTIVE(network, OBJECTIVE.example(bare)).total)


def test_curvature_of_sampled_values_is_that_of_the_squared_error(network: SCGPTNetwork, batch: TokenBatch) -> None:
    bias = list(network.cell_heads["proteins"].parameters())[-1]
    generator, draws = torch.Generator().manual_seed(0), []
    corrupted = OBJECTIVE.corrupt(batch, seed=0, draw=0)
    only = Multiomic(N_PROTEINS, OBJECTIVE.masked, 11, 0.0, 0.0, 1.0)
    for _ in range(200):
        loss, _ = only.self_sampled(network, corrupted, generator)
        n = len(batch) * N_PROTEINS
        draws.append(n * torch.autograd.grad(loss, bias)[0].square().sum())
    estimates, expected = (
        torch.stack(draws),
        2 * N_PROTEINS / N_PROTEINS,
    )  # twice the share of each output, over the outputs
    assert abs(estimates.mean() - expected) < 5 * estimates.std() / len(draws) ** 0.5
