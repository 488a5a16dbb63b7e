import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scgalore.nn import favor
from scgalore.nn.favor import EPS, attend_by_features, orthogonal_features


def written_down(q, k, v, projection, padding=None):
    """The formulas with all features of all tokens, one cell at a time, in the order of the paper."""
    cells = []
    for row in range(len(q)):
        real = slice(None) if padding is None else ~padding[row]
        keys, values = k[row][:, real], v[row][:, real]
        e, m = projection.shape[1], len(projection)

        def exponents(x, e=e):
            return x @ projection.T * e**-0.25, x.square().sum(-1, keepdim=True) / 2 / math.sqrt(e)

        dash, half = exponents(q[row])
        of_queries = ((dash - half - dash.max(-1, keepdim=True).values).exp() + EPS) / math.sqrt(m)
        dash, half = exponents(keys)
        of_keys = ((dash - half - dash.max()).exp() + EPS) / math.sqrt(m)
        weights = of_queries @ of_keys.transpose(-1, -2)
        cells.append(weights @ values / weights.sum(-1, keepdim=True))
    return torch.stack(cells)


def inputs(b, h, s, e, m, *, seed=0, scale=1.0, t=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        (scale * torch.randn(b, h, n, e, generator=generator, dtype=dtype)).requires_grad_()
        for n in (s if t is None else t, s, s)
    )
    return q, k, v, orthogonal_features(m, e, generator).to(dtype)


@pytest.fixture(params=[1, 7, 1000])
def _chunks(request, monkeypatch):
    """Tokens of a chunk, in the sizes below."""
    monkeypatch.setattr(favor, "CHUNK", {True: request.param * 2 * 10, False: request.param * 2 * 10})


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("t", [None, 1])
def test_results_and_gradients_are_those_of_the_formulas(padded, t):
    q, k, v, projection = inputs(3, 2, 23, 8, 10, t=t, scale=1.5)
    padding = torch.arange(23) >= torch.tensor([23, 5, 14])[:, None] if padded else None
    weights = torch.randn(3, 2, 23 if t is None else t, 8, dtype=torch.float64)
    expected = written_down(q, k, v, projection, padding)
    gradients = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    found = attend_by_features(q, k, v, projection, padding)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((found * weights).sum(), (q, k, v)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_a_cell_has_the_same_bits_in_any_batch():
    q, k, v, projection = inputs(4, 2, 30, 8, 10, dtype=torch.float32)
    together = attend_by_features(q, k, v, projection)
    for row in (3, 0):
        one = slice(row, row + 1)
        assert torch.equal(attend_by_features(q[one], k[one], v[one], projection), together[one])


def test_cells_that_are_visited_together_are_the_same(monkeypatch):
    q, k, v, projection = inputs(4, 2, 30, 8, 10)
    padding = torch.arange(30) >= torch.tensor([30, 5, 14, 1])[:, None]
    expected = attend_by_features(q, k, v, projection, padding)
    gradients = torch.autograd.grad(expected.square().sum(), (q, k, v))
    monkeypatch.setattr(favor, "_cells", lambda x: [slice(None)])  # as on a GPU
    found = attend_by_features(q, k, v, projection, padding)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(torch.autograd.grad(found.square().sum(), (q, k, v)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_padding_does_not_matter_and_gets_no_gradient():
    q, k, v, projection = inputs(2, 2, 12, 8, 10)
    padding = torch.arange(12) >= torch.tensor([12, 4])[:, None]
    alone = attend_by_features(q[1:, :, :4], k[1:, :, :4], v[1:, :, :4], projection)
    found = attend_by_features(q, k, v, projection, padding)
    torch.testing.assert_close(found[1:, :, :4], alone, rtol=1e-10, atol=1e-12)
    _, dk, dv = torch.autograd.grad(found[:, :, :4].square().sum(), (q, k, v))
    assert not dk[1, :, 4:].any()
    assert not dv[1, :, 4:].any()
    assert dk[1, :, :4].any()


def test_what_is_kept_does_not_grow_with_the_features():
    def kept(m):
        q, k, v, projection = inputs(1, 2, 400, 8, m)
        saved = {}

        def note(tensor):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            attend_by_features(q, k, v, projection)
        return sum(saved.values())

    one_map = 8 * 2 * 400 * 64  # features of all tokens
    assert kept(64) - kept(16) < one_map / 4


def test_many_features_are_near_softmax_attention_where_logits_are_small():
    q, k, v, projection = inputs(1, 2, 40, 16, 4096, scale=0.5)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    few = attend_by_features(q, k, v, projection[:16])
    many = attend_by_features(q, k, v, projection)
    assert (many - exact).norm() < 0.1 * exact.norm()
    assert (many - exact).norm() < (few - exact).norm() / 4


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 1000))
def test_features_are_orthogonal_in_blocks(m, e, seed):
    drawn = orthogonal_features(m, e, torch.Generator().manual_seed(seed))
    assert drawn.shape == (m, e)
    for start in range(0, m, e):
        block = torch.nn.functional.normalize(drawn[start : start + e], dim=1)
        torch.testing.assert_close(block @ block.T, torch.eye(len(block)), rtol=0, atol=1e-4)
    again = orthogonal_features(m, e, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn, again)


def test_features_have_the_lengths_of_gaussian_vectors():
    drawn = orthogonal_features(4000, 16, torch.Generator().manual_seed(0))
    squares = drawn.square().sum(dim=1)
    assert squares.mean() == pytest.approx(16, rel=0.05)
    assert squares.var() == pytest.approx(32, rel=0.15)
