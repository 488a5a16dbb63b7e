import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.optim.problems import Regression, equal_weights, make_network, make_optimizer, train
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.optim import GaLoreAdamW
from scgalore.optim.projector import PROJ_TYPES, Bases, ProjType, orthonormal, rotate, sides_of, turns
from scgalore.optim.subspace import BASIS_METHODS, MOST_GAPS

SHAPES = {"tall": (40, 24), "wide": (24, 40), "square": (32, 32)}
quick = settings(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


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


@quick
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


def turn_state(state: dict[str, Any], proj_type: ProjType, draw: Callable[[int], Tensor]) -> None:
    """Describe the same subspace by other directions, and the moments accordingly."""
    right = state["basis_right"] if proj_type == "full" else state["basis"]
    sides = sides_of(*SHAPES["wide"], proj_type)
    old = Bases(state["basis"] if sides.left else None, right if sides.right else None)
    new = Bases(*(None if basis is None else draw(basis.shape[0]).to(basis) @ basis for basis in old))
    state["basis"] = new.right if new.left is None else new.left
    if proj_type == "full":
        state["basis_right"] = new.right
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = rotate(state[key], turns(old, new), squared=key == "exp_avg_sq")


def flip(r: int) -> Tensor:
    return torch.diag(torch.where(torch.rand(r) < 0.5, -1.0, 1.0))


def flip_and_permute(r: int) -> Tensor:
    return flip(r)[torch.randperm(r)]


def turn_at_will(r: int) -> Tensor:
    return orthonormal(torch.randn(r, r))


def run_turned(
    draw: Callable[[int], Tensor] | None, *, proj_type: ProjType = "std", lr: float = 1e-2, **options: Any
) -> Tensor:
    """Weights after 20 steps and several refreshes; after each step the directions are drawn anew."""
    torch.manual_seed(0)
    # "full" with an exact SVD turns the first gradient into a diagonal and the rounding errors around it.
    problem = Regression(SHAPES["wide"], dtype=torch.float64 if proj_type == "full" else torch.float32)
    group = {"params": [problem.weight], "rank": 6, "update_proj_gap": 3, "proj_type": proj_type}
    optimizer = GaLoreAdamW([group], lr=lr, **options)
    for _ in range(20):
        problem.run(optimizer, 1)
        if draw is not None:
            turn_state(optimizer.state[problem.weight], proj_type, draw)
    return problem.weight.detach()


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("basis", BASIS_METHODS)
def test_signs_and_order_of_directions_do_not_matter(basis: Any, proj_type: ProjType) -> None:
    # The QR of a warm start is that of ordered directions: in another order it gives others in the same subspace.
    draw = flip if basis == "warm" else flip_and_permute
    options: dict[str, Any] = {"basis": basis, "proj_type": proj_type}
    torch.testing.assert_close(run_turned(draw, **options), run_turned(None, **options), rtol=0, atol=3e-5)


def test_signs_matter_when_moments_are_kept() -> None:
    options: dict[str, Any] = {"basis": "svd", "moments": "keep"}
    assert (run_turned(flip, **options) - run_turned(None, **options)).abs().max() > 1e-3


@pytest.mark.parametrize("proj_type", PROJ_TYPES)
@pytest.mark.parametrize("basis", BASIS_METHODS)
def test_any_rotation_leaves_training_unchanged_but_for_the_second_moment(basis: Any, proj_type: ProjType) -> None:
    # Adam's second moment belongs to single coordinates, so no rule for it can make all rotations equal. An eps far
    # above it takes it out of the update, and what is left depends on the subspace alone.
    options: dict[str, Any] = {"basis": basis, "proj_type": proj_type, "eps": 1e3, "lr": 1e5}
    expected = run_turned(None, **options)
    assert (expected - Regression(SHAPES["wide"]).weight).abs().max() > 0.01
    torch.testing.assert_close(run_turned(turn_at_will, **options), expected, rtol=0, atol=1e-5)
    assert (run_turned(turn_at_will, moments="keep", **options) - expected).abs().max() > 1e-4


@quick
@given(seed=st.integers(0, 99), basis=st.sampled_from(BASIS_METHODS))
def test_any_rotation_leaves_momentum_and_variance_unchanged(seed: int, basis: Any) -> None:
    weight = nn.Parameter(torch.zeros(SHAPES["wide"]))
    group = {"params": [weight], "rank": 6, "update_proj_gap": 4, "proj_type": "right"}
    results = []
    for draw in (None, turn_at_will):
        torch.manual_seed(seed)
        grads = torch.randn(10, *SHAPES["wide"]) * torch.linspace(0.1, 1, SHAPES["wide"][1])
        optimizer = GaLoreAdamW([group], basis=basis)
        momenta, variances = [], []
        for grad in grads:
            weight.grad = grad
            optimizer.step()
            state = optimizer.state[weight]
            momenta.append(state["exp_avg"] @ state["basis"])
            variances.append(state["exp_avg_sq"].sum(1))
            if draw is not None:
                turn_state(state, "right", draw)
        # What a new subspace takes over of a variance hangs on the directions, so up to the first refresh only.
        results.append((torch.stack(momenta), torch.stack(variances[:4])))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-5)


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


