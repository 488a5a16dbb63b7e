"""The loss of a number for each cell."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scgalore.data.tokenizer import Tokenizer
from scgalore.data.tokens import TokenBatch, TokenizerConfig
from scgalore.errors import OptionError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import Regression


@pytest.fixture
def network() -> SCGPTNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SCGPTConfig(n_tokens=12, pad_id=11, d_model=8, n_heads=2, d_hid=8, n_layers=1, heads={"regression": 1})
        return SCGPTNetwork(config).eval()


@pytest.fixture
def batch() -> TokenBatch:
    x = np.random.default_rng(0).poisson(2, (7, 10)).astype(np.float32)
    tokens = Tokenizer(np.arange(10), cls_id=10, pad_id=11, config=TokenizerConfig())
    made = tokens.pad(tokens.encode(sp.csr_matrix(x), np.arange(len(x))))
    return made.with_targets(values=torch.linspace(-1, 1, len(made)))


def predictions(network: SCGPTNetwork, batch: TokenBatch) -> torch.Tensor:
    cell = network.encode(batch.genes, batch.values, batch.padding_if_any, cell_only=True).cell
    return network.read_head("regression", cell)[:, 0]


def test_loss_is_the_mean_of_squared_errors_and_the_absolute_one_stands_beside_it(
    network: SCGPTNetwork, batch: TokenBatch
) -> None:
    loss = Regression()(network, batch)
    error = predictions(network, batch) - batch.targets["values"]
    torch.testing.assert_close(loss.total, error.square().mean())
    torch.testing.assert_close(loss.parts["absolute_error"], error.abs().mean())
    assert loss.n == 7


def test_example_is_what_the_loss_reads(network: SCGPTNetwork, batch: TokenBatch) -> None:
    blank = Regression().example(batch)
    torch.testing.assert_close(Regression()(network, blank).total, predictions(network, batch).square().mean())


def test_curvature_of_sampled_values_is_that_of_the_squared_error(network: SCGPTNetwork, batch: TokenBatch) -> None:
    bias = list(network.cell_heads["regression"].parameters())[-1]
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(300):
        loss, n = Regression().self_sampled(network, batch, generator)
        assert n == len(batch)
        draws.append(n * torch.autograd.grad(loss, bias)[0].square().sum())
    estimates = torch.stack(draws)
    assert abs(estimates.mean() - 2.0) < 5 * estimates.std() / len(draws) ** 0.5


def test_a_network_without_the_head_is_refused(batch: TokenBatch) -> None:
    network = SCGPTNetwork(SCGPTConfig(n_tokens=12, pad_id=11, d_model=8, n_heads=2, d_hid=8, n_layers=1))
    with pytest.raises(OptionError, match="no head 'regression'"):
        Regression()(network, batch)
