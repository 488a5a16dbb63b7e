import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scgalore.nn.cpu.linear import Linear, linear
from scgalore.nn.cpu.onednn import product

pytestmark = pytest.mark.usefixtures("each_kernel")

WIDE = (192, 160)


def layer(d_out, d_in, bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=dtype).requires_grad_()
    return weight, torch.randn(d_out, generator=generator, dtype=dtype).requires_grad_() if bias else None


SHAPES = [(7,), (1,), (3, 5), (2, 3, 4), (300,)]
SIZES = {"wide": WIDE, "narrow": (12, 8)}


# Any two of shape, width and bias meet once.
@pytest.mark.parametrize(
    ("shape", "sizes", "bias"),
    [
        pytest.param(shape, sizes, (i + j) % 2 == 0, id=f"{shape}-{width}")
        for i, shape in enumerate(SHAPES)
        for j, (width, sizes) in enumerate(SIZES.items())
    ],
)
def test_values_and_gradients_are_those_of_the_product(shape, sizes, bias):
    weight, b = layer(*sizes, bias=bias)
    x = torch.randn(*shape, sizes[1]).requires_grad_()
    inputs = [x, weight, *([b] if bias else [])]
    ours = linear(x, weight, b)
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    assert ours.shape == (*shape, sizes[0])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-4)
    pull = torch.randn_like(ours)
    grads = torch.autograd.grad(ours, inputs, pull)
    expected = torch.autograd.grad(exact, inputs, pull.double())
    for ours_, expected_ in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours_, expected_, rtol=1e-4, atol=1e-4)


def test_a_strided_input_is_read_as_it_is_seen():
    weight, bias = layer(*WIDE)
    x = torch.randn(160, 9, 4).permute(1, 2, 0)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=1e-4)


def test_float64_takes_the_product_of_torch():
    weight, bias = layer(*WIDE, dtype=torch.float64)
    x = torch.randn(6, 160, dtype=torch.float64)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


@pytest.mark.parametrize("grad", [True, False])
def test_bfloat16_is_as_close_as_its_rounding(grad):
    weight, bias = layer(*WIDE, dtype=torch.bfloat16)
    x = torch.randn(6, 160).bfloat16()
    with torch.set_grad_enabled(grad):
        ours = linear(x, weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() < 0.01 * exact.norm()


def test_gradients_have_gradients():
    weight, bias = layer(*WIDE)
    x = torch.randn(5, 160, requires_grad=True)
    found = []
    for multiply in (product, F.linear):
        (grad,) = torch.autograd.grad(multiply(x, weight, bias).pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), (x, weight, bias)))
    for ours, expected in zip(*found, strict=True):
        assert (ours - expected).norm() < 1e-4 * expected.norm()


def test_what_needs_no_gradient_gets_none():
    weight, _ = layer(*WIDE)
    x = torch.randn(5, 160)
    out = linear(x, weight.detach().requires_grad_())
    assert out.requires_grad
    frozen = linear(x.requires_grad_(), weight.detach())
    (grad,) = torch.autograd.grad(frozen.sum(), x)
    torch.testing.assert_close(grad, weight.detach().sum(dim=0).expand_as(x), rtol=0, atol=1e-4)


def test_compiled_layers_compute_the_same():
    ours = Linear(160, 192)
    x = torch.randn(5, 160, requires_grad=True)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    pairs = [(compiled(x), ours(x))]
    pairs += zip(*(torch.autograd.grad(out.square().sum(), (x, ours.weight)) for out in pairs[0]), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_rows_give_no_rows():
    weight, bias = layer(*WIDE)
    assert linear(torch.empty(0, 160), weight, bias).shape == (0, 192)


def test_a_row_has_the_same_bits_in_every_run():
    weight, bias = layer(*WIDE)
    x = torch.randn(500, 160, requires_grad=True)
    runs = []
    for _ in range(3):
        out = linear(x, weight, bias)
        runs.append([out, *torch.autograd.grad(out.square().sum(), (x, weight, bias))])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_autocast_chooses_the_dtype():
    weight, bias = layer(*WIDE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(torch.randn(6, 160), weight, bias).dtype == torch.bfloat16


def test_the_layer_is_a_linear_layer():
    torch.manual_seed(0)
    ours = Linear(160, 192)
    theirs = nn.Linear(160, 192)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 160)
    assert isinstance(ours, nn.Linear)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
