from __future__ import annotations

import copy
import io

import pytest
import torch
from tests.tiny_plugin import TINY
from torch import nn
from torch.nn import functional as F

from scgalore.adapters.lte import attach_lte
from scgalore.adapters.lte_linear import LTELinear
from scgalore.adapters.registry import ADAPTERS, attach_adapter, check_adapter
from scgalore.errors import OptionError, WeightsError
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.optim import build_optimizer, param_groups


def adam(params):
    return torch.optim.Adam(params, lr=0.02, eps=1e-3)  # an eps large enough to tell sizes of gradients apart


class TwoLayers(nn.Module):
    """One layer to adapt and one that is trained in full."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(6, 5, dtype=dtype), nn.Linear(5, 3, dtype=dtype)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x)))


def attach(module, **options):
    defaults = {"n_heads": 3, "rank": 2, "alpha": 4.0, "merge_every": 4, "targets": ["inner"]}
    return attach_lte(module, **{**defaults, **options})


def draws(b, *, seed=0, dtype=torch.float64):
    """Endless batches of cells with two tokens each, and what they should map to."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(b, 2, 6, generator=generator, dtype=dtype)
        yield x, torch.stack([x[..., :3].sin().sum(-1), x[..., 3:].prod(-1), x[..., 0]], dim=-1)


def train(module, adapter, optimizer, batches, n_steps):
    module.train()
    for _, (x, wanted) in zip(range(n_steps), batches, strict=False):
        optimizer.zero_grad()
        F.mse_loss(module(x), wanted).backward()
        optimizer.step()
        adapter.after_step()


def trainable(module):
    return [param for param in module.parameters() if param.requires_grad]


def merged_changes(adapter):
    """What the merges have added to each weight, by the telescoping sum."""
    scale = adapter.options["alpha"] / adapter.options["rank"]
    return {key: scale * (layer.B @ layer.A).mean(dim=0).detach() for key, layer in adapter.layers.items()}


# Against N networks of their own ------------------------------------------------------------------------------------


