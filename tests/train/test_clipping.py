import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgalore.train.clipping import clip_by_norm_


def gradients(seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator) for shape in ((5, 3), (4,), (), (2, 3, 4))]


@given(seed=st.integers(0, 1000), max_norm=st.floats(1e-3, 100.0), scale=st.floats(1e-3, 1e3))
def test_does_what_torch_does(seed: int, max_norm: float, scale: float) -> None:
    ours, theirs = gradients(seed, scale), [torch.nn.Parameter(grad.clone()) for grad in gradients(seed, scale)]
    for param in theirs:
        param.grad = param.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert clip_by_norm_(ours, max_norm).item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, param in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, param.grad)


@given(seed=st.integers(0, 1000), n_rows=st.integers(1, 300))
def test_rows_of_zeros_change_no_bit(seed: int, n_rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, others = torch.randn((n_rows, 16), generator=generator), gradients(seed)
    table = torch.zeros((3 * n_rows, 16))
    places = torch.randperm(3 * n_rows, generator=generator)[:n_rows].sort().values
    table[places] = rows
    sliced, full = [rows, *others], [table, *(grad.clone() for grad in others)]
    assert clip_by_norm_(sliced, 0.1) == clip_by_norm_(full, 0.1)
    assert torch.equal(full[0][places], sliced[0])
    assert all(torch.equal(a, b) for a, b in zip(sliced[1:], full[1:], strict=True))


def test_small_gradients_stay_as_they_are() -> None:
    small = gradients(0, 1e-3)
    before = [grad.clone() for grad in small]
    clip_by_norm_(small, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(small, before, strict=True))
