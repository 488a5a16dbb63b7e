from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from scgalore.adapters import TARGETS, target_layers
from scgalore.adapters.base import freeze_others, join_packed, split_packed
from scgalore.errors import OptionError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.nn.scgpt import PackedLinear, SplitLinear

ATTENTION = {"self_attn.Wqkv", "self_attn.out_proj"}
MLP = {"linear1", "linear2"}


def make_network(**parts: Any) -> SCGPTNetwork:
    torch.manual_seed(0)
    config = {"d_model": 8, "n_heads": 2, "d_hid": 12, "n_layers": 2, "heads": {"classes": 3}, **parts}
    return SCGPTNetwork(SCGPTConfig(n_tokens=20, pad_id=17, **config))


class OwnBlock(nn.Module):
    """A block of somebody else's network."""

    def __init__(self, *, bias: bool = True, d_out: int = 24) -> None:
        super().__init__()
        self.Wqkv = nn.Linear(8, d_out, bias=bias)
        self.out_proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.Wqkv(x)[..., :8])


class OwnNetwork(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.layers = nn.ModuleList([OwnBlock(**options)])
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers[0](self.table(x)))


class TestTargetLayers:
    @pytest.mark.parametrize(("targets", "parts"), [("attention", ATTENTION), ("mlp", MLP), ("all", ATTENTION | MLP)])
    def test_words_stand_for_layers_of_the_blocks_alone(self, targets: str, parts: set[str]) -> None:
        found = target_layers(make_network(), targets)
        assert found.keys() == {f"transformer_encoder.layers.{n}.{part}" for n in range(2) for part in parts}

    def test_a_word_takes_what_there_is(self) -> None:
        assert target_layers(OwnNetwork(), "all").keys() == {"layers.0.Wqkv", "layers.0.out_proj"}

    @pytest.mark.parametrize("targets", ["head", ["head"], "h*d"])
    def test_names_and_patterns_match_in_full(self, targets: Any) -> None:
        assert target_layers(OwnNetwork(), targets).keys() == {"head"}

    @pytest.mark.parametrize("targets", ["mlp", ["head", "tail"], ["*.wqkv"], ["table"], ["layers.0"], [""]])
    def test_what_matches_no_linear_layer_is_refused(self, targets: Any) -> None:
        with pytest.raises(OptionError, match=r"no linear layer of OwnNetwork matches .*layers\.0\.Wqkv"):
            target_layers(OwnNetwork(), targets)

    @pytest.mark.parametrize(
        ("targets", "reader"),
        [
            ("all", "MultiheadAttention"),
            ("attention", "MultiheadAttention"),
            ("*self_attn", "MultiheadAttention"),
            ("mlp", "TransformerEncoderLayer"),
        ],
    )
    def test_layers_whose_weights_are_read_past_them_are_refused(self, targets: str, reader: str) -> None:
        encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 2, enable_nested_tensor=False)
        with pytest.raises(OptionError, match=rf"{reader}, which reads raw weights.*silently have no effect"):
            target_layers(encoder, targets)
        network = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(8, 2)})
        assert target_layers(network, ["head"]).keys() == {"head"}

    def test_attention_as_a_whole_module_is_refused(self) -> None:
        with pytest.raises(OptionError, match="MultiheadAttention"):
            target_layers(nn.MultiheadAttention(8, 2), ["out_proj"])

    def test_shared_weights_are_refused(self) -> None:
        network = OwnNetwork()
        network.head.weight = network.table.weight
        with pytest.raises(OptionError, match=r"table\.weight and head\.weight share one tensor"):
            target_layers(network, ["head"])
        network.layers.append(network.layers[0])
        with pytest.raises(OptionError, match=r"layers\.0\.Wqkv\.weight and layers\.1\.Wqkv\.weight"):
            target_layers(network, "attention")


