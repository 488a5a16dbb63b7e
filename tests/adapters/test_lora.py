import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import scgalore
from scgalore.adapters.base import Adapter
from scgalore.adapters.checks import VARIANTS
from scgalore.adapters.lora import attach_lora
from scgalore.errors import OptionError, WeightsError
from scgalore.nn import SCGPTConfig, SCGPTNetwork, attention_scores

BUNDLED = Path(scgalore.__file__).parent / "weights" / "bundled" / "scgpt-mini"
PAD, CLS = 17, 18
RANK = 4
ADAPTED = ("self_attn.Wqkv.q", "self_attn.Wqkv.k", "self_attn.Wqkv.v", "self_attn.out_proj", "linear1", "linear2")

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def make_network(**parts: Any) -> SCGPTNetwork:
    torch.manual_seed(0)
    config = {"d_model": 16, "n_heads": 2, "d_hid": 24, "n_layers": 2, "heads": {"classes": 3}, "dropout": 0.0, **parts}
    network = SCGPTNetwork(SCGPTConfig(n_tokens=20, pad_id=PAD, **config)).eval()
    for name, parameter in network.named_parameters():  # biases start at 0, where a forgotten one would not show
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
    return network


def make_batch(n_cells: int = 6, length: int = 8, n_genes: int = PAD, cls: int = CLS, pad: int = PAD) -> list[Tensor]:
    """Genes, values, padding."""
    generator = torch.Generator().manual_seed(1)
    genes = torch.stack([torch.randperm(n_genes, generator=generator)[:length] for _ in range(n_cells)])
    values = torch.randint(1, 51, genes.shape, generator=generator).float()
    genes[:, 0], values[:, 0] = cls, -2
    padding = (torch.arange(length) >= length - 2) & (torch.arange(n_cells) % 2 == 0)[:, None]
    return [genes.masked_fill(padding, pad), values.masked_fill(padding, -2), padding]


BATCH = make_batch()


@torch.no_grad()
def embed(network: SCGPTNetwork, batch: list[Tensor] = BATCH, *, cell_only: bool = False) -> Tensor:
    return network.encode(*batch, cell_only=cell_only).cell


@torch.no_grad()
def states(network: SCGPTNetwork) -> Tensor:
    return network.encode(*BATCH).hidden


def block(network: SCGPTNetwork) -> Any:
    return network.transformer_encoder.layers[0]


