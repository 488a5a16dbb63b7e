import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scgalore.nn.cpu.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.999])
def test_the_share_of_zeros_is_the_probability(p):
    torch.manual_seed(0)
    n = 400_000
    dropped = n - int(keep_mask(torch.Size([n]), p).sum())
    assert abs(dropped - p * n) < 5 * (p * (1 - p) * n) ** 0.5


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    x = keep_mask(torch.Size([100_000, 4]), 0.3).double() - 0.7
    correlation = torch.corrcoef(x.T) - torch.eye(4)  # neighbours share a word of random bits
    assert correlation.abs().max() < 0.02
    assert abs(float((x[:-1, 0] * x[1:, 0]).mean())) < 0.005


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 0), ()], ids=str)
def test_what_stays_is_scaled_up_and_so_is_its_gradient(shape, dtype):
    torch.manual_seed(0)
    x = (torch.rand(shape) + 1).to(dtype).requires_grad_()
    out = Dropout(0.2)(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    kept = out != 0
    torch.testing.assert_close(out, torch.where(kept, x / 0.8, 0.0).to(dtype))
    (grad,) = torch.autograd.grad(out, x, torch.full_like(out, 2))
    torch.testing.assert_close(grad, torch.where(kept, 2.5, 0.0).to(dtype))


def test_evaluation_and_no_probability_leave_values_alone():
    x = torch.randn(50)
    assert torch.equal(Dropout(0.9).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_the_seed_decides():
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_a_recomputed_block_drops_the_same_values():
    layer, x = nn.Sequential(nn.Linear(8, 8), Dropout(0.5)), torch.randn(20, 8, requires_grad=True)
    grads = []
    for recompute in (False, True):
        torch.manual_seed(1)
        out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert torch.equal(*grads)


def test_a_mask_takes_one_byte_a_value():
    saved = []
    x = torch.ones(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        Dropout(0.2)(x)
        assert sum(saved) == 1000
        saved.clear()
        F.dropout(x, 0.2, training=True)
        assert sum(saved) >= 4000
