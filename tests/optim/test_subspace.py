from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scgalore.optim.subspace import (
    BASIS_METHODS,
    PROJECTION_DEFAULTS,
    Slot,
    blocks,
    current_bases,
    is_projected,
    state_dtype,
)

GROUP = {**PROJECTION_DEFAULTS, "rank": 4, "basis": "warm", "moments": "rotate", "lazy": False, "seed": 0}


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("shape", "split", "expected"),
    [
        ((8, 8), 1, True),
        ((8, 4), 1, False),
        ((4, 8), 1, False),
        ((24, 8), 3, True),
        ((12, 8), 3, False),
        ((8,), 1, False),
        ((8, 8, 8), 1, False),
        ((), 1, False),
    ],
)
def test_only_matrices_above_the_rank_are_projected(shape: tuple[int, ...], split: int, expected: bool) -> None:
    param = nn.Parameter(torch.zeros(shape))
    assert is_projected(param, {"rank": 4, "split": split}) is expected
    assert is_projected(param, {}) is False


def test_blocks_are_views() -> None:
    weight = torch.zeros(6, 4)
    blocks(weight, 3)[1] += 1
    assert torch.equal(weight.sum(1), torch.tensor([0.0, 0, 4, 4, 0, 0]))
    assert blocks(weight, 1) is weight


def test_state_is_single_precision_for_half_precision_weights() -> None:
    wanted = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float64: torch.float64}
    assert {dtype: state_dtype(dtype) for dtype in wanted} == wanted


def test_refreshes_fall_on_the_weights_own_steps() -> None:
    state: dict[str, object] = {}
    due = []
    for step in range(50):
        before = state.get("basis")
        current_bases(GROUP, state, torch.randn(8, 8), Slot(number=0, offset=7))
        if state["basis"] is not before:
            due.append(step)
        state["step"] = step + 1
    assert due == [0, 13, 33]


def test_unusable_gradient_leaves_an_empty_state() -> None:
    state: dict[str, object] = {}
    for grad in (torch.zeros(8, 8), torch.full((8, 8), torch.nan), torch.full((8, 8), torch.inf)):
        assert current_bases(GROUP, state, grad, Slot(0, 0)) is None
    assert state == {}


def right_basis(grad: Tensor, state: dict[str, Any] | None = None, number: int = 0, **options: Any) -> Tensor:
    bases = current_bases({**GROUP, **options}, {} if state is None else state, grad, Slot(number, 0))
    assert bases is not None
    assert bases.right is not None
    return bases.right


@pytest.mark.parametrize("basis", ["warm", "randomized", "random"])
def test_equal_seed_and_number_give_equal_bases(basis: str) -> None:
    grad = torch.randn(8, 8)
    first = right_basis(grad, basis=basis)
    assert torch.equal(first, right_basis(grad, basis=basis))
    assert not torch.equal(first, right_basis(grad, basis=basis, number=1))
    assert not torch.equal(first, right_basis(grad, basis=basis, seed=1))
    assert torch.isfinite(right_basis(grad, basis=basis, number=3, seed=2**63)).all()


@pytest.mark.parametrize("basis", BASIS_METHODS)
def test_refresh_with_the_same_gradient_is_new_only_where_it_is_drawn_anew(basis: str) -> None:
    # A gradient of the rank of the basis leaves no choice of the subspace to those that look at it.
    grad = torch.randn(12, 4) @ torch.randn(4, 10)
    state: dict[str, Any] = {}
    first = right_basis(grad, state, basis=basis)
    state["step"] = state["refresh_at"]
    second = right_basis(grad, state, basis=basis)
    same_subspace = float((first @ second.T).square().sum()) == pytest.approx(4, abs=1e-3)
    assert same_subspace == (basis != "random")
    assert torch.allclose(first, second, atol=1e-3) == (basis == "svd")


def test_a_basis_improves_from_refresh_to_refresh_only_when_it_starts_warm() -> None:
    grad = torch.randn(40, 40) / torch.arange(1, 41)
    best = float(torch.linalg.svdvals(grad)[:4].square().sum())
    captured: dict[str, list[float]] = {}
    for basis in ("warm", "randomized"):
        state: dict[str, Any] = {}
        captured[basis] = []
        for _ in range(8):
            right = right_basis(grad, state, basis=basis)
            captured[basis].append(float((grad @ right.T).square().sum()) / best)
            state["step"] = state["refresh_at"]
    assert captured["warm"][0] < captured["randomized"][0] < captured["warm"][-1]
    assert captured["warm"] == sorted(captured["warm"])
    assert captured["randomized"] != sorted(captured["randomized"])


@pytest.mark.parametrize("shape", [(9, 12), (12, 9)])
@pytest.mark.parametrize("proj_type", ["std", "full"])
def test_rank_may_grow_and_shrink_between_refreshes(shape: tuple[int, int], proj_type: str) -> None:
    state: dict[str, Any] = {}
    for rank in (4, 6, 3):
        group = {**GROUP, "rank": rank, "proj_type": proj_type}
        bases = current_bases(group, state, torch.randn(shape), Slot(0, 0))
        assert bases is not None
        assert {side.shape[0] for side in bases if side is not None} == {rank}
        state["step"] = state["refresh_at"]
        assert rank in state["exp_avg"].shape
        assert state["exp_avg_sq"].shape == state["exp_avg"].shape