def train(
    network: SCGPTNetwork, *, n_steps: int = 4, batch: list[Tensor] = BATCH, lr: float = 1e-2, mixed: bool = False
) -> list[float]:
    """Classify from the cell embedding alone, as fine-tuning does; leaves the network in training mode."""
    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), lr=lr)
    labels = torch.arange(len(batch[0])) % 3
    losses = []
    for _ in range(n_steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = network.train().read_head("classes", network.encode(*batch, cell_only=True).cell)
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(network: SCGPTNetwork, **options: Any) -> Adapter:
    adapter = attach_lora(network, rank=RANK, **options)
    train(network)
    network.eval()
    return adapter


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_close(ours: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    # Relative to the largest value: processors add up in different orders.
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol * max(1.0, float(expected.abs().max())))


# What is applied --------------------------------------------------------------------------------------------------


@each_variant
def test_a_fresh_adapter_changes_no_output(variant: Any) -> None:
    network = make_network()
    before = states(network)
    attach_lora(network, rank=RANK, variant=variant)
    # PiSSA takes a part out of the weight and adds it again.
    assert_close(states(network), before, atol=2e-6 if variant == "pissa" else 0)


@each_variant
def test_a_trained_adapter_applies_in_every_mode(variant: Any) -> None:
    network = make_network()
    before = embed(network)
    trained(network, variant=variant)
    after = embed(network)
    assert (after - before).abs().max() > 0.05
    assert_close(embed(network, cell_only=True), after)
    network.train()
    assert_close(embed(network), after)
    assert_close(embed(network, cell_only=True), after)


@pytest.mark.parametrize("part", ADAPTED)
@pytest.mark.parametrize("cell_only", [False, True])
def test_the_adapter_of_each_layer_applies(part: str, cell_only: bool) -> None:
    network = make_network()
    before = embed(network, cell_only=cell_only)
    adapter = attach_lora(network, rank=RANK)
    tensors = adapter.tensors()
    name = f"transformer_encoder.layers.1.{part}.lora_B"
    tensors[name] = torch.randn_like(tensors[name])
    adapter.load_tensors(tensors)
    assert (embed(network, cell_only=cell_only) - before).abs().max() > 1e-3


def test_attention_maps_see_the_adapter() -> None:
    network = make_network()
    before = attention_scores(network, *BATCH)
    adapter = trained(network)
    after = attention_scores(network, *BATCH)
    assert (after - before).abs().max() > 0.05
    adapter.detach()
    assert_close(attention_scores(network, *BATCH), after, atol=1e-5)


def test_dropout_of_the_adapter_follows_the_mode_of_the_network() -> None:
    network = make_network()
    adapter = attach_lora(network, rank=RANK, dropout=0.5)  # attached in evaluation mode
    generator = torch.Generator().manual_seed(0)
    adapter.load_tensors(
        {name: torch.randn(tensor.shape, generator=generator) / 4 for name, tensor in adapter.tensors().items()}
    )
    assert torch.equal(embed(network), embed(network))
    network.train()
    assert not torch.equal(embed(network), embed(network))
    network.eval()
    assert torch.equal(embed(network), embed(network))


def test_bundled_weights_learn_through_an_adapter() -> None:
    config = json.loads((BUNDLED / "config.json").read_text(encoding="utf-8"))["network"]
    network = SCGPTNetwork(SCGPTConfig.from_dict({**config, "dropout": 0.0}))
    network.load_state_dict(load_file(BUNDLED / "model.safetensors"))
    network.put_heads(network.fresh_heads({"classes": 3}))
    pad = network.config.pad_id
    batch = make_batch(n_genes=pad, cls=pad + 1, pad=pad)
    before = weights(network)
    cells = embed(network.eval(), batch)
    adapter = attach_lora(network)
    losses = train(network, n_steps=8, batch=batch, lr=3e-3)
    assert losses[-1] < losses[0] / 2
    after = embed(network.eval(), batch)
    assert (after - cells).abs().max() > 0.05
    assert_close(embed(network.train(), batch, cell_only=True), after, atol=5e-6)
    adapter.detach()
    assert_close(embed(network, batch, cell_only=True), after, atol=5e-6)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    heads = {name for name in before if name.startswith("cls_decoder.")}
    layers = {f"transformer_encoder.layers.{n}" for n in range(config["n_layers"])}
    adapted = {"self_attn.Wqkv", "self_attn.out_proj", "linear1", "linear2"}
    assert changed == heads | {f"{layer}.{name}.weight" for layer in layers for name in adapted}


# What trains ------------------------------------------------------------------------------------------------------


@each_variant
def test_every_tensor_of_the_adapter_gets_a_gradient(variant: Any) -> None:
    network = make_network()
    adapter = attach_lora(network, rank=RANK, variant=variant)
    own: dict[str, Any] = {key: x for key, x in adapter.own_tensors().items() if isinstance(x, nn.Parameter)}
    assert {id(tensor) for tensor in own.values()} == {id(parameter) for parameter in adapter.parameters()}
    factors = ["lora_A", "lora_B", *(["magnitude"] if variant == "dora" else [])]
    layers = [f"transformer_encoder.layers.{n}.{part}" for n in range(2) for part in ADAPTED]
    assert set(own) == {f"{layer}.{factor}" for layer in layers for factor in factors}
    largest = dict.fromkeys(own, 0.0)
    for _ in range(2):  # B is zero at the first step, and so is the gradient of A
        train(network, n_steps=1)
        largest = {name: max(largest[name], tensor.grad.abs().max().item()) for name, tensor in own.items()}
    assert min(largest.values()) > 0, largest


@each_variant
def test_frozen_weights_stay_bit_for_bit_and_heads_train(variant: Any) -> None:
    network = make_network()
    attach_lora(network, rank=RANK, variant=variant)
    before = weights(network)
    train(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if ".lora_" not in name} == {name for name in before if name.startswith("cls_")}
    assert {name for name in before if ".lora_" in name} <= changed


def test_the_rest_trains_if_wanted() -> None:
    network = make_network()
    network.encoder.embedding.weight.requires_grad = False  # the user's own choice holds
    attach_lora(network, rank=RANK, others="train")
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    layers = [f"transformer_encoder.layers.{n}.{part}" for n in range(2) for part in ADAPTED]
    assert frozen == {"encoder.embedding.weight"} | {f"{layer}.base_layer.weight" for layer in layers}


@pytest.mark.parametrize(
    ("targets", "parts"),
    [
        ("attention", ADAPTED[:4]),
        ("mlp", ADAPTED[4:]),
        ("all", ADAPTED),
        ("*layers.*.linear2", ADAPTED[5:]),
        (["*.Wqkv", "*layers.*.linear1"], (*ADAPTED[:3], ADAPTED[4])),
    ],
)
def test_targets_choose_the_layers(targets: Any, parts: tuple[str, ...]) -> None:
    network = make_network()
    adapter = attach_lora(network, rank=RANK, targets=targets)
    layers = {f"transformer_encoder.layers.{n}.{part}" for n in range(2) for part in parts}
    assert {name.removesuffix(".lora_A") for name in adapter.tensors() if name.endswith(".lora_A")} == layers
    assert {name.partition(".lora_A")[0] for name in network.state_dict() if ".lora_A" in name} == layers


def test_a_name_that_ends_another_is_not_mistaken_for_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleDict({"linear": nn.Linear(8, 8)})
            self.linear = nn.Linear(8, 8)

    adapter = attach_lora(Twice(), rank=RANK, targets=["linear"])
    assert list(adapter.tensors()) == ["linear.lora_A", "linear.lora_B"]


@each_variant
def test_it_trains_in_mixed_precision(variant: Any) -> None:
    network = make_network()
    adapter = attach_lora(network, rank=RANK, variant=variant)
    losses = train(network, n_steps=16, mixed=True)
    assert losses[-1] < losses[0] / 2
    assert {tensor.dtype for tensor in adapter.tensors().values()} == {torch.float32}


# Merging and detaching --------------------------------------------------------------------------------------------


@each_variant
def test_merged_equals_unmerged(variant: Any) -> None:
    network = make_network()
    adapter = trained(network, variant=variant)
    apart, stored, expected = weights(network), adapter.tensors(), states(network)
    for _ in range(2):
        adapter.merge()
        adapter.merge()
        assert_close(states(network), expected, atol=2e-6)
        assert_close(embed(network, cell_only=True), expected[:, 0], atol=2e-6)
        assert not same(weights(network), apart)
        assert same(adapter.tensors(), stored)
        adapter.unmerge()
        adapter.unmerge()
        assert same(weights(network), apart)


@each_variant
@pytest.mark.parametrize("merged", [False, True])
def test_detached_is_a_plain_network_again(variant: Any, merged: bool) -> None:
    network = make_network()
    network.encoder.embedding.weight.requires_grad = False
    block(network).self_attn.Wqkv.bias.requires_grad = False
    required = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    modules = {name: type(module) for name, module in network.named_modules()}
    attributes, linear1 = set(vars(network)), block(network).linear1
    adapter = trained(network, variant=variant)
    expected = states(network)
    if merged:
        adapter.merge()
    adapter.detach()
    assert_close(states(network), expected, atol=2e-6)
    assert {name: type(module) for name, module in network.named_modules()} == modules
    assert {name: parameter.requires_grad for name, parameter in network.named_parameters()} == required
    assert list(network.state_dict()) == list(make_network().state_dict())
    assert set(vars(network)) == attributes
    assert block(network).linear1 is linear1
    for name, plain in make_network().state_dict().items():
        if not name.startswith(("transformer_encoder.", "cls_decoder.")):
            assert torch.equal(network.state_dict()[name], plain)


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_untrained_and_detached_has_the_same_weights(variant: Any) -> None:
    network = make_network()
    before = weights(network)
    attach_lora(network, rank=RANK, variant=variant).detach()
    after = weights(network)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert_close(after[name], tensor, atol=0 if variant == "lora" else 1e-6)


def test_a_second_adapter_goes_on_once_the_first_is_off() -> None:
    network = make_network()
    first = trained(network)
    expected = states(network)
    with pytest.raises(OptionError, match=r"already has the adapter 'lora'.*detach\(\)"):
        attach_lora(network)
    with pytest.raises(OptionError, match=r"its submodule 'network' already has the adapter 'lora'"):
        attach_lora(nn.ModuleDict({"network": network}))
    first.detach()
    second = attach_lora(network, rank=2, targets="mlp")
    assert_close(states(network), expected, atol=2e-6)
    with pytest.raises(OptionError, match="was detached"):
        first.tensors()
    second.detach()


def test_a_step_while_merged_is_told() -> None:
    adapter = attach_lora(make_network(), rank=RANK)
    adapter.after_step()
    adapter.merge()
    with pytest.raises(OptionError, match=r"unmerge\(\)"):
        adapter.after_step()


# Saving and loading -----------------------------------------------------------------------------------------------


@each_variant
@pytest.mark.parametrize("merged", [False, True])
def test_its_tensors_and_the_base_make_the_trained_network(variant: Any, merged: bool, tmp_path: Path) -> None:
    network = make_network()
    adapter = trained(network, variant=variant)
    expected = embed(network)
    save_file(adapter.tensors(), tmp_path / "adapter.safetensors")
    fresh = make_network()
    other = attach_lora(fresh, rank=RANK, variant=variant, seed=1)
    if merged:
        other.merge()
    other.load_tensors(load_file(tmp_path / "adapter.safetensors"))
    assert_close(embed(fresh), expected)
    assert same(other.tensors(), adapter.tensors())
    other.detach()
    assert_close(embed(fresh, cell_only=True), expected, atol=2e-6)


def test_pissa_does_not_hang_on_the_svd_of_the_machine() -> None:
    network = make_network()
    before = states(network)
    adapter = attach_lora(network, rank=RANK, variant="pissa")
    # As from a machine that took another part out of the weights, and learnt nothing.
    generator = torch.Generator().manual_seed(0)
    foreign = {}
    for name, tensor in adapter.tensors().items():
        if not name.endswith("_initial"):
            foreign[name] = foreign[f"{name}_initial"] = torch.randn(tensor.shape, generator=generator) / 8
    adapter.load_tensors(foreign)
    assert_close(states(network), before, atol=2e-6)


@each_variant
def test_foreign_tensors_are_refused_whole(variant: Any) -> None:
    network = make_network()
    adapter = trained(network, variant=variant)
    before, tensors = weights(network), adapter.tensors()
    name = next(iter(tensors))
    zeros = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
    for wrong, says in [
        ({key: tensor for key, tensor in zeros.items() if key != name}, rf"1 missing \['{name}'\]"),
        ({**zeros, "stranger": torch.zeros(1)}, r"1 unexpected \['stranger'\]"),
        ({**zeros, name: torch.zeros(3, 3)}, rf"{name} has shape \(3, 3\), expected \(4, 16\)"),
    ]:
        with pytest.raises(WeightsError, match=says):
            adapter.load_tensors(wrong)
        assert same(weights(network), before)


@each_variant
def test_a_checkpoint_of_the_network_with_its_adapter_goes_round(variant: Any, tmp_path: Path) -> None:
    network = make_network()
    trained(network, variant=variant)
    torch.save(network.state_dict(), tmp_path / "last.ckpt")
    fresh = make_network()
    adapter = attach_lora(fresh, rank=RANK, variant=variant, seed=5)
    fresh.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=True))
    assert torch.equal(states(fresh), states(network))
    adapter.detach()
    assert_close(states(fresh), states(network), atol=2e-6)


