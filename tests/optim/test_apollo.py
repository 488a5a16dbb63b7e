"""ApolloAdamW against a plain transcription of the paper's algorithm, and what must not change its steps."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.optim.problems import Regression
from torch import Tensor, nn

from scgalore.errors import OptionError
from scgalore.optim import ApolloAdamW, GaLoreAdamW, build_optimizer, param_groups
from scgalore.optim.projector import random_projection, sides_of

SHAPES = [(6, 11), (11, 6), (8, 8)]


def projection(shape: tuple[int, int], rank: int, number: int, refresh: int, seed: int = 0) -> Tensor:
    """P of shape (rank, smaller side) for a float64 weight."""
    m, n = shape
    left, right = random_projection(
        torch.empty(shape, dtype=torch.float64), rank, sides_of(m, n, "std"), (seed, number, refresh)
    )
    drawn = right if left is None else left
    assert drawn is not None
    return drawn


def algorithm_1(
    weight: Tensor,
    grads: list[Tensor],
    *,
    rank: int,
    lr: float,
    scale: float,
    gap: int,
    tensorwise: bool,
    decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    gamma: float | None = 1.01,
    number: int = 0,
) -> list[Tensor]:
    """Algorithm 1 of arXiv:2412.05270, entry by entry, for a weight with m <= n."""
    m, n = weight.shape
    assert m <= n
    w = weight.clone()
    first, second = torch.zeros(rank, n, dtype=w.dtype), torch.zeros(rank, n, dtype=w.dtype)
    last, path = None, []
    for t, g in enumerate(grads, start=1):
        p = projection((m, n), rank, number, (t - 1) // gap)
        r = torch.zeros_like(first)
        for k in range(rank):
            for j in range(n):
                r[k, j] = sum(p[k, i] * g[i, j] for i in range(m))
        first = betas[0] * first + (1 - betas[0]) * r
        second = betas[1] * second + (1 - betas[1]) * r**2
        adam = (first / (1 - betas[0] ** t)) / ((second / (1 - betas[1] ** t)).sqrt() + eps)
        scaled = torch.zeros_like(g)
        for j in range(n):
            s = adam.norm() / r.norm() if tensorwise else adam[:, j].norm() / r[:, j].norm()
            scaled[:, j] = s * g[:, j]
        if gamma is not None and last is not None and scaled.norm() / last > gamma:
            scaled = scaled / scaled.norm() * gamma * last
        last = scaled.norm()
        w = w - lr * scale * scaled - lr * decay * w
        path.append(w)
    return path


def gradients(shape: tuple[int, int], n_steps: int, seed: int = 0) -> list[Tensor]:
    """Gradients that shrink and grow, so that the limit on growth is met and not met."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(n_steps)]
    return [grad * 10.0 ** (step % 3 - 1) for step, grad in enumerate(drawn)]


def path_of(weight: Tensor, grads: list[Tensor], group: dict[str, Any], **options: Any) -> list[Tensor]:
    param = nn.Parameter(weight.clone())
    optimizer = ApolloAdamW([{"params": [param], **group}], **options)
    path = []
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
        path.append(param.detach().clone())
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tensorwise", [False, True])
@pytest.mark.parametrize("gamma", [1.01, None])
def test_weights_are_those_of_the_algorithm(shape: tuple[int, int], tensorwise: bool, gamma: float | None) -> None:
    rank = 1 if tensorwise else 3
    weight, grads = torch.randn(shape, dtype=torch.float64), gradients(shape, 9)
    group = {"rank": rank, "update_proj_gap": 4, "scale": 1.7}
    options: dict[str, Any] = {"lr": 0.03, "weight_decay": 0.1, "max_growth": gamma}
    found = path_of(weight, grads, group, **options, scale_type="tensor" if tensorwise else "channel")
    lying = shape[0] < shape[1]  # rows are the channels of a square one
    expected = algorithm_1(
        weight if lying else weight.T,
        grads if lying else [grad.T for grad in grads],
        rank=rank,
        lr=0.03,
        scale=1.7,
        gap=4,
        tensorwise=tensorwise,
        decay=0.1,
        gamma=gamma,
    )
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, other if lying else other.T, rtol=1e-12, atol=1e-12, msg=f"step {step}")
    assert (found[-1] - weight).norm() > 0.1


def test_raw_gradient_is_scaled_and_not_its_projection() -> None:
    weight, grad = torch.zeros(8, 12, dtype=torch.float64), torch.randn(8, 12, dtype=torch.float64)
    (after,) = path_of(weight, [grad], {"rank": 2}, lr=1.0)
    # Each column of the step is a column of the gradient by a positive number; a projected one has rank 2.
    cosines = nn.functional.cosine_similarity(-after, grad, dim=0)
    torch.testing.assert_close(cosines, torch.ones(12, dtype=torch.float64))
    assert torch.linalg.matrix_rank(after) == 8


