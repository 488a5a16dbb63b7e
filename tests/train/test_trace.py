"""What a trace says of a step is what a real step keeps, takes and reaches."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from scgalore.adapters import attach_adapter
from scgalore.data.tokens import TokenBatch
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import Classification, MaskedExpression, Objective, Perturbation
from scgalore.objectives.base import Loss
from scgalore.train.trace import Shape, Trace, on_meta, trace_step, unreached

SMALL: dict[str, Any] = {"n_tokens": 203, "pad_id": 202, "d_model": 128, "n_heads": 4, "d_hid": 160, "n_layers": 2}
BF16 = "bf16-mixed"
# Of a norm of bfloat16 with float32 weights, torch's fake kernel gives the statistics in bfloat16, the real one in float32: 4
# bytes a token, of the ten thousand that a small network keeps.
CLOSE = 2e-3


class MaskedInBatches(MaskedExpression):
    """Of cells that come with the sequencing batch that some networks read."""

    def example(self, batch: TokenBatch) -> TokenBatch:
        return super().example(batch).with_conditions(batches=torch.zeros_like(batch.cells))


OBJECTIVES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "masked": (MaskedExpression(), {}),
    "masked, no cell head, no dropout": (MaskedExpression(), {"mvc": False, "dropout": 0.0}),
    "masked, zeros": (MaskedExpression(), {"zero_probabilities": True}),
    "masked, bins": (MaskedExpression(), {"value_style": "category", "n_value_bins": 60}),
    "masked, scaling": (MaskedExpression(), {"value_style": "scaling"}),
    "masked, batches": (MaskedInBatches(), {"batch_labels": True, "n_batches": 3}),
    "classes": (Classification(5), {"heads": {"classes": 5}}),
    "classes, pooled": (Classification(5), {"heads": {"classes": 5}, "cell_style": "avg-pool"}),
    "perturbation": (Perturbation(), {"perturbation": True, "pert_pad_id": 0, "zero_probabilities": True}),
}


def make_batch(objective: Objective, shape: Shape) -> TokenBatch:
    """Random tokens; targets and conditions are the objective's own example."""
    generator = torch.Generator().manual_seed(0)
    blank = shape.batch(objective)
    genes = torch.randint(0, 200, blank.genes.shape, generator=generator)
    # No two alike, for which the value encoder keeps most, but bins where the network reads these alone.
    values = 1 + 49 * torch.rand(genes.shape, generator=generator)
    padding = blank.padding.clone()
    padding[0, -3:] = blank.padded
    return replace(blank, genes=genes, values=values, padding=padding)


def forward(network: SCGPTNetwork, objective: Objective, shape: Shape) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=shape.precision == BF16):
        return objective(network, make_batch(objective, shape)).total


def kept_by_autograd(network: nn.Module, run: Callable[[], torch.Tensor]) -> int:
    """Bytes of the storages that exist for the backward pass when a forward pass is over, without those of weights."""
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = weakref.ref(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = run()
    assert loss.requires_grad
    return sum(storage.nbytes() for ref in kept.values() if (storage := ref()) is not None)


def check(network: SCGPTNetwork, objective: Objective, shape: Shape, rel: float = CLOSE) -> None:
    real = kept_by_autograd(network, lambda: forward(network, objective, shape))
    assert trace_step(network, objective, shape).kept == pytest.approx(real, rel=rel)


def made(parts: dict[str, Any] | None = None, *, recompute: bool = False) -> SCGPTNetwork:
    network = SCGPTNetwork(SCGPTConfig(**{**SMALL, **(parts or {})})).train()
    network.transformer_encoder.recompute = recompute
    return network


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("precision", "recompute"), [("32-true", False), (BF16, True)])
def test_kept_bytes_of_every_objective(name: str, precision: str, recompute: bool) -> None:
    objective, parts = OBJECTIVES[name]
    network = made(parts, recompute=recompute)
    for n_cells in (1, 3):
        shape = Shape(n_cells, 100, precision)
        check(network, objective, shape)


def test_kept_bytes_with_a_batch_norm() -> None:
    check(made({"batch_norm": "shared"}), MaskedExpression(), Shape(3, 100))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_that_a_loss_reaches(name: str) -> None:
    objective, parts = OBJECTIVES[name]
    network = made({"heads": {"classes": 4}, "adversary": True, "n_batches": 3} | parts)
    network.get_parameter("transformer_encoder.layers.0.linear1.weight").requires_grad = False
    shape = Shape(2, 20)
    loss = forward(network, objective, shape)
    idle = set(unreached(loss, network))
    loss.backward()
    trained = {name for name, param in network.named_parameters() if param.grad is not None}
    reached = trace_step(network, objective, shape).reached
    assert reached == trained == {name for name, p in network.named_parameters() if p.requires_grad} - idle
    assert any(name.startswith("grad_reverse_discriminator.") for name in idle)


@hypothesis_settings(max_examples=6)
@given(
    n_cells=st.integers(1, 5),
    length=st.integers(40, 300),
    n_heads=st.sampled_from([1, 2, 8]),
    n_layers=st.integers(1, 3),
    precision=st.sampled_from(["32-true", BF16]),
)
def test_kept_bytes_of_any_size(n_cells: int, length: int, n_heads: int, n_layers: int, precision: str) -> None:
    network, shape = made({"n_heads": n_heads, "n_layers": n_layers}), Shape(n_cells, length, precision)
    check(network, MaskedExpression(), shape)