def test_a_deep_copy_has_an_adapter_of_its_own() -> None:
    network = make_network()
    adapter = trained(network)
    copy = deepcopy(network)
    before, expected = weights(network), states(network)
    with pytest.raises(OptionError, match="already"):
        attach_lora(copy)
    train(copy)
    assert same(weights(network), before)
    adapter.detach()
    assert_close(states(network), expected, atol=2e-6)
    assert any("lora_A" in name for name in copy.state_dict())


# 72 matrices of 512 x 512 have 8 (512 + 512) numbers each.
@pytest.mark.parametrize(
    ("options", "n_numbers"),
    [
        ({}, 72 * 8192),
        ({"targets": "attention"}, 48 * 8192),
        ({"variant": "dora"}, 72 * (8192 + 512)),
    ],
    ids=["all", "attention", "dora"],
)
def test_an_adapter_of_the_whole_human_model_is_a_few_megabytes(options: dict[str, Any], n_numbers: int) -> None:
    network = SCGPTNetwork(SCGPTConfig(n_tokens=20, pad_id=PAD))  # the adapter does not know the genes
    tensors = attach_lora(network, **options).tensors()
    assert sum(tensor.numel() for tensor in tensors.values()) == n_numbers
    assert sum(tensor.nbytes for tensor in tensors.values()) < 3e6


# Options and their surroundings -----------------------------------------------------------------------------------


def test_the_seed_decides_and_nothing_global_moves(random_states: Callable[[], Any]) -> None:
    network = make_network()
    before = random_states()
    first = attach_lora(network, rank=RANK, seed=3).tensors()
    assert random_states() == before
    torch.manual_seed(9)
    assert same(attach_lora(make_network(), rank=RANK, seed=3).tensors(), first)
    other = attach_lora(make_network(), rank=RANK, seed=4).tensors()
    assert not any(torch.equal(other[name], first[name]) for name in first if name.endswith("lora_A"))


def test_alpha_over_rank_scales_the_product() -> None:
    network = make_network()
    layer = block(network).linear1
    before = layer.weight.detach().clone()
    adapter = attach_lora(network, rank=2, alpha=6, targets=["*layers.0.linear1"])
    tensors = adapter.tensors()
    a, b = (torch.randn_like(tensors[f"transformer_encoder.layers.0.linear1.lora_{part}"]) for part in "AB")
    adapter.load_tensors(dict(zip(tensors, (a, b), strict=True)))
    adapter.detach()
    assert_close(layer.weight.detach(), before + 3 * b @ a, atol=1e-5)


def test_pissa_takes_the_largest_singular_directions_out() -> None:
    network = make_network()
    singular = torch.linalg.svdvals(block(network).linear1.weight.detach())
    attach_lora(network, rank=RANK, variant="pissa")
    left = block(network).linear1.get_base_layer().weight
    assert_close(torch.linalg.svdvals(left)[:-RANK], singular[RANK:], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 17}, "rank=17 is larger than the full rank of .*Wqkv"),
        ({"targets": "*.nothing"}, "no linear layer of SCGPTNetwork matches .*nothing"),
        ({"variant": "pissa"}, "float64"),
    ],
)
def test_a_refused_adapter_leaves_the_network_alone(options: dict[str, Any], says: str) -> None:
    network = make_network().double()
    names = list(network.state_dict())
    with pytest.raises(OptionError, match=says):
        attach_lora(network, **{"rank": RANK, **options})
    assert list(network.state_dict()) == names
    adapter = attach_lora(network, rank=RANK)
    assert all(name in network.state_dict() or ".layers." in name for name in names)
    adapter.detach()


def test_peft_is_imported_when_an_adapter_is_attached() -> None:
    code = """
import sys
import scgalore.adapters
scgalore.adapters.check_adapter("lora", {"rank": 4})
heavy = {"peft", "transformers", "accelerate", "bitsandbytes"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_peft_is_imported_in_silence() -> None:
    code = "import torch, scgalore.adapters.lora as lora; lora.attach_lora(torch.nn.Sequential(torch.nn.Linear(4, 4)), targets=['0'], rank=2)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_peft_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    network = make_network()
    names = list(network.state_dict())
    with pytest.raises(OptionError, match=r'pip install "scgalore\[lora\]"'):
        attach_lora(network, rank=RANK)
    assert list(network.state_dict()) == names


def test_a_peft_that_does_not_fit_its_own_dependencies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "peft.py").write_text("from transformers import WhatNoVersionHas", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    network = make_network()
    names = list(network.state_dict())
    with pytest.raises(OptionError, match=r'WhatNoVersionHas.*pip install --upgrade "scgalore\[lora\]"'):
        attach_lora(network, rank=RANK)
    assert list(network.state_dict()) == names
