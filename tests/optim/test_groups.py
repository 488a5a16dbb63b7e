import pytest
import torch
from torch import nn

from scgalore.errors import OptionError
from scgalore.optim import GaLoreAdamW, describe_groups, param_groups, state_bytes


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
    steps = sum(4 for state in optimizer.state.values() if isinstance(state["step"], torch.Tensor))
    table = describe_groups(optimizer.param_groups)
    lines = {line.split(maxsplit=1)[0].rstrip(":"): line.split() for line in table.splitlines()}
    assert lines["Wqkv.weight"][1:7] == ["96", "x", "32", "3", "x", "8"]
    assert lines["mlp.weight"][1:5] == ["64", "x", "32", "8"]
    assert lines["head.weight"][1:5] == ["5", "x", "32", "-"]
    assert lines["galore"][1:5] == ["2", "tensors,", "3,072", "parameters"]
    assert float(lines["total"][-2]) == pytest.approx((state_bytes(optimizer) - steps) / 1e3, abs=0.01)
    n_trainable = sum(param.numel() for param in module.parameters() if param.requires_grad)
    assert float(lines["total"][-4]) == pytest.approx(8 * n_trainable / 1e3, abs=0.01)


def test_table_of_unnamed_parameters() -> None:
    assert "param 0" in describe_groups([{"params": [nn.Parameter(torch.zeros(()))]}])


def test_module_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(OptionError, match="requires_grad"):
        param_groups(nn.Linear(4, 4).requires_grad_(requires_grad=False))


@pytest.mark.parametrize("options", [{"rank": -1}, {"rank": "8"}, {"proj_type": "both"}, {"scale": "large"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))}="):
        param_groups(Toy(), **options)  # type: ignore[arg-type]
