"""What every network has from its base class."""

import copy
from typing import Any

import pytest
import torch
from tests.toy_family import BagOfGenes
from torch import nn

from scgalore.errors import OptionError
from scgalore.nn import CellNetwork, NetworkConfig, PaddedEncoder, SCGPTConfig, SCGPTNetwork

SIZES: dict[str, Any] = {"n_tokens": 20, "pad_id": 19, "d_model": 8}


def scgpt(**heads: int) -> CellNetwork:
    return SCGPTNetwork(SCGPTConfig(**SIZES, n_heads=2, d_hid=8, n_layers=1, heads=heads))


def bag_of_genes(**heads: int) -> CellNetwork:
    return BagOfGenes(NetworkConfig(**SIZES, heads=heads))


@pytest.mark.parametrize("make", [scgpt, bag_of_genes])
class TestAnyNetwork:
    def test_another_table_takes_the_place_of_the_first(self, make) -> None:
        network = make()
        names, other = list(network.state_dict()), nn.Embedding(20, 8)
        network.gene_table = other
        assert network.gene_table is other
        assert network.get_submodule(network.table) is other
        assert list(network.state_dict()) == names

    def test_heads_are_exactly_those_put_in_place(self, make) -> None:
        network, cell = make(classes=3), torch.randn(4, 8)
        kept = network.cell_heads["classes"]
        network.put_heads({"classes": kept, "age": network.make_head(1)})
        assert network.config.heads == {"classes": 3, "age": 1}
        assert network.cell_heads["classes"] is kept
        assert network.read_head("age", cell).shape == (4, 1)
        network.put_heads({"age": network.cell_heads["age"]})
        assert network.config.heads == {"age": 1}
        with pytest.raises(OptionError, match=r"no head 'classes'; its heads are \['age'\]"):
            network.read_head("classes", cell)

    def test_heads_of_the_configuration_are_built(self, make) -> None:
        first = make(classes=3, age=1)
        again = type(first)(type(first.config).from_dict(first.config.to_dict()))
        again.load_state_dict(first.state_dict())
        assert again.config == first.config

    def test_tensors_of_heads_are_told_from_those_of_the_body(self, make) -> None:
        network = make(classes=3, age=1)
        heads = {name for name in network.state_dict() if network.is_head_tensor(name)}
        assert heads
        assert not any(name.partition(".")[0] in network.body for name in heads)
        assert {name for name in network.state_dict() if "out_layer" in name or name.startswith("heads.")} <= heads

    def test_copies_are_independent(self, make) -> None:
        network = make(classes=2)
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.gene_table.weight.zero_()
        assert network.gene_table.weight.any()


def test_what_a_family_does_not_do_is_refused_by_name() -> None:
    network, tokens = bag_of_genes(), torch.arange(4)[None]
    encoded = network.encode(tokens, torch.ones(1, 4))
    with pytest.raises(OptionError, match="BagOfGenes does not predict expression"):
        network.expressions(encoded, torch.ones(1, 4))
    with pytest.raises(OptionError, match="BagOfGenes does not support perturbation flags"):
        network.perturbation_variant(22, 20, seed=0)
    with pytest.raises(OptionError, match="BagOfGenes does not support several modalities"):
        network.multiomic_variant(network.gene_table.weight, 5, seed=0)
    assert not network.reads_modalities
    assert not network.reads_flags
    assert not network.starts_at_zero
    assert network.blocks == ()
    assert torch.equal(network.gene_embeddings(tokens), encoded.genes)


def test_the_head_of_the_classes_has_the_name_of_released_files_and_others_have_not() -> None:
    heads = {name.rpartition(".out_layer")[0] for name in scgpt(classes=3, age=1).state_dict() if "out_layer" in name}
    assert heads == {"cls_decoder", "heads.age"}


def test_padded_cells_are_embedded_as_they_are_alone() -> None:
    network = scgpt().eval()
    genes, values, lengths = torch.randint(0, 18, (12,)), torch.rand(12) * 9, [5, 4, 3]
    together = PaddedEncoder(network, torch.arange(20))(genes, values, lengths)
    starts = [0, 5, 9]
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        cell = slice(start, start + length)
        alone = network.encode(genes[None, cell], values[None, cell], cell_only=True).cell[0]
        torch.testing.assert_close(together[row], alone)


def test_configuration_of_version_0_5_0_is_read() -> None:
    old = scgpt().config.to_dict()
    del old["heads"]
    assert SCGPTConfig.from_dict({**old, "n_classes": 4}).heads == {"classes": 4}
    assert SCGPTConfig.from_dict({**old, "n_classes": 0}).heads == {}
