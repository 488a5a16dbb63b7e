"""What a run is said to take, beside what it takes, and what follows from it."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.prepared import prepared as fit_to
from tests.trained_screens import counts, trained

from scgalore.data.cells import TokenCells
from scgalore.data.opening import stream
from scgalore.data.split import Split, random_split
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.model.identity import run_identity
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import Classification, MaskedExpression, Perturbation
from scgalore.optim import OPTIMIZERS, memory_report
from scgalore.train import MemoryEstimate, TrainConfig, estimate_training
from scgalore.train.config import DEFAULT_BATCH_SIZE
from scgalore.train.estimate import Case, count_case, training_device
from scgalore.train.memory import fits_by_far, settle_memory

MIB = 2**20
CONFIG = SCGPTConfig(n_tokens=503, pad_id=502, d_model=64, n_heads=4, d_hid=64, n_layers=2)


def blank(config: SCGPTConfig = CONFIG) -> SCGPTNetwork:
    with torch.device("meta"):
        return SCGPTNetwork(config)


def estimate(n_cells: int = 4, n_tokens: int = 200, n_rows: int = 300, **options: Any) -> MemoryEstimate:
    config = TrainConfig(**{"accelerator": "cuda", **options})
    return estimate_training(blank(), MaskedExpression(), config, n_cells=n_cells, n_tokens=n_tokens, n_rows=n_rows)


def prepared(model: SCGPT, adata: AnnData) -> tuple[TokenCells, Split]:
    cells = model.cells(adata)
    return cells, random_split(cells.n_obs, validation_size=0.1, test_size=0.1, seed=0)


# ---- optimizer state and gradients -----------------------------------------------------------------------------------


def of_run(model: SCGPT, adata: AnnData, **options: Any) -> tuple[MemoryEstimate, int]:
    """Estimate of a run, and the optimizer bytes of the run itself."""
    cells = model.cells(adata)
    said = estimate_training(
        model.network,
        MaskedExpression(),
        TrainConfig(accelerator="cpu", **options),
        n_cells=8,
        n_tokens=int(cells.lengths.max()),
        n_rows=len(cells.tokens()),
    )
    model.train(adata, accelerator="cpu", max_epochs=1, batch_size=64, **options)
    assert model.result is not None
    assert model.result.optimizer_bytes is not None
    return said, model.result.optimizer_bytes


@pytest.mark.parametrize("embedding", ["rows", "full", "frozen"])
@pytest.mark.parametrize("optimizer", ["galore", "adamw", "adafactor"])
def test_state_of_a_run_is_what_was_said(
    make_model: Callable[..., SCGPT], few: AnnData, embedding: str, optimizer: str
) -> None:
    model = make_model([*few.var_names, *(f"MORE{i}" for i in range(50))])
    said, found = of_run(model, few, embedding=embedding, optimizer=optimizer)
    assert said.optimizer_state == found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_of_every_entry_is_what_was_said(make_model: Callable[..., SCGPT], few: AnnData, optimizer: str) -> None:
    said, found = of_run(make_model(few.var_names), few, optimizer=optimizer)
    assert said.optimizer_state == found


@pytest.mark.parametrize(
    ("adapter", "options"),
    [("lora", {"rank": 2}), ("lora", {"variant": "dora"}), ("lora", {"others": "train"}), ("lte", {"n_heads": 2})],
)
@pytest.mark.parametrize("optimizer", ["galore", "adamw"])
def test_state_with_an_adapter_is_what_was_said(
    make_model: Callable[..., SCGPT], few: AnnData, adapter: str, options: dict[str, Any], optimizer: str
) -> None:
    if adapter == "lora":
        pytest.importorskip("peft")
    said, found = of_run(make_model(few.var_names), few, adapter=adapter, adapter_options=options, optimizer=optimizer)
    assert said.optimizer_state == found


def test_heads_that_a_loss_does_not_reach_have_neither_gradient_nor_state(
    make_model: Callable[..., SCGPT], few: AnnData
) -> None:
    model = make_model(few.var_names, adversary=True, n_batches=2, zero_probabilities=True)
    said, found = of_run(model, few, optimizer="adamw")
    assert said.optimizer_state == found
    network = model.network.config
    how: dict[str, Any] = {"config": TrainConfig(accelerator="cuda"), "n_tokens": 50, "n_rows": 150, "n_cells": 1}
    of_classes = estimate_training(blank(network.replace(heads={"classes": 3})), Classification(3), **how)
    of_effects = estimate_training(blank(network.replace(perturbation=True, pert_pad_id=0)), Perturbation(), **how)
    assert of_classes.gradients < of_effects.gradients < of_effects.parameters


def test_state_of_a_screen_is_what_was_said() -> None:
    model = trained(counts(), max_epochs=1, embedding="full")
    config = TrainConfig(accelerator="cpu", embedding="full")
    said = estimate_training(model.network, Perturbation(), config, n_cells=32, n_tokens=31, n_rows=1)
    assert said.optimizer_state == model.result.optimizer_bytes


def test_weights_and_gradients_are_those_of_the_report(make_model: Callable[..., SCGPT], few: AnnData) -> None:
    network = make_model(few.var_names).network.train()
    optimizer = torch.optim.AdamW(network.parameters())
    for param in network.parameters():
        param.grad = torch.zeros_like(param)
    report = memory_report(network, optimizer)
    config = TrainConfig(embedding="full", optimizer="adamw", accelerator="cuda")
    said = estimate_training(network, MaskedExpression(), config, n_cells=1, n_tokens=50, n_rows=1)
    assert (said.parameters, said.gradients) == (report.total.weights, report.total.gradients)


def test_updates_in_the_backward_pass_leave_the_largest_gradient() -> None:
    everything = estimate()
    one = estimate(per_layer_update=True, clip_norm=math.inf)
    assert one.gradients == 4 * max(300 * 64, 3 * 64 * 64)
    assert one.optimizer_state == everything.optimizer_state


def test_shares_of_the_state_add_up_to_all_of_it() -> None:
    def of_processes(n: int, *, shard: bool) -> MemoryEstimate:
        config = TrainConfig(accelerator="cuda", shard_optimizer=shard)
        return estimate_training(
            blank(), MaskedExpression(), config, n_cells=1, n_tokens=100, n_rows=300, n_processes=n
        )

    whole, shared = of_processes(2, shard=False), of_processes(2, shard=True)
    assert whole.optimizer_state / 2 <= shared.optimizer_state < 0.65 * whole.optimizer_state
    # Gradients are sent in copies of them.
    assert whole.workspace >= of_processes(1, shard=False).workspace + whole.gradients


def test_frozen_parameters_have_neither_gradient_nor_state(model: SCGPT) -> None:
    first, *others = model.network.parameters()
    for param in others:
        param.requires_grad = False
    config = TrainConfig(optimizer="adamw", embedding="full", accelerator="cuda")
    some = estimate_training(model.network, MaskedExpression(), config, n_cells=1, n_tokens=50, n_rows=1)
    assert some.gradients == 4 * first.numel()
    assert some.optimizer_state == 8 * first.numel() + 4


# ---- the estimate as such --------------------------------------------------------------------------------------------


def test_peak_is_the_sum_of_the_parts_and_the_table_says_all() -> None:
    made = MemoryEstimate(1 * MIB, 2 * MIB, 3 * MIB, 4 * MIB, 5 * MIB, 6 * MIB, lambda: (("max_length=500", MIB),))
    assert made.peak == 21 * MIB
    table = made.to_frame()["bytes"]
    assert table["peak"] == table.drop("peak").sum() == made.peak
    text = str(made)
    for name, size in table.items():
        assert f"{str(name).replace('_', ' ')} " in text
        assert f"{size / 1e6:.2f} MB" in text
    assert text.splitlines()[-1] == "max_length=500 saves 1.05 MB"


def test_what_helps_is_ordered_and_keeps_its_promise() -> None:
    before = estimate(optimizer="adamw", embedding="full", n_tokens=1000)
    saved = [size for _, size in before.helps]
    assert saved == sorted(saved, reverse=True)
    promises = dict(before.helps)
    assert promises.keys() == {
        "gradient_checkpointing=True",
        'precision="bf16-mixed"',
        'optimizer="galore"',
        'embedding="rows"',
        "batch_size=2, accumulate=2",
        "max_length=500",
    }
    how: dict[str, Any] = {"optimizer": "adamw", "embedding": "full", "n_tokens": 1000}
    assert before.peak - estimate(**how, gradient_checkpointing=True).peak == promises["gradient_checkpointing=True"]
    assert before.peak - estimate(**{**how, "n_tokens": 500}).peak == promises["max_length=500"]
    assert before.peak - estimate(2, **how).peak == promises["batch_size=2, accumulate=2"]


def test_settings_that_are_on_are_not_advised() -> None:
    least = estimate(1, 100, precision="bf16-mixed", gradient_checkpointing=True)
    assert least.helps == ()


def test_where_tokens_make_a_step_smaller_batches_are_all_that_is_advised() -> None:
    advised = dict(estimate(accumulate_tokens=10_000, accumulate=3).helps)
    assert "batch_size=2" in advised
    assert not any("accumulate" in name for name in advised)


def test_a_cpu_keeps_weights_to_go_back_to_and_a_gpu_does_not() -> None:
    on_cpu, on_gpu = estimate(accelerator="cpu"), estimate(accelerator="cuda")
    assert on_gpu.copies == 0
    assert on_cpu.copies == 2 * on_cpu.parameters + 4 * 503 * 64


# ---- before a run ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give the function that says how much memory is free."""

    def give(size: int) -> None:
        monkeypatch.setattr("scgalore.train.memory.free_memory", lambda device: size)

    return give