def test_packed_weight_is_three_weights_with_one_draw() -> None:
    shape, grads = (12, 9), gradients((12, 9), 6)
    weight = torch.randn(shape, dtype=torch.float64)
    group = {"rank": 2, "update_proj_gap": 100}
    packed = path_of(weight, grads, {**group, "split": 3}, lr=0.1)
    whole = path_of(weight, grads, group, lr=0.1)
    assert (packed[-1] - whole[-1]).norm() > 0.1
    sizes = [1e-3, 1.0, 1e3]
    unequal = [torch.cat([part * size for part, size in zip(grad.chunk(3), sizes, strict=True)]) for grad in grads]
    found = path_of(weight, unequal, {**group, "split": 3}, lr=0.1, eps=1e-16)
    # Each block is normalised by itself, in the limit on growth too.
    torch.testing.assert_close(found[-1], path_of(weight, grads, {**group, "split": 3}, lr=0.1, eps=1e-16)[-1])


class TestInvariances:
    @given(size=st.floats(1e-6, 1e6), tensorwise=st.booleans())
    def test_size_of_all_gradients_changes_nothing(self, size: float, tensorwise: bool) -> None:
        weight, grads = torch.ones(5, 7, dtype=torch.float64), gradients((5, 7), 5)
        options: dict[str, Any] = {"lr": 0.1, "eps": 1e-30, "scale_type": "tensor" if tensorwise else "channel"}
        group = {"rank": 2, "update_proj_gap": 2}
        found = path_of(weight, [size * grad for grad in grads], group, **options)
        torch.testing.assert_close(found[-1], path_of(weight, grads, group, **options)[-1], rtol=1e-9, atol=1e-9)

    @given(sizes=st.lists(st.floats(1e-3, 1e3), min_size=7, max_size=7))
    def test_size_of_a_channel_changes_nothing(self, sizes: list[float]) -> None:
        weight, grads = torch.ones(5, 7, dtype=torch.float64), gradients((5, 7), 5)
        by_channel = torch.tensor(sizes, dtype=torch.float64)
        options: dict[str, Any] = {"lr": 0.1, "eps": 1e-30}
        found = path_of(weight, [grad * by_channel for grad in grads], {"rank": 2}, **options)
        torch.testing.assert_close(found[-1], path_of(weight, grads, {"rank": 2}, **options)[-1], rtol=1e-9, atol=1e-9)

    @given(order=st.permutations(range(7)), tensorwise=st.booleans())
    def test_order_of_channels_changes_nothing(self, order: list[int], tensorwise: bool) -> None:
        weight, grads = torch.randn(5, 7, dtype=torch.float64), gradients((5, 7), 5)
        options: dict[str, Any] = {"lr": 0.1, "scale_type": "tensor" if tensorwise else "channel"}
        found = path_of(weight[:, order], [grad[:, order] for grad in grads], {"rank": 2}, **options)
        torch.testing.assert_close(found[-1], path_of(weight, grads, {"rank": 2}, **options)[-1][:, order])

    @given(growth=st.floats(1.0, 3.0), seed=st.integers(0, 99))
    def test_no_step_grows_by_more_than_the_limit(self, growth: float, seed: int) -> None:
        weight = torch.zeros(5, 7, dtype=torch.float64)
        path = path_of(weight, gradients((5, 7), 8, seed), {"rank": 2}, lr=1.0, max_growth=growth)
        steps = [(b - a).norm() for a, b in zip([weight, *path], path, strict=False)]
        assert all(after <= growth * before * (1 + 1e-9) for before, after in zip(steps, steps[1:], strict=False))


def test_steps_have_the_size_of_adamws() -> None:
    # scale="auto"; without it, at rank 16 of 64, they would be half of that.
    weight, grads = torch.zeros(64, 64), [torch.randn(64, 64, generator=torch.Generator().manual_seed(0))]
    (found,) = path_of(weight, grads, {"rank": 16}, lr=1.0)
    assert float(found.norm()) == pytest.approx(64, rel=0.2)


@pytest.mark.parametrize("scale_type", ["channel", "tensor"])
@pytest.mark.parametrize("shape", SHAPES)
def test_regression_is_learnt(shape: tuple[int, int], scale_type: Any) -> None:
    problem = Regression(shape)
    before = problem.loss().item()
    group = {"params": [problem.weight], "rank": 2, "update_proj_gap": 20}
    problem.run(ApolloAdamW([group], lr=3e-2, scale_type=scale_type), 300)
    assert problem.loss().item() < 0.05 * before


def test_projection_changes_with_seed_parameter_and_refresh_alone() -> None:
    drawn = {
        (number, refresh, seed): projection((6, 11), 3, number, refresh, seed)
        for number in range(2)
        for refresh in range(2)
        for seed in range(2)
    }
    torch.manual_seed(1)  # no draw comes from the generator of the process
    for (number, refresh, seed), one in drawn.items():
        assert torch.equal(one, projection((6, 11), 3, number, refresh, seed))
        assert sum(torch.equal(one, other) for other in drawn.values()) == 1


def test_projection_keeps_norms_on_average() -> None:
    vector = torch.randn(200, 300, dtype=torch.float64)
    (left, _) = random_projection(vector, 50, sides_of(200, 300, "std"), [0])
    assert left is not None
    assert float(left.square().mean()) * 50 == pytest.approx(1, rel=0.05)
    assert float((left @ vector).norm()) == pytest.approx(float(vector.norm()), rel=0.05)


