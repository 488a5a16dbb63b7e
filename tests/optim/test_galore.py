import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.optim import GaLoreAdamW, param_groups, state_bytes, subspace
from scgalore.optim.projector import PROJ_TYPES, Bases, ProjType

SHAPES = {"tall": (40, 24), "wide": (24, 40), "square": (32, 32)}


class Regression:
    """``W -> |X (W - target)'|^2``, its gradient small enough for float32 rounding to stay below eps."""

    def __init__(self, shape: tuple[int, int], *, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(32, shape[1], generator=generator).to(dtype)
        self.target = torch.randn(shape, generator=generator).to(dtype)
        self.weight = nn.Parameter((0.1 * torch.randn(shape, generator=generator)).to(dtype))

    def loss(self) -> Tensor:
        return 1e-3 * (self.inputs @ (self.weight - self.target).T).square().mean()

    def run(self, optimizer: torch.optim.Optimizer, n_steps: int) -> Tensor:
        for _ in range(n_steps):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()
        return self.weight.detach().clone()


def make_network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 24), nn.LayerNorm(24), nn.Linear(24, 3)).to(dtype)


def make_batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(16, 20, generator=generator), torch.randint(3, (16,), generator=generator)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    dtype = next(network.parameters()).dtype
    for number in steps:
        inputs, classes = make_batch(number)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs.to(dtype)), classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def make_optimizer(network: nn.Module, **options: Any) -> GaLoreAdamW:
    return GaLoreAdamW(param_groups(network, rank=4, update_proj_gap=5, weight_decay=0.01), lr=1e-2, **options)


def equal_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# ---- against the reference and against AdamW -------------------------------------------------------------------------


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_galore_torch_up_to_the_first_refresh(proj_type: ProjType, shape: tuple[int, int]) -> None:
    from galore_torch import GaLoreAdamW as Reference

    keys = {"rank": 6, "update_proj_gap": 20, "scale": 0.7, "proj_type": proj_type}
    options: dict[str, Any] = {"lr": 0.1, "eps": 1e-6, "weight_decay": 0.05}
    ours, theirs = Regression(shape), Regression(shape)
    start = ours.weight.detach().clone()
    exact: dict[str, Any] = {"basis": "svd", "moments": "keep", "stagger": False}
    mine = ours.run(GaLoreAdamW([{"params": [ours.weight], **keys}], **options, **exact), 20)
    reference = Reference([{"params": [theirs.weight], **keys}], **options, no_deprecation_warning=True)
    expected = theirs.run(reference, 20)
    assert (expected - start).abs().max() > 0.1
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    extra=st.integers(0, 3),
    weight_decay=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_rank_of_the_smaller_side_or_more_is_adamw(
    shape: tuple[int, ...], extra: int, weight_decay: float, dtype: torch.dtype
) -> None:
    rank = (min(shape) if len(shape) == 2 else 1) + extra
    a = nn.Parameter(torch.randn(shape, dtype=dtype))
    b = nn.Parameter(a.detach().clone())
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": weight_decay}
    ours = GaLoreAdamW([{"params": [a], "rank": rank}], **options)
    reference = torch.optim.AdamW([b], **options, fused=True)
    for _ in range(4):
        a.grad = torch.randn(shape, dtype=dtype)
        b.grad = a.grad.clone()
        ours.step()
        reference.step()
    assert torch.equal(a, b)


def test_auto_scale_makes_steps_of_adamws_size() -> None:
    ours, full = Regression((64, 64)), Regression((64, 64))
    start = ours.weight.detach().clone()
    step = ours.run(GaLoreAdamW([{"params": [ours.weight], "rank": 4}], lr=1e-3), 1) - start
    adamw = full.run(torch.optim.AdamW([full.weight], lr=1e-3), 1) - start
    assert step.norm() / adamw.norm() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("gap", [5, 20])