class TestFreezeOthers:
    @staticmethod
    def trainable(module: nn.Module) -> set[str]:
        return {name for name, parameter in module.named_parameters() if parameter.requires_grad}

    def test_heads_and_adapter_alone_train(self) -> None:
        network = make_network(
            n_batches=2, batch_labels=True, batch_norm="shared", adversary=True, zero_probabilities=True
        )
        names = self.trainable(network)
        layer = target_layers(network, ["*layers.0.linear1"])["transformer_encoder.layers.0.linear1"]
        layer.lora = own = nn.Parameter(torch.zeros(2))
        freeze_others(network, [own], "freeze", adapted=[layer.weight])
        heads = {name for name in names if name.partition(".")[0] not in SCGPTNetwork.body}
        assert {name.partition(".")[0] for name in heads} == {
            "batch_encoder",
            "decoder",
            "mvc_decoder",
            "cls_decoder",
            "grad_reverse_discriminator",
        }
        assert self.trainable(network) == heads | {"transformer_encoder.layers.0.linear1.lora"}

    def test_body_of_another_network_is_where_the_adapter_is(self) -> None:
        network = OwnNetwork()
        layer = target_layers(network, ["*.out_proj"])["layers.0.out_proj"]
        layer.lora = own = nn.Parameter(torch.zeros(2))
        freeze_others(network, [own], "freeze", adapted=[layer.weight])
        assert self.trainable(network) == {"table.weight", "head.weight", "head.bias", "layers.0.out_proj.lora"}

    def test_all_but_the_adapted_weight_trains(self) -> None:
        network = make_network()
        names = self.trainable(network)
        layer = target_layers(network, ["*layers.0.linear1"])["transformer_encoder.layers.0.linear1"]
        network.encoder.embedding.weight.requires_grad = False
        freeze_others(network, [], "train", adapted=[layer.weight])
        frozen = {"encoder.embedding.weight", "transformer_encoder.layers.0.linear1.weight"}
        assert self.trainable(network) == names - frozen


class TestSplitAndJoin:
    @given(
        bias=st.booleans(),
        training=st.booleans(),
        frozen=st.booleans(),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    )
    def test_is_undone_bit_for_bit(self, bias: bool, training: bool, frozen: bool, dtype: torch.dtype) -> None:
        network = OwnNetwork(bias=bias).to(dtype).train(training)
        network.layers[0].Wqkv.weight.requires_grad = not frozen
        modules = {name: (type(part), part.training) for name, part in network.named_modules()}
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        generator = torch.get_rng_state()
        split = split_packed(network, "layers.0.Wqkv")
        weights = [split.q.weight, split.k.weight, split.v.weight]
        assert torch.equal(torch.cat(weights), before["layers.0.Wqkv.weight"])  # type: ignore[arg-type]
        assert [weight.requires_grad for weight in weights] == [not frozen] * 3
        assert {part.training for part in split.modules()} == {training}
        assert [("bias" in name) for name in split.state_dict()] == ([False, True] * 3 if bias else [False] * 3)
        joined = join_packed(network, "layers.0.Wqkv")
        after = network.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert {name: (type(part), part.training) for name, part in network.named_modules()} == modules
        assert joined.weight.requires_grad is not frozen
        assert torch.equal(torch.get_rng_state(), generator)

    def test_a_layer_of_ours_stays_one_of_ours(self) -> None:
        network = make_network()
        name = "transformer_encoder.layers.1.self_attn.Wqkv"
        split_packed(network, name)
        assert type(network.get_submodule(name)) is SplitLinear
        join_packed(network, name)
        assert type(network.get_submodule(name)) is PackedLinear

    def test_joined_has_the_values_of_now(self) -> None:
        network = OwnNetwork()
        split = split_packed(network, "layers.0.Wqkv")
        with torch.no_grad():
            split.get_parameter("k.weight").fill_(7.0)
        x = torch.randn(2, 3, 8)
        expected = split(x)
        joined = join_packed(network, "layers.0.Wqkv")
        assert torch.equal(joined.weight[8:16], torch.full((8, 8), 7.0))
        torch.testing.assert_close(joined(x), expected)


def test_words_are_patterns_of_other_networks_too() -> None:
    assert set(TARGETS["all"]) == {*TARGETS["attention"], *TARGETS["mlp"]}
    assert target_layers(OwnNetwork(d_out=16), "attention").keys() == {"layers.0.Wqkv", "layers.0.out_proj"}