def settle(model: SCGPT, adata: AnnData, **options: Any) -> TrainConfig:
    run = {key: options.pop(key) for key in ("checkpoint_dir", "resume") if key in options}
    cells, split = prepared(model, adata)
    config = TrainConfig(**{"accelerator": "cpu", "max_epochs": 10, **options})
    return settle_memory(model.network, cells, split, MaskedExpression(), config, **run)


def peak_of(model: SCGPT, adata: AnnData, batch_size: int) -> int:
    cells, split = prepared(model, adata)
    config = TrainConfig(accelerator="cpu", batch_size=batch_size)
    said = estimate_training(
        model.network,
        MaskedExpression(),
        config,
        n_cells=batch_size,
        n_tokens=int(cells.lengths[split.train].max()),
        n_rows=len(cells.tokens()),
    )
    weights = sum(4 * param.numel() for param in model.network.parameters())
    return said.peak - weights


def test_a_run_that_fits_is_left_alone(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    with_free(10**12)
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        assert settle(model, few, batch_size=7, accumulate=3) == TrainConfig(
            accelerator="cpu", max_epochs=10, batch_size=7, accumulate=3
        )
    assert not [record for record in caplog.records if "memory" in record.getMessage()]


def test_a_run_that_may_not_fit_is_warned_of_with_what_helps_most(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    with_free(MIB)
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        config = settle(model, few, batch_size=16)
    assert config.batch_size == 16
    (record,) = [record for record in caplog.records if "memory" in record.getMessage()]
    text = record.getMessage()
    cells, split = prepared(model, few)
    longest = int(cells.lengths[split.train].max())
    assert f"16 cells of {longest} tokens" in text
    assert "1.05 MB" in text or "MB are free" in text
    said = estimate_training(
        model.network,
        MaskedExpression(),
        TrainConfig(accelerator="cpu", batch_size=16),
        n_cells=16,
        n_tokens=longest,
        n_rows=len(cells.tokens()),
    )
    assert f"{said.helps[0][0]} would reduce it most, to " in text


def test_automatic_batches_begin_with_the_default(model: SCGPT, few: AnnData, with_free: Callable[[int], None]) -> None:
    with_free(10**12)
    config = settle(model, few, batch_size="auto")
    assert (config.batch_size, config.accumulate) == (DEFAULT_BATCH_SIZE, 1)


@pytest.mark.parametrize("fits", [1, 2, 8])
def test_automatic_batches_are_halved_until_they_fit_with_a_margin(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None], fits: int
) -> None:
    with_free(math.ceil(peak_of(model, few, fits) / 0.8) + 10_000)
    config = settle(model, few, batch_size="auto", accumulate=3)
    assert config.batch_size == fits
    assert config.accumulate * fits == 3 * DEFAULT_BATCH_SIZE


def test_with_updates_in_the_backward_pass_nothing_is_accumulated(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None]
) -> None:
    with_free(MIB // 4)
    config = settle(model, few, batch_size="auto", per_layer_update=True, clip_norm=math.inf)
    assert (config.batch_size, config.accumulate) == (1, 1)


def test_where_not_one_cell_fits_it_warns_and_goes_on_with_one(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    with_free(1)
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        config = settle(model, few, batch_size="auto")
    assert (config.batch_size, config.accumulate) == (1, DEFAULT_BATCH_SIZE)
    assert "may need" in caplog.text


def test_a_resumed_run_keeps_the_batches_it_began_with(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None], tmp_path: Path
) -> None:
    cells, split = prepared(model, few)
    begun = TrainConfig(accelerator="cpu", batch_size=4, accumulate=8, max_epochs=1)
    model.fit(fit_to(cells, split, begun), checkpoint_dir=tmp_path)
    with_free(10**12)
    again = settle(model, few, batch_size="auto", max_epochs=1, checkpoint_dir=tmp_path, resume=True)
    assert again == begun
    assert settle(model, few, batch_size="auto", checkpoint_dir=tmp_path / "new", resume=True).batch_size == 32


def test_the_identity_of_a_run_has_the_settled_number(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None]
) -> None:
    with_free(10**12)
    cells, split = prepared(model, few)
    objective = MaskedExpression()
    config = settle(model, few, batch_size="auto")
    identity = run_identity(cells, split, objective, config, model.network)
    assert identity["batch_size"] == DEFAULT_BATCH_SIZE