@pytest.mark.slow
@pytest.mark.parametrize("length", [500, 1200])
@pytest.mark.parametrize("precision", ["32-true", BF16])
@pytest.mark.parametrize("recompute", [False, True])
def test_kept_bytes_of_whole_human_blocks(length: int, precision: str, recompute: bool) -> None:
    network = SCGPTNetwork(SCGPTConfig(n_tokens=203, pad_id=202)).train()
    network.transformer_encoder.recompute = recompute
    shape = Shape(1, length, precision)
    check(network, MaskedExpression(), shape, rel=2e-4)


def test_kept_bytes_of_the_bundled_network() -> None:
    network = cast("SCGPTNetwork", SCGPT.from_pretrained("scgpt-mini").network.train())
    for precision in ("32-true", BF16):
        shape = Shape(4, 300, precision)
        check(network, MaskedExpression(), shape)


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        ("lora", {}),
        ("lora", {"others": "train"}),
        ("lora", {"variant": "dora", "dropout": 0.1}),
        ("lte", {}),
        ("lte", {"n_heads": 2, "others": "freeze"}),
    ],
)
@pytest.mark.parametrize(("precision", "recompute"), [("32-true", True), (BF16, False)])
def test_kept_bytes_with_an_adapter(adapter: str, options: dict[str, Any], precision: str, recompute: bool) -> None:
    if adapter == "lora":
        pytest.importorskip("peft")
    network = made(recompute=recompute)
    attach_adapter(adapter, network, **options)
    network.train()
    shape = Shape(4, 100, precision)
    check(network, MaskedExpression(), shape)


def live_peak(network: SCGPTNetwork, shape: Shape) -> int:
    """Most bytes of tensors that existed at once in a forward and a backward pass, beyond those before it."""
    for param in network.parameters():
        param.grad = torch.zeros_like(param)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(network, MaskedExpression(), shape).backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("precision", ["32-true", BF16])
@pytest.mark.parametrize("recompute", [False, True])
def test_kept_and_transient_bytes_are_the_peak_of_a_step(precision: str, recompute: bool) -> None:
    network, shape = made({"d_hid": 128, "n_layers": 6}, recompute=recompute), Shape(8, 300, precision)
    trace = trace_step(network, MaskedExpression(), shape)
    assert trace.kept + trace.transient == pytest.approx(live_peak(network, shape), rel=0.1)


def on_gpu(precision: str, n_cells: int = 2, **parts: Any) -> Trace:
    return trace_step(made(parts), MaskedExpression(), Shape(n_cells, 256, precision, gpu=True))


def test_a_gpu_keeps_what_its_kernels_keep() -> None:
    """In float32 as on a CPU but for the mask as numbers; in bfloat16 the norm of the values is wide, on a CPU it is not."""
    network, tokens = made(), 2 * 256
    on_cpu = {name: trace_step(network, MaskedExpression(), Shape(2, 256, name)) for name in ("32-true", BF16)}
    assert on_gpu("32-true").kept == pytest.approx(on_cpu["32-true"].kept, rel=CLOSE)
    wider = 2 * 128 * tokens
    assert on_gpu(BF16).kept - on_cpu[BF16].kept == pytest.approx(wider, rel=0.03)
    assert on_gpu("16-mixed") == on_gpu(BF16)
    alone = on_gpu(BF16, 1)
    assert alone.kept < on_gpu(BF16).kept / 2 + 2**20


def test_a_trace_is_made_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = torch.random.get_rng_state()
    first = trace_step(network, MaskedExpression(), Shape(2, 31))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert all(param.grad is None for param in network.parameters())
    monkeypatch.setattr("scgalore.train.trace._Step", None)
    assert trace_step(on_meta(network), MaskedExpression(), Shape(2, 31)) is first


def test_settings_of_layers_make_another_trace() -> None:
    network = made()
    first = trace_step(network, MaskedExpression(), Shape(2, 31))
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    assert trace_step(network, MaskedExpression(), Shape(2, 31)).kept < first.kept


def test_nothing_to_train_keeps_nothing() -> None:
    network = made()
    network.requires_grad_(requires_grad=False)
    trace = trace_step(network, MaskedExpression(), Shape(2, 31))
    assert (trace.kept, trace.reached) == (0, frozenset())
    assert trace.transient > 0


class Selecting(nn.Module):
    """A bag of genes that keeps maps of all pairs and selects by a mask, whose size no shape tells."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 16)
        self.unused = nn.Linear(16, 16)


class SelectingObjective:
    def example(self, batch: TokenBatch) -> TokenBatch:
        return batch

    def __call__(self, network: Selecting, batch: TokenBatch) -> Loss:
        x = network.table(batch.genes)
        pairs = (x @ x.mT).softmax(dim=-1) @ x
        return Loss(pairs[~batch.padding].square().mean(), {}, len(batch))


@pytest.mark.parametrize("n_cells", [1, 2, 7])
def test_a_step_that_cannot_be_traced_is_measured(n_cells: int) -> None:
    network, objective = Selecting(), SelectingObjective()
    shape = Shape(n_cells, 200)
    batch = shape.batch(objective)  # type: ignore[arg-type]
    real = kept_by_autograd(network, lambda: objective(network, batch).total)
    trace = trace_step(network, objective, shape)  # type: ignore[arg-type]
    assert trace.kept == pytest.approx(real, rel=CLOSE)
    assert trace.reached == {"table.weight"}
