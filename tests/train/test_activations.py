"""What the formulas say is kept for the backward pass is what autograd keeps."""

from typing import Any

import pytest
import torch
from benchmarks.side import saved_for_backward, storages_of
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scgalore.adapters import attach_adapter
from scgalore.data.tokens import TokenBatch
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import Classification, MaskedExpression, Objective, Perturbation
from scgalore.train.activations import Step, count_activations

SMALL: dict[str, Any] = {"n_tokens": 203, "pad_id": 202, "d_model": 128, "n_heads": 4, "d_hid": 160, "n_layers": 3}
OBJECTIVES: dict[str, tuple[Objective, dict[str, Any]]] = {
    "masked": (MaskedExpression(), {}),
    "masked, no cell head, no dropout": (MaskedExpression(), {"mvc": False, "dropout": 0.0}),
    "masked, zeros": (MaskedExpression(), {"zero_probabilities": True}),
    "masked, bins": (MaskedExpression(), {"value_style": "category", "n_value_bins": 60}),
    "masked, scaling": (MaskedExpression(), {"value_style": "scaling"}),
    "classes": (Classification(5), {"heads": {"classes": 5}}),
    "classes, pooled": (Classification(5), {"heads": {"classes": 5}, "cell_style": "avg-pool"}),
    "perturbation": (Perturbation(), {"perturbation": True, "pert_pad_id": 0}),
}


def make_batch(n_cells: int, length: int, *, padded: bool) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    shape = (n_cells, length)
    padding = torch.zeros(shape, dtype=torch.bool)
    padding[0, -3:] = padded
    values = torch.randint(1, 51, shape, generator=generator).float()
    return TokenBatch(
        genes=torch.randint(0, 200, shape, generator=generator),
        values=values,
        padding=padding,
        cells=torch.arange(n_cells),
        keys=torch.zeros(n_cells, dtype=torch.int64),
        targets={
            "labels": torch.randint(0, 5, (n_cells,), generator=generator),
            "expression": values.clone(),
            "masked": torch.rand(shape, generator=generator) < 0.4,
            "controls": torch.rand(shape, generator=generator),
        },
        conditions={"flags": torch.randint(0, 2, shape, generator=generator)},
        padded=padded,
    )


def kept_by_autograd(network: SCGPTNetwork, objective: Objective, batch: TokenBatch, *, half: bool) -> int:
    def forward() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            return objective(network, batch).total

    return saved_for_backward(forward, storages_of(network))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_bytes_of_every_objective(name: str, half: bool, checkpointing: bool) -> None:
    objective, parts = OBJECTIVES[name]
    config = SCGPTConfig(**SMALL, **parts)
    network = SCGPTNetwork(config).train()
    network.recompute = checkpointing
    for padded in (False, True):
        step = Step(config, objective.name, 3, 200, half, checkpointing, config.dropout, on_cpu=True, padded=padded)
        real = kept_by_autograd(network, objective, make_batch(3, 200, padded=padded), half=half)
        assert count_activations(step).kept == pytest.approx(real, rel=0.005)


@hypothesis_settings(max_examples=10)
@given(
    n_cells=st.integers(1, 5),
    length=st.integers(40, 300),
    n_heads=st.sampled_from([1, 2, 8]),
    d_hid=st.sampled_from([128, 384]),
    n_layers=st.integers(1, 4),
    half=st.booleans(),
)
def test_kept_bytes_of_any_size(n_cells: int, length: int, n_heads: int, d_hid: int, n_layers: int, half: bool) -> None:
    config = SCGPTConfig(**{**SMALL, "n_heads": n_heads, "d_hid": d_hid, "n_layers": n_layers})
    objective = MaskedExpression()
    real = kept_by_autograd(
        SCGPTNetwork(config).train(), objective, make_batch(n_cells, length, padded=True), half=half
    )
    step = Step(config, objective.name, n_cells, length, half, checkpointing=False, dropout=0.2, on_cpu=True)
    assert count_activations(step).kept == pytest.approx(real, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("length", [500, 1200])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_bytes_of_whole_human_blocks(length: int, half: bool, checkpointing: bool) -> None:
    config = SCGPTConfig(n_tokens=203, pad_id=202)
    network = SCGPTNetwork(config).train()
    network.recompute = checkpointing
    objective = MaskedExpression()
    real = kept_by_autograd(network, objective, make_batch(1, length, padded=False), half=half)
    step = Step(config, objective.name, 1, length, half, checkpointing, 0.2, on_cpu=True, padded=False)
    assert count_activations(step).kept == pytest.approx(real, rel=0.005)


def test_kept_bytes_of_the_bundled_network() -> None:
    network = SCGPT.from_pretrained("scgpt-mini").network.train()
    objective = MaskedExpression()
    for half in (False, True):
        real = kept_by_autograd(network, objective, make_batch(4, 500, padded=True), half=half)
        step = Step(network.config, objective.name, 4, 500, half, False, network.config.dropout, on_cpu=True)
        assert count_activations(step).kept == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize(
    ("adapter", "others", "factors"), [("lora", "freeze", 8 * 6), ("lora", "train", 8 * 6), ("lte", "train", 16 * 4)]
)
@pytest.mark.parametrize("half", [False, True])
def test_kept_bytes_with_an_adapter(adapter: str, others: str, factors: int, half: bool) -> None:
    if adapter == "lora":
        pytest.importorskip("peft")
    config = SCGPTConfig(**SMALL)
    network = SCGPTNetwork(config).train()
    attach_adapter(adapter, network, others=others)
    network.train()
    real = kept_by_autograd(network, MaskedExpression(), make_batch(4, 200, padded=True), half=half)
    step = Step(
        config,
        "masked_expression",
        4,
        200,
        half,
        checkpointing=False,
        dropout=0.2,
        on_cpu=True,
        frozen_input=others == "freeze",
        factors=factors + 2 * config.d_model * half,
    )
    assert count_activations(step).kept == pytest.approx(real, rel=0.1)


def live_peak(network: SCGPTNetwork, batch: TokenBatch, *, half: bool) -> int:
    """Most bytes of tensors that existed at once in a forward and a backward pass, beyond those before it."""
    for param in network.parameters():
        param.grad = torch.zeros_like(param)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = MaskedExpression()(network, batch).total
        loss.backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kept_and_transient_bytes_are_the_peak_of_a_step(half: bool, checkpointing: bool) -> None:
    config = SCGPTConfig(**{**SMALL, "d_hid": 128, "n_layers": 6})
    network = SCGPTNetwork(config).train()
    network.recompute = checkpointing
    step = Step(config, "masked_expression", 8, 300, half, checkpointing, 0.2, on_cpu=True, padded=False)
    counted = count_activations(step)
    batch = make_batch(8, 300, padded=False)
    assert counted.kept + counted.transient == pytest.approx(live_peak(network, batch, half=half), rel=0.2)


def test_a_gpu_holds_nothing_back_and_longer_cells_keep_in_proportion() -> None:
    config = SCGPTConfig(**SMALL)
    on_gpu = [Step(config, "masked_expression", 2, s, False, False, 0.2, on_cpu=False) for s in (500, 1000)]
    short, long = map(count_activations, on_gpu)
    assert short.held == 0
    assert long.kept == 2 * short.kept


def test_memory_held_back_hangs_on_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(SCGPTConfig(**SMALL), "masked_expression", 2, 500, False, False, 0.2, on_cpu=True)
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    assert count_activations(step).held > 0
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    assert count_activations(step).held == 0
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    assert count_activations(step).held == 0
    monkeypatch.delenv("LD_PRELOAD")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert count_activations(step).held == 0
