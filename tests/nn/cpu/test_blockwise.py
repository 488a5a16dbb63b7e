import pytest
import torch

from scgalore.nn.cpu import blockwise
from scgalore.nn.cpu.blockwise import attend_in_blocks


def inputs(b, h, t, s, e, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(b, n, h, e, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for n in (t, s, s)
    ]


def by_hand(q, k, v, attended=None):
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if attended is not None:
        scores = scores.masked_fill(~attended, -torch.inf)
    return scores.softmax(dim=-1) @ v


@pytest.fixture(params=[(256, 2**21), (4, 2**21), (4, 70)], ids=["one block", "blocks of queries", "a cell at a time"])
def sizes(request, monkeypatch):
    monkeypatch.setattr(blockwise, "_QUERIES", request.param[0])
    monkeypatch.setattr(blockwise, "_SCORES", request.param[1])


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 2, 11, 11, 4), (2, 2, 1, 9, 4), (1, 1, 1, 1, 8)], ids=str)
def test_values_and_gradients_are_those_of_the_definition(shape, masked):
    b, _, t, s, _ = shape
    # In float64 the blocks are held against the definition; on what data they are used does not matter here.
    q, k, v = inputs(*shape)
    attended = None
    if masked:
        attended = torch.ones(b, 1, 1, s, dtype=torch.bool)
        attended[0, ..., s // 2 + 1 :] = False
    ours, expected = attend_in_blocks(q, k, v, attended), by_hand(q, k, v, attended)
    torch.testing.assert_close(ours, expected)
    pull = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(ours, (q, k, v), pull), torch.autograd.grad(expected, (q, k, v), pull), strict=True
    ):
        # Sums over blocks are kept in float32.
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_as_close_as_its_rounding():
    q, k, v = inputs(2, 4, 300, 300, 16, torch.bfloat16)
    ours, pull = attend_in_blocks(q, k, v), torch.randn(2, 4, 300, 16)
    exact = [part.detach().double().requires_grad_() for part in (q, k, v)]
    expected = by_hand(*exact)
    assert ours.dtype == torch.bfloat16
    pairs = [(ours, expected)]
    grads = torch.autograd.grad(ours, (q, k, v), pull.bfloat16())
    pairs += zip(grads, torch.autograd.grad(expected, exact, pull.double()), strict=True)
    for a, e in pairs:
        assert (a.double() - e).norm() < 0.01 * e.norm()


def test_only_the_inputs_and_the_result_are_kept_for_the_backward_pass():
    kept = []
    q, k, v = inputs(1, 2, 64, 64, 4)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        mixed = attend_in_blocks(q, k, v)
    assert sum(kept) == 4 * mixed.nbytes
