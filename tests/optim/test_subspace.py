import pytest
import torch
from torch import nn

from scgalore.optim.subspace import PROJECTION_DEFAULTS, Slot, blocks, current_bases, is_projected, state_dtype

GROUP = {**PROJECTION_DEFAULTS, "rank": 4, "basis": "warm", "moments": "rotate", "seed": 0}


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


def test_equal_seed_and_number_give_equal_bases() -> None:
    grad = torch.randn(8, 8)

    def basis(number: int, seed: int) -> torch.Tensor:
        bases = current_bases({**GROUP, "seed": seed}, {}, grad, Slot(number, 0))
        assert bases is not None
        assert bases.right is not None
        return bases.right

    assert torch.equal(basis(0, 0), basis(0, 0))
    assert not torch.equal(basis(0, 0), basis(1, 0))
    assert not torch.equal(basis(0, 0), basis(0, 1))
    assert torch.isfinite(basis(3, 2**63)).all()
