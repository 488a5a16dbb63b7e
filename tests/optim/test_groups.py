import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from scgalore.errors import OptionError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.optim import GaLoreAdamW, describe_groups, param_groups, state_bytes
from scgalore.optim.projector import PROJ_TYPES, ProjType


class Toy(nn.Module):
    """Every kind of parameter a foundation model has, at width 32."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.value = nn.Linear(1, 32)
        self.attention = nn.MultiheadAttention(32, 4)
        self.Wqkv = nn.Linear(32, 96)
        self.mlp = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)
        self.frozen = nn.Linear(32, 32)
        self.frozen.requires_grad_(requires_grad=False)
        self.tied = self.mlp


def names(module: nn.Module, **options: object) -> dict[str, set[str]]:
    return {group["name"]: set(group["param_names"]) for group in param_groups(module, **options)}  # type: ignore[arg-type]


def test_each_kind_of_parameter_lands_in_its_group() -> None:
    assert names(Toy()) == {
        "galore": {"attention.out_proj.weight", "mlp.weight"},
        "galore-qkv": {"attention.in_proj_weight", "Wqkv.weight"},
        "adamw": {"value.weight", "head.weight"},
        "adamw-no-decay": {
            "embedding.weight",
            "norm.weight",
            "norm.bias",
            *(f"{layer}.bias" for layer in ("value", "attention.out_proj", "Wqkv", "mlp", "head")),
            "attention.in_proj_bias",
        },
    }


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    module = Toy()
    grouped = [id(param) for group in param_groups(module) for param in group["params"]]
    trainable = [id(param) for param in module.parameters() if param.requires_grad]
    assert sorted(grouped) == sorted(trainable)


def test_auto_rank_is_a_quarter_of_the_width() -> None:
    ranks = {group["name"]: group.get("rank") for group in param_groups(Toy())}
    assert ranks == {"galore": 8, "galore-qkv": 8, "adamw": None, "adamw-no-decay": None}


def test_options_reach_the_groups_and_decay_spares_vectors_and_embeddings() -> None:
    groups = param_groups(Toy(), rank=4, update_proj_gap=7, scale=2.0, proj_type="reverse_std", weight_decay=0.1)
    for group in groups[:2]:
        assert (group["rank"], group["update_proj_gap"], group["scale"], group["proj_type"]) == (
            4,
            7,
            2.0,
            "reverse_std",
        )
    assert [group["split"] for group in groups[:2]] == [1, 3]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.1, 0.0]


def test_matrices_at_or_below_the_rank_are_not_projected() -> None:
    assert "galore" not in names(Toy(), rank=32)
    assert names(Toy(), rank=31)["galore"] == {"attention.out_proj.weight", "mlp.weight"}
    assert names(Toy(), rank=4)["galore"] >= {"head.weight"}


def test_rank_none_projects_nothing() -> None:
    groups = param_groups(Toy(), rank=None)
    assert [group["name"] for group in groups] == ["adamw", "adamw-no-decay"]


def test_weight_shared_with_an_embedding_is_left_to_adamw() -> None:
    module = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40, bias=False), nn.Linear(16, 16))
    module[1].weight = module[0].weight
    assert names(module, rank=4)["galore"] == {"2.weight"}


# ---- overrides -------------------------------------------------------------------------------------------------------


def with_overrides(overrides: Any, **options: Any) -> dict[str, dict[str, Any]]:
    return {group["name"]: group for group in param_groups(Toy(), overrides=overrides, **options)}


def test_override_gives_its_options_to_what_it_matches_and_leaves_the_rest() -> None:
    own = {"rank": 4, "scale": 2.0, "proj_type": "left", "update_proj_gap": 5, "weight_decay": 0.3}
    groups = with_overrides({"*.out_proj.weight": own}, weight_decay=0.1)
    changed = groups.pop("galore (*.out_proj.weight)")
    assert changed["param_names"] == ["attention.out_proj.weight"]
    assert {key: changed[key] for key in own} == own
    rest = {group["name"]: group for group in param_groups(Toy(), weight_decay=0.1)}
    assert groups.keys() == rest.keys()
    assert groups["galore"]["param_names"] == ["mlp.weight"]
    for name, group in groups.items():
        options = {key for key in group if not key.startswith("param")}
        assert {key: group[key] for key in options} == {key: rest[name][key] for key in options}


def test_override_of_one_option_keeps_the_others() -> None:
    groups = with_overrides({"mlp.*": {"scale": 3.0}}, rank=6, update_proj_gap=9)
    changed = groups["galore (mlp.*)"]
    assert (changed["rank"], changed["update_proj_gap"], changed["scale"]) == (6, 9, 3.0)
    assert "mlp.bias" in groups["adamw-no-decay"]["param_names"]


@pytest.mark.parametrize("leave", [None, {"rank": None}])
def test_override_leaves_matrices_to_adamw(leave: Any) -> None:
    groups = with_overrides({"attention.*": leave})
    assert groups["galore"]["param_names"] == ["mlp.weight"]
    assert groups["galore-qkv"]["param_names"] == ["Wqkv.weight"]
    assert {"attention.in_proj_weight", "attention.out_proj.weight"} < set(groups["adamw"]["param_names"])
    assert "rank" not in groups["adamw"]


def test_override_projects_an_embedding_without_decay_unless_it_sets_one() -> None:
    name = "embedding.weight"
    group = with_overrides({name: {"rank": 8}}, weight_decay=0.1)[f"galore-no-decay ({name})"]
    assert (group["param_names"], group["rank"], group["weight_decay"], group["split"]) == ([name], 8, 0.0, 1)
    decayed = with_overrides({name: {"rank": 8, "weight_decay": 0.2}}, weight_decay=0.1)[f"galore ({name})"]
    assert decayed["weight_decay"] == 0.2


def test_packed_weights_stay_split_under_an_override() -> None:
    groups = with_overrides({"*qkv.weight": {"rank": 5}})
    assert (groups["galore-qkv (*qkv.weight)"]["split"], groups["galore-qkv (*qkv.weight)"]["rank"]) == (3, 5)


def test_first_pattern_that_matches_wins() -> None:
    groups = with_overrides({"mlp.weight": {"rank": 2}, "*.weight": {"rank": 5}})
    assert groups["galore (mlp.weight)"]["param_names"] == ["mlp.weight"]
    assert {"attention.out_proj.weight"} <= set(groups["galore (*.weight)"]["param_names"])
    assert groups["galore-no-decay (*.weight)"]["param_names"] == ["embedding.weight"]


def test_override_finds_a_shared_weight_by_either_name() -> None:
    for name in ("mlp.weight", "tied.weight"):
        assert with_overrides({name: {"rank": 2}})[f"galore ({name})"]["param_names"] == ["mlp.weight"]


def test_decay_of_vectors_can_be_set() -> None:
    groups = with_overrides({"norm.*": {"weight_decay": 0.5}})
    assert groups["adamw (norm.*)"]["param_names"] == ["norm.weight", "norm.bias"]
    assert groups["adamw (norm.*)"]["weight_decay"] == 0.5


def test_rank_above_both_sides_is_adamw() -> None:
    assert "mlp.weight" in with_overrides({"mlp.weight": {"rank": 32}})["adamw"]["param_names"]


def test_numbers_of_numpy_in_an_override_become_plain() -> None:
    group = with_overrides({"mlp.weight": {"rank": np.int64(4), "scale": np.float32(2)}})["galore (mlp.weight)"]
    assert (type(group["rank"]), type(group["scale"])) == (int, float)


@given(st.lists(st.sampled_from(["*", "*.weight", "mlp.*", "*.bias", "emb*", "head.weight", "*qkv*"]), unique=True))
def test_overrides_neither_lose_nor_repeat_a_parameter(patterns: list[str]) -> None:
    module = Toy()
    options = ({"rank": 3}, None, {"weight_decay": 0.2}, {"rank": 40, "weight_decay": 0.1})
    overrides = dict(zip(patterns, (options * 2)[: len(patterns)], strict=True))
    try:
        groups = param_groups(module, overrides=overrides, weight_decay=0.1)
    except OptionError:
        return
    grouped = [id(param) for group in groups for param in group["params"]]
    assert sorted(grouped) == sorted(id(param) for param in module.parameters() if param.requires_grad)
    assert len({group["name"] for group in groups}) == len(groups)
    by_id = {id(param): name for name, param in module.named_parameters()}
    assert [by_id[i] for i in grouped] == [name for group in groups for name in group["param_names"]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"mpl.weight": {"rank": 4}}, "matches no parameter of Toy; the closest is 'mlp.weight'"),
        ({"*.out_porj.weight": None}, "the closest is 'attention.out_proj.weight'"),
        ({"mlp.*": None, "mlp.weight": {"rank": 4}}, r"'mlp.weight'\] comes after patterns that match all"),
        ({"frozen.*": {"rank": 4}}, "matches only frozen parameters, such as 'frozen.weight'"),
        ({"mlp.weight": {"ranks": 4}}, "no option 'ranks'; .* Did you mean 'rank'"),
        ({"mlp.weight": {"split": 2}}, "no option 'split'"),
        ({"mlp.weight": {"rank": 0}}, r"\['mlp.weight'\]: rank=0"),
        ({"mlp.weight": {"scale": "large"}}, r"\['mlp.weight'\]: scale='large'"),
        ({"mlp.weight": {"weight_decay": -1}}, r"\['mlp.weight'\]: weight_decay=-1"),
        ({"mlp.weight": 64}, r"\['mlp.weight'\] is 64; expected options"),
        ({"mlp.weight": {}}, "expected options"),
        ({"embedding.weight": {"scale": 2.0}}, "sets scale, but nothing it matches is projected"),
        ({"*.bias": {"rank": 4}}, "sets rank, but nothing it matches is projected"),
    ],
)
def test_override_without_sense_or_effect_is_refused(overrides: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        param_groups(Toy(), overrides=overrides)


def test_option_of_a_projection_is_refused_where_nothing_is_projected() -> None:
    with pytest.raises(OptionError, match="give a rank"):
        param_groups(Toy(), rank=None, overrides={"mlp.weight": {"scale": 2.0}})


# ---- table -----------------------------------------------------------------------------------------------------------


def test_any_torch_optimizer_takes_the_groups() -> None:
    module = nn.Linear(16, 16)
    optimizer = torch.optim.AdamW(param_groups(module, weight_decay=0.1), lr=1e-3)
    module(torch.randn(2, 16)).sum().backward()
    optimizer.step()


def test_table_states_the_bytes_an_optimizer_then_keeps() -> None:
    module = Toy()
    optimizer = GaLoreAdamW(param_groups(module))
    for param in module.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    table = describe_groups(optimizer.param_groups)
    lines = {line.split(maxsplit=1)[0].rstrip(":"): line.split() for line in table.splitlines()}
    assert lines["Wqkv.weight"][1:7] == ["96", "x", "32", "3", "x", "8"]
    assert lines["mlp.weight"][1:5] == ["64", "x", "32", "8"]
    assert lines["head.weight"][1:5] == ["5", "x", "32", "-"]
    assert lines["galore"][1:5] == ["2", "tensors,", "3,072", "parameters"]
    assert float(lines["total"][-2]) == pytest.approx(state_bytes(optimizer) / 1e3, abs=0.006)
    adamw = torch.optim.AdamW(param_groups(module, rank=None))
    adamw.step()
    assert float(lines["total"][-4]) == pytest.approx(state_bytes(adamw) / 1e3, abs=0.006)


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_table_is_true_for_every_projection_and_with_overrides(proj_type: ProjType, dtype: torch.dtype) -> None:
    module = Toy().to(dtype)
    overrides: Any = {
        "embedding.weight": {"rank": 3, "proj_type": proj_type},
        "mlp.weight": {"rank": 12},
        "head.*": None,
    }
    optimizer = GaLoreAdamW(param_groups(module, rank=6, proj_type=proj_type, overrides=overrides))
    for param in module.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()
    total = describe_groups(optimizer.param_groups).splitlines()[-1].split()
    assert total[1] == str(sum(param.requires_grad for param in module.parameters()))
    assert float(total[-2]) == pytest.approx(state_bytes(optimizer) / 1e3, abs=0.006)


def test_table_of_unnamed_parameters() -> None:
    assert "param 0" in describe_groups([{"params": [nn.Parameter(torch.zeros(()))]}])


def test_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(OptionError, match="requires_grad"):
        param_groups(nn.Linear(4, 4).requires_grad_(requires_grad=False))


@pytest.mark.parametrize("options", [{"rank": -1}, {"rank": "8"}, {"proj_type": "both"}, {"scale": "large"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        param_groups(Toy(), **options)  # type: ignore[arg-type]


HEADS = {"*decoder*": None, "value_encoder.*": None}
TABLE = "encoder.embedding.weight"


@pytest.mark.parametrize(
    ("rank", "overrides", "share"),
    [
        pytest.param(8, HEADS, 0.10, id="8_of_the_blocks"),
        pytest.param(128, HEADS, 0.23, id="128_of_the_blocks"),
        pytest.param(8, {TABLE: {"rank": 8}}, 0.03, id="8_of_heads_and_rows_too"),
        pytest.param(128, {TABLE: {"rank": 128}}, 0.18, id="128_of_heads_and_rows_too"),
    ],
)
def test_state_of_the_whole_human_network_with_5000_genes(rank: int, overrides: Any, share: float) -> None:
    def network(n_tokens: int) -> SCGPTNetwork:
        with torch.device("meta"):
            return SCGPTNetwork(SCGPTConfig(n_tokens=n_tokens, pad_id=0, mvc=True, heads={"classes": 1}))

    def state(groups: Any) -> float:
        """Bytes, from the formulas of the table; that an optimizer keeps just these, is tested above."""
        total = describe_groups(groups).splitlines()[-1]
        return float(re.findall(r"([\d.]+) MB", total)[-1])

    whole = state(param_groups(network(60_697), rank=None))
    assert whole == pytest.approx(415, abs=1)
    assert state(param_groups(network(5_003), rank=rank, overrides=overrides)) < share * whole


def test_heads_with_few_classes_get_adamw_at_any_rank_but_their_own() -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10))
    heads = [
        {name for group in groups if "rank" in group for name in group["param_names"]}
        for groups in (
            param_groups(network, rank=1),
            param_groups(network, rank=1, least_side="auto"),
            param_groups(network, rank=1, least_side=9),
            param_groups(network, rank=1, least_side=10, overrides={"1.weight": {"rank": 2}}),
        )
    ]
    assert heads == [{"0.weight", "1.weight"}, {"0.weight"}, {"0.weight", "1.weight"}, {"0.weight", "1.weight"}]


@pytest.mark.parametrize("value", [-1, 1.5, None, True])
def test_least_side_is_a_whole_number(value: Any) -> None:
    with pytest.raises(OptionError, match="least_side=.*a whole number >= 0"):
        param_groups(nn.Linear(8, 8), least_side=value)