def test_a_stream_keeps_its_own_batches(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    few.write_h5ad(tmp_path / "cells.h5ad")
    cells = stream([tmp_path / "cells.h5ad"], model.vocab, config=model.tokenizer_config(), batch_size=6)
    with_free(1)
    config = TrainConfig(accelerator="cpu", max_epochs=10, batch_size="auto")
    with caplog.at_level(logging.WARNING, logger="scgalore"):
        settled = settle_memory(model.network, cells, None, MaskedExpression(), config)
    assert settled == replace(config, batch_size=DEFAULT_BATCH_SIZE)
    assert f"A batch of 6 cells of {model.network.config.max_length} tokens" in caplog.text


def test_asking_draws_no_random_numbers_and_changes_nothing(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None]
) -> None:
    with_free(1)
    weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    before = torch.random.get_rng_state()
    settle(model, few, batch_size="auto", adapter="lte", optimizer="galore", seed=5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.network.state_dict().items())


def test_an_objective_of_the_users_own_and_frozen_weights_are_no_error(
    model: SCGPT, few: AnnData, with_free: Callable[[int], None]
) -> None:
    with_free(2 * peak_of(model, few, DEFAULT_BATCH_SIZE))
    cells, split = prepared(model, few)
    config = TrainConfig(accelerator="cpu", max_epochs=10)
    own = replace(MaskedExpression(), name="own")
    assert settle_memory(model.network, cells, split, own, config) == config
    model.network.requires_grad_(requires_grad=False)
    assert settle_memory(model.network, cells, split, MaskedExpression(), config) == config