def refreshes(grads: Callable[[int], Tensor], n_steps: int, **options: Any) -> list[int]:
    """Steps at which the basis of one 12 x 8 weight changed, the first included."""
    weight = nn.Parameter(torch.zeros(12, 8))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 2, "update_proj_gap": 2}], **options)
    steps, before = [], None
    for step in range(n_steps):
        weight.grad = grads(step)
        optimizer.step()
        if optimizer.state[weight]["basis"] is not before:
            steps.append(step)
            before = optimizer.state[weight]["basis"]
    return steps


@pytest.mark.parametrize("basis", BASIS_METHODS)
def test_lazy_refreshes_become_rare_while_the_subspace_stays(basis: Any) -> None:
    still = torch.randn(12, 2) @ torch.randn(2, 8)

    def grads(step: int) -> Tensor:
        return still.clone() if step < 30 else torch.randn(12, 8)

    steps = refreshes(grads, 40, basis=basis, lazy=True)
    if basis == "random":  # never finds the old subspace again
        assert steps == list(range(0, 40, 2))
        return
    assert steps == [0, 2, 6, 14, 30, 32, 34, 36, 38]
    assert refreshes(grads, 40, basis=basis) == list(range(0, 40, 2))


def test_lazy_gap_has_an_end() -> None:
    still = torch.randn(12, 2) @ torch.randn(2, 8)
    steps = refreshes(lambda _: still.clone(), 2 * (2 + 2 * MOST_GAPS) + 4 * MOST_GAPS, lazy=True)
    gaps = [later - earlier for earlier, later in zip(steps, steps[1:], strict=False)]
    assert gaps == [2, 4, 8, 16, 32, 32, 32]


def test_parameters_added_later_are_trained_like_those_there_from_the_start() -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(2, 8, 8), torch.randn(3, 2, 8, 8)
    results = []
    for at_once in (True, False):
        weights = [nn.Parameter(weight.clone()) for weight in start]
        groups = [{"params": [weight], "rank": 2, "update_proj_gap": 2} for weight in weights]
        optimizer = GaLoreAdamW(groups if at_once else groups[:1], lr=1e-2, stagger=False)
        optimizer.step()  # without gradients: changes nothing but what the optimizer remembers of its groups
        if not at_once:
            optimizer.add_param_group(groups[1])
        for pair in grads:
            for weight, grad in zip(weights, pair, strict=True):
                weight.grad = grad.clone()
            optimizer.step()
        results.append(torch.stack([weight.detach() for weight in weights]))
        assert [optimizer.state[weight]["basis"].shape for weight in weights] == [(2, 8), (2, 8)]
    assert torch.equal(*results)


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
    with pytest.warns(RuntimeWarning, match="did not update the weight"):
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


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 4, "proj_type": "strd"}, {"rank": 4, "split": 3}])
def test_bad_group_is_refused_before_training(options: dict[str, Any]) -> None:
    good, bad = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
    optimizer = GaLoreAdamW([good])
    with pytest.raises(OptionError):
        optimizer.add_param_group({"params": [bad], **options})
    assert len(optimizer.param_groups) == 1


def test_refresh_finds_new_subspaces_at_the_next_step_alone() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(32, 16))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 3, "update_proj_gap": 100}], stagger=False)
    bases = []
    for step in range(5):
        if step == 3:
            optimizer.refresh()
        weight.grad = torch.randn(32, 16)
        optimizer.step()
        bases.append(optimizer.state[weight]["basis"].clone())
    assert torch.equal(bases[1], bases[2])
    assert not torch.equal(bases[2], bases[3])
    assert torch.equal(bases[3], bases[4])
    assert optimizer.state[weight]["refresh_at"] == 100


def test_refresh_before_the_first_step_changes_nothing() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(32, 16))
    optimizer = GaLoreAdamW([{"params": [weight], "rank": 3}])
    optimizer.refresh()
    assert not optimizer.state
