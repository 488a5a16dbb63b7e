from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.nn import EMBEDDINGS, SCGPTConfig, SCGPTNetwork
from scgalore.nn.embedding import RowEmbedding, embedding_mode

TOKENS = torch.tensor([19, 3, 7, 18, 7])  # unsorted and repeated, <cls> 18 and <pad> 19 among them


@pytest.fixture
def network() -> SCGPTNetwork:
    torch.manual_seed(0)
    return SCGPTNetwork(SCGPTConfig(n_tokens=20, pad_id=19, d_model=8, n_heads=2, d_hid=8, n_layers=1))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    genes = torch.tensor([[18, 3, 7, 3], [18, 7, 19, 19]])
    return genes, torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 4.0, -2.0, -2.0]]), genes == 19


def outputs(network: SCGPTNetwork, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return network.expression(network.encode(*batch), batch[1])[0]


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


class TestRowEmbedding:
    @pytest.fixture
    def table(self) -> nn.Embedding:
        return nn.Embedding(6, 3, padding_idx=4)

    def test_looks_up_by_the_ids_of_the_table(self, table: nn.Embedding) -> None:
        rows = RowEmbedding(table, torch.tensor([1, 4, 5]))
        ids = torch.tensor([[5, 1], [4, 5]])
        assert torch.equal(rows(ids), table(ids))

    def test_padding_gets_no_gradient(self, table: nn.Embedding) -> None:
        rows = RowEmbedding(table, torch.tensor([1, 4, 5]))
        rows(torch.tensor([4, 5])).sum().backward()
        assert rows.weight.grad is not None
        assert rows.weight.grad[:, 0].tolist() == [0.0, 0.0, 1.0]

    def test_row_before_the_padding_is_no_padding(self, table: nn.Embedding) -> None:
        assert RowEmbedding(table, torch.tensor([0, 1])).padding_idx is None

    @pytest.mark.parametrize("unknown", [0, 3])
    def test_token_that_was_not_announced_is_an_error(self, table: nn.Embedding, unknown: int) -> None:
        with pytest.raises(IndexError):
            RowEmbedding(table, torch.tensor([1, 4, 5]))(torch.tensor([unknown]))

    def test_is_apart_from_the_table(self, table: nn.Embedding) -> None:
        rows = RowEmbedding(table, torch.tensor([1, 4, 5]))
        before = table.weight.detach().clone()
        nn.init.zeros_(rows.weight)
        assert torch.equal(table.weight, before)


class TestRows:
    def test_network_computes_the_same(self, network: SCGPTNetwork, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        network.eval()
        expected = outputs(network, batch)
        with EMBEDDINGS["rows"].applied(network, TOKENS):
            assert network.encoder.embedding.weight.shape == (4, 8)
            assert torch.equal(outputs(network, batch), expected)

    def test_trained_rows_are_merged_and_the_others_are_as_they_were(self, network: SCGPTNetwork) -> None:
        before, table = weights(network), network.encoder.embedding
        with EMBEDDINGS["rows"].applied(network, TOKENS):
            nn.init.constant_(network.encoder.embedding.weight, 5.0)
        assert network.encoder.embedding is table
        changed = (table.weight != before["encoder.embedding.weight"]).any(dim=1)
        assert changed.nonzero().flatten().tolist() == [3, 7, 18, 19]
        assert bool((table.weight[changed] == 5.0).all())
        assert weights(network).keys() == before.keys()

    def test_table_comes_back_when_training_fails(self, network: SCGPTNetwork) -> None:
        table = network.encoder.embedding
        with pytest.raises(KeyError), EMBEDDINGS["rows"].applied(network, TOKENS):
            raise KeyError
        assert network.encoder.embedding is table

    @pytest.mark.parametrize("fused", [False, True])
    def test_training_is_that_of_the_full_table_to_the_last_bit(
        self, network: SCGPTNetwork, batch: tuple[Tensor, Tensor, Tensor], fused: bool
    ) -> None:
        start, trained = weights(network), []
        for mode in ("rows", "full"):
            network.load_state_dict(start)
            with EMBEDDINGS[mode].applied(network, TOKENS):
                torch.manual_seed(1)  # of dropout
                optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.0, fused=fused)
                for _ in range(5):
                    optimizer.zero_grad()
                    outputs(network, batch).square().mean().backward()
                    optimizer.step()
            trained.append(weights(network))
        assert all(torch.equal(trained[0][name], trained[1][name]) for name in start)
        assert not torch.equal(trained[0]["encoder.embedding.weight"][3], start["encoder.embedding.weight"][3])


class TestFrozen:
    def test_table_gets_no_gradient_while_it_lasts(
        self, network: SCGPTNetwork, batch: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        with EMBEDDINGS["frozen"].applied(network, TOKENS):
            outputs(network, batch).sum().backward()
            assert network.encoder.embedding.weight.grad is None
            assert network.encoder.enc_norm.weight.grad is not None
        assert network.encoder.embedding.weight.requires_grad

    def test_users_own_freezing_stays(self, network: SCGPTNetwork) -> None:
        network.encoder.embedding.weight.requires_grad_(False)
        for mode in EMBEDDINGS.values():
            with mode.applied(network, TOKENS):
                assert not network.encoder.embedding.weight.requires_grad
            assert not network.encoder.embedding.weight.requires_grad


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(OptionError, match="choose one of 'rows', 'full', 'frozen'"):
        embedding_mode("row")


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield
