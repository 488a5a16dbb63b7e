import json

import pytest
import torch
from torch.nn import functional as F

import scgalore as sg
from scgalore.nn.cpu import choice, gain_of_bfloat16, kernels, kernels_in_words, measure, onednn, using_kernels
from scgalore.nn.cpu.dropout import Dropout
from scgalore.nn.cpu.linear import Linear, linear
from scgalore.nn.cpu.measure import CASES, MARGIN
from scgalore.nn.cpu.traced import traced
from scgalore.nn.layout import Padded

OURS = {"_ProductBackward", "_DroppedBackward", "_InBlocksBackward"}
LARGE = "large product"


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch, tmp_path):
    """No process has chosen, and no file tells."""
    monkeypatch.setattr(sg.settings, "cachedir", tmp_path / "cache")
    for name in ("_measured", "_gains"):
        monkeypatch.setattr(choice, name, {})


@pytest.fixture
def ratios(monkeypatch):
    """What measurements find, by the name of the case, in place of times; counts them."""
    found = {"calls": 0}

    def measured(dtype):
        found["calls"] += 1
        return {case.name: found.get(case.name, 1.0) for case in CASES[dtype]}

    monkeypatch.setattr(measure, "_measure", measured)
    return found


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
    waiting, own = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        own.add(node.name())
        waiting += [parent for parent, _ in node.next_functions if parent is not None]
    return [out, *torch.autograd.grad(out.float().square().sum(), x)], own & OURS


def test_torch_gives_the_bits_of_torch(layer):
    ours, theirs, x, _ = layer
    with sg.settings.override(cpu_kernels="torch"):
        (numbers, own), (expected, _) = run(ours, x), run(theirs, x)
        assert kernels_in_words(torch.float32) == kernels_in_words(torch.bfloat16) == "torch"
    assert own == set()
    assert all(torch.equal(a, b) for a, b in zip(numbers, expected, strict=True))


def test_onednn_gives_the_same_numbers(layer):
    ours, theirs, x, apart = layer
    with sg.settings.override(cpu_kernels="onednn"):
        (numbers, own), (expected, _) = run(ours, x), run(theirs, x)
        assert all(torch.equal(a, b) for a, b in zip(numbers, run(ours, x)[0], strict=True))
        assert LARGE in kernels_in_words(torch.float32)
    assert len(own) == 1
    for a, b in zip(numbers, expected, strict=True):
        if apart is None:
            torch.testing.assert_close(a.unique(), b.unique())
        else:
            assert (a - b).float().norm() <= apart * b.float().norm()


def test_a_kernel_is_taken_where_it_was_measured_faster_by_the_margin(ratios):
    ratios |= {LARGE: MARGIN + 0.01, "large product, backward": MARGIN - 0.01}
    assert kernels_in_words(torch.float32) == "onednn: large product"
    x, weight = torch.randn(5, 512), torch.randn(512, 512)
    with torch.no_grad():
        assert torch.equal(linear(x, weight), onednn.product(x, weight))
    assert run(lambda x: linear(x, weight), x)[1] == set()


def test_a_choice_holds_in_the_process_and_in_the_next(ratios):
    ratios[LARGE] = 2.0
    chosen = kernels_in_words(torch.float32)
    ratios[LARGE] = 0.5
    with sg.settings.override(cpu_kernels="torch"):
        assert kernels_in_words(torch.float32) == "torch"
    assert kernels_in_words(torch.float32) == chosen == "onednn: large product"
    choice._measured.clear()  # as another process
    assert kernels_in_words(torch.float32) == chosen
    assert ratios["calls"] == 1


def test_the_first_of_two_processes_that_measure_at_once_is_right(monkeypatch):
    def meanwhile(dtype):
        measure._write_first(measure._path("float32"), {"ratios": {LARGE: 0.5}})
        return {case.name: 2.0 for case in CASES[dtype]}

    monkeypatch.setattr(measure, "_measure", meanwhile)
    assert kernels_in_words(torch.float32) == "torch"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ratios": {"large product": "fast"}}', '{"ratios": 3}'])
def test_a_damaged_file_is_measured_anew(ratios, content):
    path = measure._path("float32")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    ratios[LARGE] = 2.0
    assert kernels_in_words(torch.float32) == "onednn: large product"
    assert json.loads(path.read_text())["ratios"][LARGE] == 2.0
    assert [*path.parent.iterdir()] == [path]


def test_a_folder_that_cannot_be_written_is_no_error(ratios, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sg.settings, "cachedir", tmp_path / "file")
    ratios[LARGE] = 2.0
    assert kernels_in_words(torch.float32) == "onednn: large product"


def test_another_processor_has_files_of_its_own(monkeypatch):
    here = measure._path("float32")
    monkeypatch.setattr(measure, "_processor", lambda: "another")
    assert measure._path("float32") != here
    assert measure._path("bfloat16") != measure._path("float32")


def test_measuring_leaves_no_trace():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    saved = []
    with torch.inference_mode(), torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        for dtype in CASES:
            assert kernels_in_words(dtype).startswith(("torch", "onednn"))
    assert torch.equal(torch.get_rng_state(), before)
    assert saved == []
    assert gain_of_bfloat16() > 0


def test_a_trace_of_a_gpu_has_no_kernels_of_a_cpu():
    with sg.settings.override(cpu_kernels="onednn"):
        with traced(kernels=False):
            assert kernels_in_words(torch.float32) == "torch"
        assert kernels_in_words(torch.float32) != "torch"
    assert not choice.takes("dropout", torch.ones(1, device="meta"))


def test_a_run_goes_on_with_the_kernels_it_was_begun_with(ratios):
    ratios[LARGE] = 2.0
    begun = kernels(complete=True)
    assert json.loads(json.dumps(begun)) == begun
    choice._measured.clear()
    other = {"mode": "auto", "faster": {"torch.float32": ["small product", "unknown"]}}
    with using_kernels(other):
        assert kernels_in_words(torch.float32) == "onednn: small product"
        with using_kernels(begun), sg.settings.override(cpu_kernels="torch"):
            assert kernels_in_words(torch.float32) == "onednn: large product"
        assert kernels_in_words(torch.float32) == "onednn: small product"
    with using_kernels(None):
        assert kernels()["faster"] == {}


def test_without_onednn_torch_computes(monkeypatch):
    monkeypatch.setattr(measure, "is_available", lambda: False)
    monkeypatch.setattr(choice, "is_available", lambda: False)
    for mode in ("auto", "onednn"):
        with sg.settings.override(cpu_kernels=mode):
            assert kernels_in_words(torch.float32) == "torch"


def test_a_gain_is_that_of_the_kernels_that_are_chosen(monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "_gain", lambda own: asked.append(own) or float(len(asked)))
    gains = []
    for mode in ("torch", "onednn", "torch"):
        with sg.settings.override(cpu_kernels=mode):
            gains.append(gain_of_bfloat16())
    assert gains == [1.0, 2.0, 1.0]
    assert [bool(own[torch.float32]) for own in asked] == [False, True]