@pytest.mark.parametrize(
    ("sizes", "shape", "options"),
    [
        ((32, 1, 32, 1), (1, 2), {"optimizer": "adamw"}),
        ((64, 4, 64, 2), (64, 30), {"optimizer": "sophia"}),
        ((64, 4, 256, 3), (1, 1500), {"adapter": "lora"}),
        ((128, 4, 512, 2), (32, 400), {"adapter": "lte"}),
    ],
)
def test_a_run_is_estimated_where_a_quarter_of_the_free_memory_may_be_too_little(
    sizes: tuple[int, int, int, int], shape: tuple[int, int], options: dict[str, Any]
) -> None:
    d_model, n_heads, d_hid, n_layers = sizes
    network = blank(CONFIG.replace(d_model=d_model, n_heads=n_heads, d_hid=d_hid, n_layers=n_layers))
    case = Case(network, MaskedExpression(), TrainConfig(accelerator="cpu", **options), *shape, n_rows=503, gpu=False)
    peak = count_case(case).peak
    assert not fits_by_far(case, 4 * peak)
    assert fits_by_far(case, 400 * peak)


def test_several_processes_must_be_told(model: SCGPT, few: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    world = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in world.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="does not support several processes, found 2"):
        settle(model, few, batch_size="auto")


class TestLargestBatch:
    def tokens_and_cells(self, caplog: pytest.LogCaptureFixture, model: SCGPT, few: AnnData, **options: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="scgalore"):
            settle(model, few, **options)
        return caplog.text

    def test_caps_on_tokens_and_on_length_count(
        self, model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        with_free(1)
        assert "32 cells of 20 tokens" in self.tokens_and_cells(caplog, model, few, max_length=20)
        assert "5 cells of 20 tokens" in self.tokens_and_cells(caplog, model, few, max_length=20, batch_tokens=100)
        longest = int(model.cells(few).lengths.max())
        text = self.tokens_and_cells(caplog, model, few, batch_tokens=3 * longest + 1, batch_size=1000)
        assert "3 cells of" in text
        assert "batch_tokens=" in text or "gradient_checkpointing" in text

    def test_a_curriculum_has_as_many_tokens_in_every_phase(
        self, model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        with_free(1)
        cells, split = prepared(model, few)
        lengths = cells.lengths[split.train]
        fit = math.ceil(8 * lengths.mean()) // int(lengths.max())
        text = self.tokens_and_cells(caplog, model, few, curriculum=[20, 40], batch_size=8)
        assert f"{fit} cells of {lengths.max()} tokens" in text

    def test_there_are_no_more_cells_than_the_split_has(
        self, model: SCGPT, few: AnnData, with_free: Callable[[int], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        with_free(1)
        cells = model.cells(few)
        split = Split(np.arange(5), np.arange(5, 8), np.arange(8, cells.n_obs))
        with caplog.at_level(logging.WARNING, logger="scgalore"):
            config = TrainConfig(accelerator="cpu", max_epochs=10)
            settle_memory(model.network, cells, split, MaskedExpression(), config)
        assert "A batch of 5 cells" in caplog.text


def test_the_device_is_the_accelerator_asked_for() -> None:
    assert training_device(TrainConfig(accelerator="cpu")).type == "cpu"
    assert training_device(TrainConfig(accelerator="cuda")).type == "cuda"
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert training_device(TrainConfig(accelerator="auto")).type == expected