def explicit_lte(module, adapter, make_optimizer, batches, n_steps):
    """Each head in a network of its own, as the paper describes it: weight of ``inner``, factors, the rest."""
    n_heads, every = adapter.options["n_heads"], adapter.options["merge_every"]
    scale = adapter.options["alpha"] / adapter.options["rank"]
    first = adapter.layers["inner"]
    weight = first.base.weight.detach().clone()
    a, b = ([t.clone().requires_grad_() for t in factors.detach()] for factors in (first.A, first.B))
    rest = [p.detach().clone().requires_grad_() for p in (first.base.bias, *module.outer.parameters())]
    old = [scale * (bn @ an).detach() for an, bn in zip(a, b, strict=True)]
    optimizer = make_optimizer([*a, *b, *rest])
    for step, (x, wanted) in zip(range(1, n_steps + 1), batches, strict=False):
        total = torch.zeros((), dtype=x.dtype)
        for n in range(n_heads):
            rows = [j for j in range(len(x)) if j * n_heads // len(x) == n]
            if not rows:
                a[n].grad, b[n].grad = torch.zeros_like(a[n]), torch.zeros_like(b[n])
                continue
            w = weight + scale * b[n] @ a[n] - old[n]
            y = F.linear(torch.tanh(F.linear(x[rows], w, rest[0])), rest[1], rest[2])
            loss = F.mse_loss(y, wanted[rows])
            a[n].grad, b[n].grad = torch.autograd.grad(loss, (a[n], b[n]), retain_graph=True)
            total = total + loss * len(rows) / len(x)
        for param, grad in zip(rest, torch.autograd.grad(total, rest), strict=True):
            param.grad = grad
        optimizer.step()
        if step % every == 0:
            new = [scale * (bn @ an).detach() for an, bn in zip(a, b, strict=True)]
            weight += torch.stack([after - before for after, before in zip(new, old, strict=True)]).mean(dim=0)
            old = new
    return weight, torch.stack(a), torch.stack(b), rest


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": adam,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("b", "options"),
    [
        (9, {}),
        (7, {}),  # shards of 3, 2 and 2 cells
        (2, {}),  # a head without cells
        (8, {"n_heads": 4, "merge_every": 1}),
        (6, {"n_heads": 1, "merge_every": 1}),
        (6, {"n_heads": 1, "merge_every": 3, "alpha": 0.5}),
    ],
)
def test_equals_as_many_networks_as_heads_that_are_merged_by_the_formulas(optimizer, b, options):
    module = TwoLayers()
    adapter = attach(module, **options)
    expected = explicit_lte(module, adapter, OPTIMIZERS[optimizer], draws(b), n_steps=22)
    train(module, adapter, OPTIMIZERS[optimizer](trainable(module)), draws(b), n_steps=22)
    layer = adapter.layers["inner"]
    ours = layer.base.weight, layer.A, layer.B, [layer.base.bias, *module.outer.parameters()]
    for found, wanted in zip(ours[:3] + tuple(ours[3]), expected[:3] + tuple(expected[3]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("merge_every", [1, 5, 1000])
def test_one_head_is_lora_however_often_it_is_merged(merge_every):
    module = TwoLayers()
    adapter = attach(module, n_heads=1, merge_every=merge_every)
    w0, a = module.inner.base.weight.clone(), adapter.layers["inner"].A[0].detach().clone().requires_grad_()
    lora = TwoLayers()
    b = torch.zeros(5, 2, dtype=torch.float64, requires_grad=True)
    train(module, adapter, adam(trainable(module)), draws(8), n_steps=12)
    optimizer = adam([a, b, lora.inner.bias, *lora.outer.parameters()])
    for _, (x, wanted) in zip(range(12), draws(8), strict=False):
        optimizer.zero_grad()
        hidden = F.linear(x, w0 + 2.0 * b @ a, lora.inner.bias)
        F.mse_loss(lora.outer(torch.tanh(hidden)), wanted).backward()
        optimizer.step()
    adapter.merge()
    torch.testing.assert_close(module.inner.base.weight, w0 + 2.0 * b @ a, rtol=0, atol=1e-10)


def test_merges_make_a_change_of_higher_rank_than_a_head_has():
    module = TwoLayers()
    w0 = module.inner.weight.clone()
    adapter = attach(module, n_heads=4, rank=1)
    train(module, adapter, adam(trainable(module)), draws(8), n_steps=40)
    adapter.detach()
    singular = torch.linalg.svdvals(module.inner.weight - w0)
    assert (singular > 1e-3 * singular[0]).sum() > 1


# When and what it merges --------------------------------------------------------------------------------------------


def test_weights_change_every_so_many_steps_and_at_no_other():
    module = TwoLayers()
    adapter = attach(module, merge_every=3)
    optimizer, batches = adam(trainable(module)), draws(6)
    changed = []
    for _ in range(9):
        before = module.inner.base.weight.clone()
        train(module, adapter, optimizer, batches, n_steps=1)
        changed.append(not torch.equal(before, module.inner.base.weight))
    assert changed == [False, False, True] * 3


def test_merging_and_unmerging_leave_outputs_in_evaluation():
    module = TwoLayers(torch.float32)
    w0 = module.inner.weight.clone()
    adapter = attach(module)
    train(module, adapter, adam(trainable(module)), draws(6, dtype=torch.float32), n_steps=30)
    x, _ = next(draws(6, dtype=torch.float32))
    before = module.eval()(x)
    for step in (adapter.merge, adapter.merge, adapter.unmerge, adapter.unmerge):
        step()
        torch.testing.assert_close(module(x), before, rtol=0, atol=1e-6)
    torch.testing.assert_close(module.inner.base.weight, w0, rtol=0, atol=1e-6)
    adapter.merge()
    torch.testing.assert_close(module.inner.base.weight, w0 + merged_changes(adapter)["inner"], rtol=0, atol=1e-6)


def test_tensors_of_an_adapter_reproduce_the_merged_weights_on_the_base():
    module, fresh = TwoLayers(torch.float32), TwoLayers(torch.float32)
    adapter = attach(module, seed=0)
    train(module, adapter, adam(trainable(module)), draws(6, dtype=torch.float32), n_steps=30)
    assert set(adapter.tensors()) == {"inner.A", "inner.B"}
    loaded = attach(fresh, seed=1)
    loaded.load_tensors(adapter.tensors())
    for each in (adapter, loaded):
        each.detach()
    torch.testing.assert_close(fresh.inner.weight, module.inner.weight, rtol=0, atol=1e-6)


def test_tensors_replace_what_was_merged_before():
    module, other = TwoLayers(), TwoLayers()
    adapters = attach(module), attach(other, seed=1)
    for seed, (each, adapter) in enumerate(zip((module, other), adapters, strict=True)):
        train(each, adapter, adam(trainable(each)), draws(6, seed=seed), n_steps=11)
    adapters[1].load_tensors(adapters[0].tensors())
    adapters[0].merge()
    torch.testing.assert_close(other.inner.base.weight, module.inner.base.weight, rtol=0, atol=1e-12)


def test_tensors_that_do_not_fit_change_nothing():
    module = TwoLayers()
    adapter = attach(module)
    train(module, adapter, adam(trainable(module)), draws(6), n_steps=5)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(WeightsError, match="shape"):
        adapter.load_tensors(attach(TwoLayers(), rank=1).tensors())
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("n_before", [4, 6])  # just merged, and between two merges
def test_training_resumed_from_a_file_is_bit_for_bit_that_which_went_on(n_before):
    whole, part, after = (TwoLayers(torch.float32) for _ in range(3))
    adapters = [attach(each, seed=seed) for seed, each in enumerate((whole, part, after))]
    part.load_state_dict(whole.state_dict())
    optimizers = [adam(trainable(each)) for each in (whole, part, after)]
    train(whole, adapters[0], optimizers[0], draws(7, dtype=torch.float32), n_steps=13)
    batches = draws(7, dtype=torch.float32)
    train(part, adapters[1], optimizers[1], batches, n_steps=n_before)
    file = io.BytesIO()
    torch.save([part.state_dict(), optimizers[1].state_dict()], file)
    file.seek(0)
    state, moments = torch.load(file, weights_only=True)
    after.load_state_dict(state)
    optimizers[2].load_state_dict(moments)
    train(after, adapters[2], optimizers[2], batches, n_steps=13 - n_before)
    expected = whole.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in after.state_dict().items())


def test_a_copy_of_the_network_has_an_adapter_of_its_own():
    module = TwoLayers()
    adapter = attach(module, merge_every=1)
    twin = copy.deepcopy(module)
    before = module.inner.base.weight.clone()
    train(twin, twin._adapter, adam(trainable(twin)), draws(6), n_steps=2)
    assert torch.equal(module.inner.base.weight, before)
    assert not torch.equal(twin.inner.base.weight, before)
    assert int(adapter.layers["inner"].n_steps) == 0


# On scGPT -----------------------------------------------------------------------------------------------------------

N_GENES = 30
ATTENTION = [f"transformer_encoder.layers.{n}.self_attn.{part}" for n in (0, 1) for part in ("Wqkv", "out_proj")]
PARTS = [f"{name}{part}" for name in ATTENTION for part in ((".q", ".k", ".v") if "qkv" in name else ("",))]


def network(**config):
    torch.manual_seed(0)
    config = {**TINY, "dropout": 0.0, "heads": {"classes": 3}, "n_tokens": N_GENES + 3, "pad_id": N_GENES, **config}
    return SCGPTNetwork(SCGPTConfig(**config))


def cells(b=10, n_tokens=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    genes = torch.stack([torch.randperm(N_GENES, generator=generator)[:n_tokens] for _ in range(b)])
    values = torch.randint(1, 51, genes.shape, generator=generator).float()
    genes[:, 0], values[:, 0] = N_GENES + 1, -2
    padding = torch.arange(n_tokens) >= torch.randint(4, n_tokens + 1, (b, 1), generator=generator)
    return genes.masked_fill(padding, N_GENES), values.masked_fill(padding, -2), padding


def fit(net, adapter, optimizer, n_steps, *, cell_only=True):
    """Train on classes and return the losses."""
    losses = []
    for seed in range(n_steps):
        genes, values, padding = cells(seed=seed)
        optimizer.zero_grad()
        logits = net.read_head("classes", net.encode(genes, values, padding, cell_only=cell_only).cell)
        loss = F.cross_entropy(logits, (values[:, 1] % 3).long())
        loss.backward()
        optimizer.step()
        adapter.after_step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("cell_only", [True, False])
def test_every_factor_of_q_k_v_and_out_proj_gets_a_gradient(cell_only):
    net = network()
    adapter = attach_lte(net, rank=4)
    assert sorted(adapter.layers) == sorted(PARTS)
    # B is zero at first, and with it the gradient of A: hence the second step.
    fit(net, adapter, torch.optim.AdamW(trainable(net), lr=1e-3), 2, cell_only=cell_only)
    for layer in adapter.layers.values():
        for factor in (layer.A, layer.B):
            assert factor.grad.abs().amax(dim=(1, 2)).min() > 0  # of every head


@pytest.mark.parametrize("training", [True, False])
def test_working_on_cls_alone_gives_the_embedding_of_working_on_all_tokens(training):
    net = network()
    adapter = attach_lte(net, rank=4, alpha=64.0)
    fit(net, adapter, torch.optim.AdamW(trainable(net), lr=1e-2), 5)
    net.train(training)
    batch = cells(seed=9)
    whole = net.encode(*batch).cell
    torch.testing.assert_close(net.encode(*batch, cell_only=True).cell, whole, rtol=0, atol=1e-5)


def test_detach_gives_the_network_its_own_structure_back():
    net, untouched = network(), network()
    net.encoder.requires_grad_(False)
    untouched.encoder.requires_grad_(False)
    adapter = attach_lte(net, targets="all", rank=4, others="freeze")
    fit(net, adapter, torch.optim.AdamW(trainable(net), lr=1e-2), 7)
    net.eval()
    batch = cells(seed=9)
    before = net.read_head("classes", net.encode(*batch).cell)
    adapter.detach()
    torch.testing.assert_close(net.read_head("classes", net.encode(*batch).cell), before, rtol=0, atol=1e-5)
    assert [(key, type(part)) for key, part in net.named_modules()] == [
        (key, type(part)) for key, part in untouched.named_modules()
    ]
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in net.state_dict().items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in untouched.state_dict().items()
    }
    assert {key: p.requires_grad for key, p in net.named_parameters()} == {
        key: p.requires_grad for key, p in untouched.named_parameters()
    }


@pytest.mark.parametrize("others", ["train", "freeze"])
def test_what_trains_beside_the_factors_is_as_chosen(others):
    net = network()
    attach_lte(net, rank=4, others=others)
    trains = {key for key, param in net.named_parameters() if param.requires_grad}
    assert not {f"{key}.base.weight" for key in PARTS} & trains
    assert {f"{key}.{factor}" for key in PARTS for factor in "AB"} <= trains
    assert "cls_decoder.out_layer.weight" in trains
    body = {f"{key}.base.bias" for key in PARTS} | {"transformer_encoder.layers.0.linear1.weight"}
    assert body <= trains if others == "train" else not body & trains


def test_galore_trains_the_rest_and_leaves_the_factors_to_adamw():
    net = network()
    before = copy.deepcopy(net.state_dict())
    adapter = attach_lte(net, rank=4)
    groups = {group["name"]: group["param_names"] for group in param_groups(net, rank=4)}
    projected = groups["galore"]
    assert "transformer_encoder.layers.1.linear2.weight" in projected
    assert "galore-qkv" not in groups
    factors = {f"{key}.{factor}" for key in PARTS for factor in "AB"}
    assert factors <= set(groups["adamw"])
    optimizer = build_optimizer("galore", net, lr=1e-2, rank=4)
    losses = fit(net, adapter, optimizer, 60)
    assert sum(losses[-10:]) < sum(losses[:10])
    adapter.detach()
    after = net.state_dict()
    for key in (f"{ATTENTION[0]}.weight", f"{ATTENTION[1]}.weight", "transformer_encoder.layers.0.linear1.weight"):
        assert (after[key] - before[key]).abs().max() > 1e-3


def test_an_optimizer_that_factors_its_moments_takes_the_stacked_factors():
    net = network()
    adapter = attach_lte(net, rank=4)
    before = adapter.tensors()
    fit(net, adapter, build_optimizer("adafactor", net), 3)
    assert all(not torch.equal(tensor, before[key]) for key, tensor in adapter.tensors().items())


# Options ------------------------------------------------------------------------------------------------------------


def test_seed_decides_the_factors():
    first, same, other = (attach(TwoLayers(), seed=seed).tensors()["inner.A"] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_global_generators_are_left_alone(random_states):
    net = network()
    before = random_states()
    attach_lte(net, rank=4)
    assert random_states() == before


@pytest.mark.parametrize(
    "options",
    [
        {"n_heads": 0},
        {"n_heads": 2.5},
        {"rank": 0},
        {"merge_every": 0},
        {"merge_every": True},
        {"alpha": 0.0},
        {"alpha": float("inf")},
        {"seed": -1},
        {"others": "both"},
        {"targets": []},
        {"dropout": 0.1},
    ],
    ids=lambda options: "-".join(map(str, *options.items())),
)
def test_options_out_of_range_are_refused_before_there_is_a_network(options):
    (key,) = options
    with pytest.raises(OptionError, match=key):
        check_adapter("lte", options)


def test_registry_attaches_it_with_its_defaults():
    adapter = attach_adapter("lte", network())
    assert adapter.options == dict(ADAPTERS["lte"].options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_which_merges_would_round_away_are_refused(dtype):
    net = network().to(dtype)
    before = [key for key, _ in net.named_modules()]
    with pytest.raises(OptionError, match="float"):
        attach_lte(net, rank=4)
    assert [key for key, _ in net.named_modules()] == before


def test_a_network_in_evaluation_mode_stays_in_it():
    net = network().eval()
    adapter = attach_lte(net, rank=4)
    assert not any(part.training for part in net.modules())
    assert all(isinstance(layer, LTELinear) for layer in adapter.layers.values())