def test_reaches_the_loss_adamw_reaches(gap: int) -> None:
    # The gradient of a product of thin factors has low rank, GaLore's premise.
    def final_loss(make: Callable[[nn.Parameter], torch.optim.Optimizer]) -> float:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(256, 48, generator=generator)
        outputs = inputs @ torch.randn(48, 4, generator=generator) @ torch.randn(4, 48, generator=generator)
        weight = nn.Parameter(torch.zeros(48, 48))
        optimizer = make(weight)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 300)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (inputs @ weight - outputs).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
        return loss.item()

    start = final_loss(lambda w: torch.optim.SGD([w], lr=0.0))
    adamw = final_loss(lambda w: torch.optim.AdamW([w], lr=0.2, weight_decay=0.0))
    galore = final_loss(lambda w: GaLoreAdamW([{"params": [w], "rank": 12, "update_proj_gap": gap}], lr=0.2))
    assert start > 100
    assert adamw < 1e-4
    assert galore < 1e-3


# ---- invariances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_signs_of_the_basis_do_not_matter(proj_type: ProjType, monkeypatch: pytest.MonkeyPatch) -> None:
    true_bases = subspace.iterated_bases

    def flipped(grad: Tensor, rank: int, *args: Any, **kwargs: Any) -> Bases:
        signs = torch.where(torch.rand(rank, 1) < 0.5, -1.0, 1.0)
        return Bases(*(None if basis is None else signs * basis for basis in true_bases(grad, rank, *args, **kwargs)))

    def run(moments: Any) -> Tensor:
        problem = Regression((24, 40))
        group = {"params": [problem.weight], "rank": 6, "update_proj_gap": 3, "proj_type": proj_type}
        return problem.run(GaLoreAdamW([group], lr=1e-2, moments=moments), 20)

    expected, kept = run("rotate"), run("keep")
    monkeypatch.setattr(subspace, "iterated_bases", flipped)
    torch.manual_seed(0)
    torch.testing.assert_close(run("rotate"), expected, rtol=0, atol=1e-5)
    assert (run("keep") - kept).abs().max() > 1e-3


def test_moments_options_differ_only_after_the_first_refresh() -> None:
    def run(moments: Any, n_steps: int) -> Tensor:
        problem = Regression((24, 40))
        group = {"params": [problem.weight], "rank": 6, "update_proj_gap": 4}
        return problem.run(GaLoreAdamW([group], lr=1e-2, moments=moments), n_steps)

    assert torch.equal(run("rotate", 4), run("keep", 4))
    assert torch.equal(run("rotate", 4), run("reset", 4))
    after = [run(moments, 6) for moments in ("rotate", "keep", "reset")]
    assert len({float(weights.sum()) for weights in after}) == 3


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
def test_packed_weight_is_trained_like_three_weights(proj_type: ProjType) -> None:
    # In float64, because "full" turns the first gradient into a diagonal and the rounding errors around it.
    packed = nn.Parameter(torch.randn(36, 10, dtype=torch.float64))
    parts = [nn.Parameter(part.detach().clone()) for part in packed.unflatten(0, (3, 12))]
    keys = {"rank": 4, "update_proj_gap": 3, "proj_type": proj_type}
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "basis": "svd"}
    together = GaLoreAdamW([{"params": [packed], "split": 3, **keys}], **options)
    apart = GaLoreAdamW([{"params": parts, **keys}], **options, stagger=False)
    for _ in range(8):
        packed.grad = torch.randn(36, 10).double() * torch.tensor([1e-3, 1.0, 1e3]).repeat_interleave(12)[:, None]
        for part, grad in zip(parts, packed.grad.unflatten(0, (3, 12)), strict=True):
            part.grad = grad.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(packed.detach(), torch.cat([p.detach() for p in parts]), rtol=0, atol=1e-5)


