from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scgalore.data.tokenizer import Tokenizer
from scgalore.data.tokens import TokenizerConfig
from scgalore.errors import OptionError
from scgalore.objectives import MaskedExpression
from scgalore.objectives.losses import masked_mse, negative_log_bernoulli
from scgalore.objectives.masked_expression import smallest

PAD, CLS = 40, 41
BY_POSITION = "ours draws by cell and gene and never masks `<cls>`; compared using scGPT's draws"


def batch_of(x, **options):
    x = np.asarray(x, dtype=np.float32)
    tokens = Tokenizer(np.arange(x.shape[1]), cls_id=CLS, pad_id=PAD, config=TokenizerConfig(**options))
    return tokens.pad(tokens.encode(sp.csr_matrix(x), np.arange(len(x))))


def rows_of(batch, rows):
    picked = {name: value[rows] for name, value in vars(batch).items() if torch.is_tensor(value)}
    return replace(batch, **picked, targets={name: value[rows] for name, value in batch.targets.items()})


def masked_genes(batch):
    """Masked genes of each cell."""
    return [set(genes[masked].tolist()) for genes, masked in zip(batch.genes, batch.targets["masked"], strict=True)]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return batch_of(rng.poisson(rng.choice([0.1, 1, 3], (60, 1)), (60, PAD)))


# The original program ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["nonzero", "nonzero_sampled", "zeros", "nocls"])
def test_masks_of_the_original(original, agree, case):
    z = original.arrays("tokenizer")
    values = z[f"{case}/values"]
    eligible = values != -2
    n = (eligible.sum(axis=1) * 0.4).astype(np.int64)
    order, draws = np.ones(values.shape), np.random.RandomState(8)
    for row in range(len(values)):
        order[row, draws.choice(np.flatnonzero(eligible[row]), n[row], replace=False)] = 0
    masked = np.where(smallest(order, eligible, n), -1, values)
    agree(f"tokenizer/{case}/masked_seed8", masked, z[f"{case}/masked_seed8"], instead=BY_POSITION)


def test_masks_of_the_original_collator(original, agree):
    z = original.arrays("collator")
    values = torch.from_numpy(z["out_seed31/expr"])
    generator = torch.Generator().manual_seed(31)
    for row in range(5):  # the draws that sampled genes come first
        torch.randperm(len(z[f"in{row}/genes"]) - 1, generator=generator)
    probability = torch.full(values.shape, 0.4)
    probability[:, 0] = 0
    masked = torch.bernoulli(probability, generator=generator).bool()
    ours = smallest(1.0 - masked.numpy(), probability.numpy() > 0, masked.sum(dim=1).numpy())
    instead = (
        "ours masks a fixed fraction of a cell's genes, scGPT's collator each gene at random; compared using its draws"
    )
    agree("collator/out_seed31/masked_expr", np.where(ours, -1, values), z["out_seed31/masked_expr"], instead=instead)


def test_masked_values_of_the_original(original, agree):
    batch, theirs = original.batch(), original.arrays("batch")
    agree("batch/src_key_padding_mask", batch.genes == 200, theirs["src_key_padding_mask"])
    chosen = smallest(
        1.0 - batch.targets["masked"].numpy(), ~batch.padding.numpy(), batch.targets["masked"].sum(dim=1).numpy()
    )
    values = np.where(chosen, MaskedExpression().mask_value, batch.targets["expression"])
    agree("batch/values", values, theirs["values"], instead=BY_POSITION)


# Masks ------------------------------------------------------------------------------------------------------------


def test_a_share_of_the_genes_is_hidden(batch):
    for ratio in (0.1, 0.4, 0.75):
        corrupted = MaskedExpression(mask_ratio=ratio, mask_value=-7).corrupt(batch, seed=0, draw=0)
        n_genes = (~batch.padding).sum(dim=1) - 1
        assert corrupted.targets["masked"].sum(dim=1).tolist() == [int(n * ratio) for n in n_genes.tolist()]
        assert not corrupted.targets["masked"][:, 0].any()
        assert not (corrupted.targets["masked"] & batch.padding).any()
        assert (corrupted.values[corrupted.targets["masked"]] == -7).all()
        assert torch.equal(corrupted.values[~corrupted.targets["masked"]], batch.values[~corrupted.targets["masked"]])
        assert torch.equal(corrupted.targets["expression"], batch.values)
        assert torch.equal(corrupted.genes, batch.genes)


@given(st.randoms(use_true_random=False), st.integers(0, 99), st.sampled_from([0.4, (0.25, 0.5, 0.75)]))
@settings(deadline=None)
def test_a_mask_belongs_to_the_cell(random, seed, ratio):
    rng = np.random.default_rng(0)
    batch = batch_of(rng.poisson(1.0, (12, PAD)))
    objective = MaskedExpression(mask_ratio=ratio)
    expected = masked_genes(objective.corrupt(batch, seed=seed, draw=3))
    rows = random.sample(range(12), random.randint(1, 12))
    order = [0, *random.sample(range(1, batch.genes.shape[1]), batch.genes.shape[1] - 1)]
    part = rows_of(batch, rows)
    part = replace(part, genes=part.genes[:, order], values=part.values[:, order], padding=part.padding[:, order])
    assert masked_genes(objective.corrupt(part, seed=seed, draw=3)) == [expected[row] for row in rows]


