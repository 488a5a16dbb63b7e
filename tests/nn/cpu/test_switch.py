import pytest
import torch
from torch.nn import functional as F

from scgalore.nn.cpu import switch, use_cpu_kernels
from scgalore.nn.cpu.dropout import Dropout
from scgalore.nn.cpu.linear import Linear
from scgalore.nn.layout import Padded

OURS = {"ConvolutionBackward0", "_DroppedBackward", "_InBlocksBackward"}


@pytest.fixture(params=["linear", "dropout", "attention"])
def layer(request):
    """Our layer, torch's own, an input, and how far apart their numbers may be; ``None`` where draws differ."""
    torch.manual_seed(0)
    if request.param == "linear":
        ours = Linear(160, 192)
        return ours, lambda x: F.linear(x, ours.weight, ours.bias), torch.randn(7, 160), 1e-5
    if request.param == "dropout":
        return Dropout(0.3), lambda x: F.dropout(x, 0.3, training=True), torch.ones(50, 20), None

    def attend(x):
        return Padded(None, 6).attend(x, x, x, 4)

    def expected(x):
        q, k, v = (x.unflatten(-1, (4, -1)).transpose(1, 2) for _ in range(3))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)

    return attend, expected, torch.randn(2, 6, 32).bfloat16(), 2e-2


def run(function, x):
    """Values and gradient, always with the same draws, and the kernels of ours that took part."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    out = function(x)
    waiting, kernels = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        kernels.add(node.name())
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return [out, *torch.autograd.grad(out.float().square().sum(), x)], kernels & OURS


def test_off_gives_the_bits_of_torch(layer):
    ours, theirs, x, _ = layer
    with use_cpu_kernels(on=False):
        (numbers, kernels), (expected, _) = run(ours, x), run(theirs, x)
    assert kernels == set()
    assert all(torch.equal(a, b) for a, b in zip(numbers, expected, strict=True))


def test_on_is_the_default_and_gives_the_same_numbers(layer):
    ours, theirs, x, apart = layer
    (numbers, kernels), (expected, _) = run(ours, x), run(theirs, x)
    assert len(kernels) == 1
    with use_cpu_kernels(on=True):
        assert all(torch.equal(a, b) for a, b in zip(numbers, run(ours, x)[0], strict=True))
    for a, b in zip(numbers, expected, strict=True):
        if apart is None:
            torch.testing.assert_close(a.unique(), b.unique())
        else:
            assert (a - b).float().norm() <= apart * b.float().norm()


def test_what_was_set_before_returns_after_an_error():
    x = torch.ones(1)

    def fail():
        with use_cpu_kernels(on=False):
            with use_cpu_kernels(on=True):
                assert switch.takes(x)
            assert not switch.takes(x)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert switch.takes(x)
    assert not switch.takes(torch.ones(1, device="meta"))
