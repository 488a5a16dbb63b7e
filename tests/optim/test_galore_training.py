from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.optim.problems import Regression, make_batch, make_network, make_optimizer, train
from torch import Tensor, nn

from scgalore.optim import GaLoreAdamW


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_trains_in_each_precision(dtype: torch.dtype) -> None:
    network = make_network(dtype)
    optimizer = make_optimizer(network)
    losses = [sum(train(network, optimizer, range(8))) for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]
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
    optimizers = [make_optimizer(network, lr=1e-3) for network in networks]
    for step in range(20):
        inputs, classes = make_batch(step, 64)
        nn.functional.cross_entropy(networks[0](inputs), classes).backward()
        for half in (slice(32), slice(32, 64)):
            (nn.functional.cross_entropy(networks[1](inputs[half]), classes[half]) / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for a, b, start in zip(*(network.parameters() for network in (*networks, make_network())), strict=True):
        assert (a - start).abs().max() > 0.005
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_clipped_gradients_train_alike_whatever_their_size() -> None:
    networks = make_network(), make_network()
    for network, factor in zip(networks, (1, 512), strict=True):
        optimizer = make_optimizer(network)
        for step in range(8):
            inputs, classes = make_batch(step)
            optimizer.zero_grad()
            (factor * nn.functional.cross_entropy(network(inputs), classes)).backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), 0.01)
            assert norm > 0.01
            optimizer.step()
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


schedulers = torch.optim.lr_scheduler
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one cycle": lambda o: schedulers.OneCycleLR(o, max_lr=1e-2, total_steps=12, cycle_momentum=False),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, T_max=12),
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 0.5**step),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, factor=0.5, patience=1),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_each_step_has_the_learning_rate_of_the_schedule(schedule: Callable[[torch.optim.Optimizer], Any]) -> None:
    # For gradients that do not hang on the weights, the steps at a constant rate of one give those at any other rates.
    grads = torch.randn(12, 2, 16, 12)

    def steps(make_schedule: Callable[[torch.optim.Optimizer], Any] | None, lr: float) -> tuple[list[float], Tensor]:
        projected, plain = nn.Parameter(torch.zeros(16, 12)), nn.Parameter(torch.zeros(16, 12))
        group = {"params": [projected], "rank": 3, "update_proj_gap": 4}
        optimizer = GaLoreAdamW([group, {"params": [plain]}], lr=lr)
        scheduler = make_schedule(optimizer) if make_schedule else None
        rates, weights = [], [torch.zeros(2, 16, 12)]
        for projected.grad, plain.grad in grads:
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if scheduler is not None:
                # A metric that never gets better.
                scheduler.step(*((1.0,) if isinstance(scheduler, schedulers.ReduceLROnPlateau) else ()))
            weights.append(torch.stack([projected.detach().clone(), plain.detach().clone()]))
        return rates, torch.stack(weights).diff(dim=0)

    _, unit = steps(None, lr=1.0)
    rates, scheduled = steps(schedule, lr=1e-2)
    assert len(set(rates)) > 3
    torch.testing.assert_close(scheduled, torch.tensor(rates)[:, None, None, None] * unit, rtol=0, atol=1e-6)


def test_one_cycle_changes_the_momentum_as_it_does_for_adamw() -> None:
    grads = torch.randn(12, 6, 4)
    results = []
    for make in (GaLoreAdamW, lambda groups: torch.optim.AdamW(groups, weight_decay=0.0, fused=True)):
        plain, projected = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(6, 4))
        optimizer = make([{"params": [plain]}, {"params": [projected], "rank": 2}])
        schedule = schedulers.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12, base_momentum=0.5)
        for grad in grads:
            plain.grad, projected.grad = grad.clone(), grad.clone()
            optimizer.step()
            schedule.step()
        assert projected.isfinite().all()
        results.append(plain.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_module_trains_like_a_plain_one(backend: str) -> None:
    networks = make_network(), make_network()
    compiled: Any = torch.compile(networks[1], backend=backend)
    for module in (networks[0], compiled):
        optimizer = make_optimizer(module)
        assert [group["name"] for group in optimizer.param_groups] == ["galore", "adamw", "adamw-no-decay"]
        train(module, optimizer, range(8))
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (1, 1), (1, 9), (9, 1), (2, 2), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_and_odd_shapes_are_trained(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    param = nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = GaLoreAdamW([{"params": [param], "rank": 1}], lr=0.1)
    for _ in range(3):
        param.grad = torch.rand(shape).to(dtype) + 0.5
        optimizer.step()
    # Each step is about lr, since the gradients have one sign.
    torch.testing.assert_close(param.detach().float(), torch.full(shape, 0.7), rtol=0, atol=0.1)


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
    optimizer = GaLoreAdamW([{"params": [used, unused], "rank": 2}], weight_decay=0.1)
    before = unused.detach().clone()
    used.grad = torch.randn(8, 8)
    optimizer.step()
    assert torch.equal(unused, before)
    assert set(optimizer.state) == {used}