def test_draws_seeds_and_cells_differ(batch):
    objective = MaskedExpression()
    masks = [objective.corrupt(batch, seed=seed, draw=draw) for seed, draw in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert torch.equal(masks[0].targets["masked"], masks[1].targets["masked"])
    assert not torch.equal(masks[0].targets["masked"], masks[2].targets["masked"])
    assert not torch.equal(masks[0].targets["masked"], masks[3].targets["masked"])
    same_genes = batch_of(np.arange(1, 41) * np.ones((2, 1)) + [[0], [1]])
    first, second = masked_genes(objective.corrupt(same_genes, seed=0, draw=0))
    assert first != second


def test_each_gene_is_masked_equally_often():
    x = np.arange(1, 41) + np.zeros((1, 1))
    batch = batch_of(x)
    counts = np.zeros(PAD)
    for draw in range(500):
        counts[list(masked_genes(MaskedExpression().corrupt(batch, seed=0, draw=draw))[0])] += 1
    # Probability 0.4, 500 draws: mean 200, standard deviation 11.
    assert counts.sum() == 500 * 16
    assert abs(counts - 200).max() < 50


def test_each_cell_draws_one_of_several_ratios():
    rng = np.random.default_rng(0)
    batch = batch_of(rng.random((300, PAD)) + 1)
    counts = MaskedExpression(mask_ratio=(0.25, 0.5, 0.75)).corrupt(batch, seed=0, draw=0).targets["masked"].sum(dim=1)
    values, n = counts.unique(return_counts=True)
    assert values.tolist() == [10, 20, 30]
    assert n.min() > 60


def test_cells_too_small_to_mask_teach_nothing(original):
    x = np.zeros((2, PAD))
    x[0, 3] = 1
    batch = MaskedExpression().corrupt(batch_of(x), seed=0, draw=0)
    assert not batch.targets["masked"].any()
    network = original.network()
    MaskedExpression()(network, batch).total.backward()
    assert not any(p.grad is not None and p.grad.isnan().any() for p in network.parameters())


def test_smallest_takes_eligible_positions_only():
    order = np.array([[0.1, 0.2, 0.3], [0.9, 0.1, 0.5], [0.1, 0.1, 0.1]])
    eligible = np.array([[False, True, True], [True, True, True], [True, False, True]])
    assert smallest(order, eligible, np.array([1, 2, 5])).tolist() == [
        [False, True, False],
        [False, True, True],
        [True, False, True],
    ]


# The loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_parts(original):
    network, batch = original.network("integration/best_model.pt"), original.batch()
    loss = MaskedExpression()(network, batch)
    encoded = network.encode(batch.genes, batch.values, batch.padding, batches=batch.conditions["batches"])
    tokens, nonzero = network.expression(encoded, batch.values, batches=batch.conditions["batches"])
    cell, nonzero_cell = network.expression_from_cell(encoded, batches=batch.conditions["batches"])
    expected = {
        "mse": masked_mse(tokens, batch.targets["expression"], batch.targets["masked"]),
        "zeros": negative_log_bernoulli(nonzero, batch.targets["expression"], batch.targets["masked"]),
        "mse_from_cell": masked_mse(cell, batch.targets["expression"], batch.targets["masked"]),
        "zeros_from_cell": negative_log_bernoulli(nonzero_cell, batch.targets["expression"], batch.targets["masked"]),
    }
    assert loss.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(loss.parts[name], value.detach())
        assert not loss.parts[name].requires_grad
    torch.testing.assert_close(loss.total, sum(expected.values()))
    assert loss.n == 6


def test_a_network_without_the_second_head(original):
    loss = MaskedExpression()(original.network("model/full_wqkv.pt"), original.batch())
    assert loss.parts.keys() == {"mse", "mse_from_cell"}
    network = original.network()
    network.mvc_decoder = None
    assert MaskedExpression()(network, original.batch()).parts.keys() == {"mse"}


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, (), (0.4, 1.2)])
def test_ratios_that_make_no_sense(ratio):
    with pytest.raises(OptionError, match="strictly between 0 and 1"):
        MaskedExpression(mask_ratio=ratio)


def test_corruption_is_needed(original):
    with pytest.raises(ValueError, match="corrupt"):
        MaskedExpression()(original.network(), replace(original.batch(), targets={}))


def test_loss_at_its_own_values_estimates_the_curvature(original):
    objective, network = MaskedExpression(), original.network().eval()
    batch = objective.corrupt(original.batch(), seed=0, draw=0)
    biases = [network.decoder.fc[-1].bias, network.mvc_decoder.gene2query.bias]
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(300):
        loss, n = objective.self_sampled(network, batch, generator)
        assert n == int(batch.targets["masked"].sum())
        draws.append([n * grad.square().sum() for grad in torch.autograd.grad(loss, biases)])
    estimates = torch.tensor(draws)
    error = estimates.std(dim=0) / len(draws) ** 0.5
    # The output's bias shifts every prediction by one: 2 is the second derivative of its squared error.
    assert abs(estimates[:, 0].mean() - 2.0) < 5 * error[0]
    # The other is only in the second head, and has a Jacobian to be computed.
    encoded = network.encode(batch.genes, batch.values, batch.padding)
    prediction = network.expression_from_cell(encoded)[0][batch.targets["masked"]]
    rows = [torch.autograd.grad(one, biases[1], retain_graph=True)[0] for one in prediction]
    exact = 2 * torch.stack(rows).square().mean(dim=0).sum()
    assert abs(estimates[:, 1].mean() - exact) < 5 * error[1]


def test_own_values_hang_on_the_generator_alone(original):
    objective, network = MaskedExpression(), original.network().eval()
    batch = objective.corrupt(original.batch(), seed=0, draw=0)
    losses = [
        objective.self_sampled(network, batch, torch.Generator().manual_seed(seed))[0].item() for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]
