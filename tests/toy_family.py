"""A family of models from outside the package: the mean of gene embeddings, weighted by values."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from scgalore.data.vocab import GeneVocab
from scgalore.model import FAMILIES, CellModel, Family
from scgalore.nn import CellNetwork, Encoded, NetworkConfig


class BagOfGenes(CellNetwork):
    """Embeddings of the expressed genes, summed by value, through one layer."""

    table = "genes"
    body = required = ("genes", "layer")

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.genes = nn.Embedding(config.n_tokens, config.d_model, padding_idx=config.pad_id)
        self.layer = nn.Linear(config.d_model, config.d_model)
        self.put_heads(self.fresh_heads(config.heads))

    def encode(
        self,
        genes: Tensor,
        values: Tensor,
        padding: Tensor | None = None,
        *,
        cell_only: bool = False,
        **conditions: Tensor | None,
    ) -> Encoded:
        embedded = self.gene_table(genes)  # (b, s, d)
        weight = values.clamp(min=0) if padding is None else values.clamp(min=0).masked_fill(padding, 0)
        cell = torch.einsum("bs,bsd->bd", weight, embedded) / weight.sum(dim=1, keepdim=True).clamp(min=1)
        return Encoded(embedded, embedded, torch.tanh(self.layer(cell)))


BAG = Family(
    name="bag",
    title="bag of genes",
    stem="bag",
    embedding="X_bag",
    network=BagOfGenes,
    config=NetworkConfig,
    model=CellModel,
    can=frozenset({"cell heads"}),
)


@pytest.fixture
def bag(monkeypatch: pytest.MonkeyPatch) -> Family:
    """Register the family for a test."""
    monkeypatch.setitem(FAMILIES, BAG.name, BAG)
    return BAG


def bag_of(genes: Iterable[str], *, seed: int = 0) -> CellModel:
    """A model with random weights; its family must be registered."""
    vocab = GeneVocab.from_genes(genes)
    config = NetworkConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=16, dropout=0.0, max_length=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CellModel(BagOfGenes(config), vocab, family=BAG)