def test_layout_of_a_gradient_does_not_matter() -> None:
    grads = torch.randn(6, 12, 8)
    results = []
    for layout in (lambda g: g, lambda g: g.T.contiguous().T):
        torch.manual_seed(0)
        projected, plain = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(12, 8))
        optimizer = GaLoreAdamW([{"params": [projected], "rank": 3}, {"params": [plain]}], lr=1e-2)
        for grad in grads:
            projected.grad, plain.grad = layout(grad), layout(grad)
            optimizer.step()
        results.append(torch.stack([projected.detach(), plain.detach()]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)


def test_seed_decides_and_the_global_generator_does_not() -> None:
    def run(seed: int, global_seed: int) -> nn.Module:
        network = make_network()
        optimizer = make_optimizer(network, seed=seed)
        torch.manual_seed(global_seed)
        train(network, optimizer, range(8))
        return network

    first = run(0, 1)
    assert equal_weights(first, run(0, 2))
    assert not equal_weights(first, run(1, 1))


# ---- schedule of refreshes -------------------------------------------------------------------------------------------


def refreshed_at(n_weights: int, gap: int, n_steps: int, **options: Any) -> list[list[int]]:
    """For each weight the steps at which its basis changed, the first left out."""
    weights = [nn.Parameter(torch.randn(8, 8)) for _ in range(n_weights)]
    optimizer = GaLoreAdamW([{"params": weights, "rank": 2, "update_proj_gap": gap}], **options)
    steps: list[list[int]] = [[] for _ in weights]
    for step in range(n_steps):
        before = [optimizer.state[w].get("basis") for w in weights]
        for weight in weights:
            weight.grad = torch.randn(8, 8)
        optimizer.step()
        for place, weight in enumerate(weights):
            if step and not torch.equal(optimizer.state[weight]["basis"], before[place]):
                steps[place].append(step)
    return steps


@pytest.mark.parametrize(("n_weights", "gap"), [(6, 3), (3, 6), (7, 4), (1, 5), (4, 1)])
def test_staggered_refreshes_are_spread_evenly(n_weights: int, gap: int) -> None:
    steps = refreshed_at(n_weights, gap, 4 * gap)
    for of_weight in steps:
        assert all(later - earlier == gap for earlier, later in zip(of_weight, of_weight[1:], strict=False))
        assert len(of_weight) >= 3
    per_step = [sum(step in of_weight for of_weight in steps) for step in range(gap, 2 * gap)]
    assert sum(per_step) == n_weights
    assert max(per_step) <= -(-n_weights // gap)


def test_without_stagger_all_are_refreshed_together() -> None:
    assert refreshed_at(3, 4, 10, stagger=False) == [[4, 8]] * 3


def test_rank_and_gap_may_change_during_training() -> None:
    problem = Regression((24, 40))
    optimizer = GaLoreAdamW([{"params": [problem.weight], "rank": 6, "update_proj_gap": 2}], lr=1e-2)
    problem.run(optimizer, 3)
    optimizer.param_groups[0].update(rank=9, update_proj_gap=3)
    assert problem.run(optimizer, 4).isfinite().all()
    assert optimizer.state[problem.weight]["basis"].shape == (9, 24)
    assert optimizer.state[problem.weight]["exp_avg_sq"].shape == (9, 40)


# ---- gradients that cannot be used -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("when", [0, 2, 3], ids=["first step", "between refreshes", "at a refresh"])
def test_gradient_that_is_not_finite_changes_nothing_and_warns_once(bad: float, when: int) -> None:
    clean, hit = Regression((24, 40)), Regression((24, 40))
    optimizers = [GaLoreAdamW([{"params": [p.weight], "rank": 6, "update_proj_gap": 3}], lr=1e-2) for p in (clean, hit)]
    hit.run(optimizers[1], when)
    before = hit.weight.detach().clone()
    hit.weight.grad = torch.ones(24, 40)
    hit.weight.grad[3, 7] = bad
    with warnings.catch_warnings(record=True, action="always") as caught:
        optimizers[1].step()
        optimizers[1].step()
    assert [(w.category, w.filename) for w in caught] == [(RuntimeWarning, __file__)]
    assert "NaN or infinity" in str(caught[0].message)
    assert torch.equal(hit.weight, before)
    assert torch.equal(hit.run(optimizers[1], 6), clean.run(optimizers[0], when + 6))


def test_other_weights_go_on_when_one_gradient_is_not_finite() -> None:
    bad, good = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
    optimizer = GaLoreAdamW([{"params": [bad, good], "rank": 2}], lr=1e-2)
    before = good.detach().clone()
    bad.grad, good.grad = torch.full((8, 8), torch.nan), torch.ones(8, 8)
    with pytest.warns(RuntimeWarning, match="left the weight"):
        optimizer.step()
    assert not torch.equal(good, before)


def test_zero_gradient_takes_no_basis() -> None:
    problem = Regression((24, 40))
    late, fresh = problem, Regression((24, 40))
    optimizers = [GaLoreAdamW([{"params": [p.weight], "rank": 6}], lr=1e-2) for p in (late, fresh)]
    late.weight.grad = torch.zeros(24, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizers[0].step()
    assert "basis" not in optimizers[0].state[late.weight]
    assert torch.equal(late.run(optimizers[0], 5), fresh.run(optimizers[1], 5))


def test_zero_gradient_at_a_refresh_keeps_the_basis_and_the_refresh_due() -> None:
    problem = Regression((24, 40))
    optimizer = GaLoreAdamW([{"params": [problem.weight], "rank": 6, "update_proj_gap": 3}], lr=1e-2)
    problem.run(optimizer, 3)
    state = optimizer.state[problem.weight]
    before = state["basis"].clone()
    problem.weight.grad = torch.zeros(24, 40)
    optimizer.step()
    assert torch.equal(state["basis"], before)
    problem.run(optimizer, 1)
    assert not torch.equal(state["basis"], before)
    assert state["refresh_at"] == 6


def test_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    optimizer = GaLoreAdamW(embedding.parameters())
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


# ---- state, checkpoints, copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("basis", ["warm", "svd"])
def test_state_is_tensors_and_numbers_and_no_larger_than_needed(proj_type: ProjType, basis: Any) -> None:
    weight = nn.Parameter(torch.randn(32, 16))
    group = {"params": [weight], "rank": 3, "proj_type": proj_type}
    optimizer = GaLoreAdamW([group], basis=basis)
    weight.grad = torch.randn(32, 16)
    optimizer.step()
    state = optimizer.state[weight]
    assert all(isinstance(value, int | float | Tensor) for value in state.values())
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert state["basis"].shape[0] == 3
    assert state_bytes(optimizer) == sum(4 * tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("options", [{}, {"basis": "svd", "moments": "keep"}, {"moments": "reset", "stagger": False}])
@pytest.mark.parametrize("stop", [0, 1, 7, 10])
def test_resumed_training_is_bit_identical(stop: int, options: dict[str, Any]) -> None:
    straight = make_network()
    train(straight, make_optimizer(straight, **options), range(17))

    first = make_network()
    optimizer = make_optimizer(first, **options)
    train(first, optimizer, range(stop))
    file = io.BytesIO()
    torch.save({"network": first.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    second = make_network()
    second.load_state_dict(saved["network"])
    # Options come from the checkpoint, not from the new optimizer.
    resumed = make_optimizer(second, seed=5)
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(stop, 17))
    assert equal_weights(second, straight)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_continue_alike_and_apart(duplicate: Callable[[Any], Any]) -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    train(network, optimizer, range(7))
    other_network, other = duplicate((network, optimizer))
    train(network, optimizer, range(7, 15))
    train(other_network, other, range(7, 15))
    assert equal_weights(network, other_network)


def test_loaded_state_shares_nothing_with_its_source() -> None:
    a, b = make_network(), make_network()
    source, target = make_optimizer(a), make_optimizer(b)
    train(a, source, range(6))
    target.load_state_dict(source.state_dict())
    before = copy.deepcopy(source.state_dict()["state"])
    train(b, target, range(6, 14))
    after = source.state_dict()["state"]
    for index, state in before.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after[index][key]))


def test_float32_state_stays_float32_for_bfloat16_weights() -> None:
    network, half = make_network(), make_network(torch.bfloat16)
    source, target = make_optimizer(network), make_optimizer(half)
    train(network, source, range(6))
    target.load_state_dict(source.state_dict())
    for loaded, saved in zip(target.state.values(), source.state.values(), strict=True):
        for key, value in saved.items():
            assert torch.equal(torch.as_tensor(loaded[key]), torch.as_tensor(value))
    train(half, target, range(6, 12))
    assert all(
        value.dtype == torch.float32 for s in target.state.values() for value in s.values() if torch.is_tensor(value)
    )


def test_state_of_torchs_adamw_can_be_taken_over() -> None:
    a, b = make_network(), make_network()
    adamw = torch.optim.AdamW(a.parameters(), lr=1e-2, fused=True)
    ours = GaLoreAdamW(b.parameters(), lr=1e-2)
    train(a, adamw, range(4))
    b.load_state_dict(a.state_dict())
    ours.load_state_dict(adamw.state_dict())
    train(a, adamw, range(4, 8))
    train(b, ours, range(4, 8))
    assert equal_weights(a, b)


# ---- as part of a training loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_trains_in_each_precision(dtype: torch.dtype) -> None:
    network = make_network(dtype)
    optimizer = make_optimizer(network)
    losses = [sum(train(network, optimizer, range(8))) for _ in range(15)]
    assert losses[-1] < 0.6 * losses[0]
    kept = {value.dtype for state in optimizer.state.values() for key, value in state.items() if key.startswith("exp")}
    assert kept == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_closure_is_evaluated_with_gradients() -> None:
    problem, same = Regression((24, 40)), Regression((24, 40))
    optimizers = [GaLoreAdamW([{"params": [p.weight], "rank": 6}], lr=1e-2) for p in (problem, same)]

    def closure() -> Tensor:
        optimizers[0].zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    expected = problem.loss().item()
    with torch.no_grad():
        assert optimizers[0].step(closure).item() == expected
    assert torch.equal(problem.weight, same.run(optimizers[1], 1))


def test_accumulated_gradients_equal_one_large_batch() -> None:
    networks = make_network(), make_network()
    optimizers = [make_optimizer(network) for network in networks]
    for step in range(6):
        batches = make_batch(2 * step), make_batch(2 * step + 1)
        inputs, classes = (torch.cat(parts) for parts in zip(*batches, strict=True))
        nn.functional.cross_entropy(networks[0](inputs), classes).backward()
        for some, labels in batches:
            (nn.functional.cross_entropy(networks[1](some), labels) / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_schedulers_and_clipping_work() -> None:
    network = make_network()
    optimizer = make_optimizer(network)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / 5))
    for step in range(5):
        train(network, optimizer, range(step, step + 1))
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        schedule.step()
    before = copy.deepcopy(network)
    decay = [group["weight_decay"] for group in optimizer.param_groups]
    assert max(decay) > 0
    train(network, optimizer, range(5, 7))  # the rate is zero by now
    assert equal_weights(network, before)


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
    optimizer = GaLoreAdamW([{"params": [used, unused], "rank": 2}], weight_decay=0.1)
    before = unused.detach().clone()
    used.grad = torch.randn(8, 8)
    optimizer.step()
    assert torch.equal(unused, before)
    assert set(optimizer.state) == {used}


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 4, "proj_type": "strd"}, {"rank": 4, "split": 3}])
def test_bad_group_is_refused_before_training(options: dict[str, Any]) -> None:
    good, bad = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
    optimizer = GaLoreAdamW([good])
    with pytest.raises(OptionError):
        optimizer.add_param_group({"params": [bad], **options})
    assert len(optimizer.param_groups) == 1
