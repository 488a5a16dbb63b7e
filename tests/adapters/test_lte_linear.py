import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from scgalore.adapters.lte_linear import LTELinear


def layer(*, n_heads=3, rank=2, alpha=6.0, d_in=5, d_out=4, bias=True, seed=0):
    """A layer whose factors and merged factors all differ."""
    generator = torch.Generator().manual_seed(seed)
    base = nn.Linear(d_in, d_out, bias=bias, dtype=torch.float64).requires_grad_(False)
    made = LTELinear(base, n_heads=n_heads, rank=rank, alpha=alpha, generator=generator)
    with torch.no_grad():
        for tensor in (*base.parameters(), made.A, made.B, made.A_merged, made.B_merged):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 3)
    return made


def weight_of_head(made, n):
    """What head n multiplies by, as the paper writes it."""
    return made.base.weight + made.scale * (made.B[n] @ made.A[n] - made.B_merged[n] @ made.A_merged[n])


def rows_of_head(b, n_heads, n):
    return [j for j in range(b) if j * n_heads // b == n]


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Forward ----------------------------------------------------------------------------------------------------------


@given(
    b=st.integers(1, 9),
    between=st.lists(st.integers(1, 3), max_size=2),
    n_heads=st.integers(1, 5),
    rank=st.integers(1, 4),
    bias=st.booleans(),
)
def test_each_cell_is_multiplied_by_the_weight_of_its_head(b, between, n_heads, rank, bias):
    made = layer(n_heads=n_heads, rank=rank, bias=bias)
    x = draw(b, *between, 5)
    y = made(x)
    assert y.shape == (b, *between, 4)
    for n in range(n_heads):
        rows = rows_of_head(b, n_heads, n)
        torch.testing.assert_close(
            y[rows], F.linear(x[rows], weight_of_head(made, n), made.base.bias), rtol=0, atol=1e-12
        )


@given(b=st.integers(1, 40), n_heads=st.integers(1, 12))
def test_shards_are_contiguous_and_as_equal_as_can_be(b, n_heads):
    sizes = [len(rows_of_head(b, n_heads, n)) for n in range(n_heads)]
    assert sum(sizes) == b
    assert max(sizes) - min(sizes) <= 1
    made = layer(n_heads=n_heads)
    with torch.no_grad():  # head n adds n to every output of its cells
        for tensor in (made.base.weight, made.base.bias, made.A, made.B_merged):
            tensor.zero_()
        made.A[:, 0, 0] = 1 / made.scale
        made.B.copy_(torch.arange(n_heads)[:, None, None].expand_as(made.B))
    heads = made(torch.eye(5, dtype=torch.float64)[:1].repeat(b, 1))[:, 0].round().long().tolist()
    assert [heads.count(n) for n in range(n_heads)] == sizes
    assert heads == sorted(heads)


@pytest.mark.parametrize("between", [(), (3,)])
def test_evaluation_multiplies_by_the_mean_over_heads(between):
    made = layer().eval()
    x = draw(7, *between, 5)
    mean = torch.stack([weight_of_head(made, n) for n in range(made.n_heads)]).mean(dim=0)
    torch.testing.assert_close(made(x), F.linear(x, mean, made.base.bias), rtol=0, atol=1e-12)


def test_evaluation_equals_training_where_all_heads_agree():
    made = layer(n_heads=4)
    with torch.no_grad():
        for tensor in (made.A, made.B, made.A_merged, made.B_merged):
            tensor.copy_(tensor[0].expand_as(tensor))
    x = draw(6, 2, 5)
    trained = made(x)
    torch.testing.assert_close(made.eval()(x), trained, rtol=0, atol=1e-12)


def test_a_fresh_layer_changes_nothing():
    base = nn.Linear(5, 4)
    x = torch.randn(6, 5)
    made = LTELinear(base, n_heads=3, rank=2, alpha=16.0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(made(x), base(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(made.eval()(x), base(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rank", "d_in"), [(2, 5), (4, 16)])
def test_first_factors_are_orthogonal_and_keep_the_size_of_what_they_read(rank, d_in):
    made = LTELinear(nn.Linear(d_in, 4), n_heads=3, rank=rank, alpha=1.0, generator=torch.Generator().manual_seed(0))
    gram = made.A @ made.A.mT
    torch.testing.assert_close(gram, (d_in / rank * torch.eye(rank)).expand_as(gram))
    assert not torch.allclose(made.A[0], made.A[1])
    assert not made.B.any()


# Gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [8, 7, 3, 2])
def test_gradient_of_a_head_is_that_of_the_mean_over_its_shard(b):
    made = layer(n_heads=4)
    x, wanted = draw(b, 2, 5), draw(b, 2, 4, seed=2)
    ((made(x) - wanted) ** 2).mean().backward()
    for n in range(4):
        rows = rows_of_head(b, 4, n)
        if not rows:
            assert not made.A.grad[n].any()
            assert not made.B.grad[n].any()
            continue
        y = F.linear(x[rows], weight_of_head(made, n), made.base.bias)
        a, c = torch.autograd.grad(((y - wanted[rows]) ** 2).mean(), (made.A, made.B))
        torch.testing.assert_close(made.A.grad[n], a[n], rtol=0, atol=1e-12)
        torch.testing.assert_close(made.B.grad[n], c[n], rtol=0, atol=1e-12)


def test_gradient_of_a_head_does_not_see_other_shards():
    made = layer(n_heads=2)
    x, other = draw(6, 5), draw(6, 5)
    other[3:] = draw(3, 5, seed=2)
    grads = [torch.autograd.grad(made(each).square().mean(), (made.A, made.B)) for each in (x, other)]
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
        assert not torch.equal(first[1], second[1])


def test_gradient_into_the_layer_before_is_not_scaled():
    made = layer(n_heads=2)
    x = draw(4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(made(x).sum(), x)
    for n in range(2):
        expected = weight_of_head(made, n).sum(dim=0).expand(2, 5)
        torch.testing.assert_close(gradient[rows_of_head(4, 2, n)], expected, rtol=0, atol=1e-12)


def test_half_precision_of_autocast_reaches_factors_as_float32():
    made = layer().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(draw(6, 2, 5).float())
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert made.A.grad.dtype == made.B.grad.dtype == torch.float32
    assert made.A.grad.abs().amin(dim=(1, 2)).all()


# Merging ----------------------------------------------------------------------------------------------------------


def test_merge_adds_the_mean_over_heads_and_training_goes_on_from_there():
    made = layer()
    expected = torch.stack([weight_of_head(made, n) for n in range(made.n_heads)]).mean(dim=0)
    made.merge()
    torch.testing.assert_close(made.base.weight, expected, rtol=0, atol=1e-12)
    for n in range(made.n_heads):  # no head counts its merged part twice
        torch.testing.assert_close(weight_of_head(made, n), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merge_and_unmerge_change_no_output_in_evaluation(dtype):
    made = layer().to(dtype).eval()
    x = draw(6, 5).to(dtype)
    made.unmerge()  # of factors that were never really merged
    before, weight = made(x), made.base.weight.clone()
    for step in (made.merge, made.merge, made.unmerge, made.unmerge, made.merge):
        step()
        torch.testing.assert_close(made(x), before, rtol=1e-6, atol=1e-6 if dtype == torch.float32 else 1e-12)
    made.unmerge()
    torch.testing.assert_close(made.base.weight, weight, rtol=0, atol=1e-6)


def test_memory_is_that_of_the_formula():
    n_heads, rank, d_in, d_out = 3, 2, 5, 4
    made = layer(n_heads=n_heads, rank=rank, d_in=d_in, d_out=d_out)
    factors = n_heads * rank * (d_in + d_out)
    assert sum(p.numel() for p in made.parameters() if p.requires_grad) == factors
    assert sum(buffer.numel() for buffer in made.buffers()) == factors + 1  # and the count of steps