# ---- gradients that are not as they should be ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradient_that_is_not_finite_changes_nothing_and_warns_once(bad: float) -> None:
    weight = nn.Parameter(torch.randn(6, 8))
    optimizer = ApolloAdamW([{"params": [weight], "rank": 2}], lr=0.1, weight_decay=0.1)
    weight.grad = torch.randn(6, 8)
    optimizer.step()
    before, state = weight.detach().clone(), {k: torch.as_tensor(v).clone() for k, v in optimizer.state[weight].items()}
    weight.grad[2, 3] = bad
    with pytest.warns(RuntimeWarning, match=r"ApolloAdamW found NaN.*shown once") as caught:
        optimizer.step()
    assert [warning.filename for warning in caught] == [__file__]
    optimizer.step()  # in silence: a warning is an error here
    assert torch.equal(weight, before)
    assert all(torch.equal(torch.as_tensor(optimizer.state[weight][key]), value) for key, value in state.items())


def test_gradient_of_zero_neither_moves_nor_limits() -> None:
    weight, grads = torch.zeros(5, 7, dtype=torch.float64), gradients((5, 7), 2)
    zero = torch.zeros_like(weight)
    path = path_of(weight, [zero, grads[0], zero, grads[1]], {"rank": 2}, lr=1.0)
    assert torch.equal(path[0], weight)
    assert torch.equal(path[2], path[1])
    steps = path[1].norm(), (path[3] - path[2]).norm()
    assert 0.1 < steps[1] / steps[0] <= 1.01 + 1e-9


@pytest.mark.parametrize("size", [1e-10, 1e-25, 1e-40])
def test_tiny_channel_is_not_blown_up(size: float) -> None:
    weight, grads = torch.zeros(5, 7), [grad.float() for grad in gradients((5, 7), 3)]
    for grad in grads[1:]:
        grad[:, 2] *= size
    path = path_of(weight, grads, {"rank": 2}, lr=1.0, max_growth=None)
    assert path[-1].isfinite().all()
    assert path[-1][:, 2].abs().max() < 100


def test_half_precision_weights_have_state_in_float32() -> None:
    weight = nn.Parameter(torch.randn(6, 8, dtype=torch.bfloat16))
    before = weight.detach().clone()
    optimizer = ApolloAdamW([{"params": [weight], "rank": 2}], lr=0.1)
    weight.grad = torch.randn(6, 8, dtype=torch.bfloat16)
    optimizer.step()
    assert weight.dtype == torch.bfloat16
    assert not torch.equal(weight, before)
    kept = {value.dtype for value in optimizer.state[weight].values() if isinstance(value, Tensor)}
    assert kept == {torch.float32}


# ---- what it is built on ---------------------------------------------------------------------------------------------


def test_matrices_are_those_of_galore_and_the_rest_is_adamws() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 3))

    ours, galore, adamw = network(), network(), network()
    optimizers = [
        ApolloAdamW(param_groups(ours, rank=4), lr=0.1),
        GaLoreAdamW(param_groups(galore, rank=4), lr=0.1),
        torch.optim.AdamW(adamw.parameters(), lr=0.1, weight_decay=0.0),
    ]
    for module, optimizer in zip((ours, galore, adamw), optimizers, strict=True):
        for seed, param in enumerate(module.parameters()):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    projected = [name for name, param in galore.named_parameters() if "basis" in optimizers[1].state[param]]
    assert projected == [name for name, param in ours.named_parameters() if "norm" in optimizers[0].state[param]]
    assert projected == ["1.weight"]
    for (name, a), b in zip(ours.named_parameters(), adamw.parameters(), strict=True):
        if name in projected:
            assert not torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["apollo", "apollo-mini"])
def test_matrices_of_the_registry_are_those_of_galore(name: str) -> None:
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10), nn.Linear(10, 1))
    chosen = [
        [group["param_names"] for group in build_optimizer(which, network).param_groups if "rank" in group]
        for which in (name, "galore")
    ]
    assert chosen[0] == chosen[1] == [["0.weight"]]


@pytest.mark.parametrize("name", ["apollo", "apollo-mini"])
def test_groups_of_the_registry_are_named_after_it(name: str) -> None:
    module = nn.ModuleDict({"Wqkv": nn.Linear(16, 48), "out": nn.Linear(16, 16)})
    groups = build_optimizer(name, module).param_groups
    assert [group["name"] for group in groups] == ["apollo", "apollo-qkv", "adamw-no-decay"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_type": "rows"}, "scale_type='rows'.*'channel', 'tensor'"),
        ({"max_growth": 0.9}, "max_growth=0.9: expected a number >= 1, or None"),
        ({"max_growth": True}, "max_growth=True"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 0}, "rank=0"),
        ({"proj_type": "full"}, "proj_type='full': expected one side"),
        ({"update_proj_gap": 0}, "update_proj_gap=0"),
        ({"overrides": {"weight": {"proj_type": "full"}}}, "proj_type='full'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_optimizer("apollo", nn.Linear(16, 16, bias=False), **options)
