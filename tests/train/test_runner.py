import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from lightning.pytorch.callbacks import Checkpoint
from scvi.module.base import BaseModuleClass
from scvi.train import Trainer, TrainingPlan, TrainRunner
from tests.steps import is_step
from torch.optim.optimizer import register_optimizer_step_post_hook

from scgalore.data.sampler import sorted_batches
from scgalore.data.split import Split
from scgalore.errors import DataError, OptionError
from scgalore.model import SCGPT
from scgalore.objectives import Classification, MaskedExpression
from scgalore.train import runner as runner_module

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 16, "lr": 2e-3}


def weights(model: SCGPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[TrainRunner]:
    """Collect the runners that are made."""
    made: list[TrainRunner] = []

    class Kept(TrainRunner):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(runner_module, "TrainRunner", Kept)
    return made


class TestUnderScvi:
    def test_plan_module_and_trainer_are_scvis(self, few: AnnData, model: SCGPT, runners: list[TrainRunner]) -> None:
        model.train(few, **RUN)
        (run,) = runners
        assert isinstance(run.trainer, Trainer)
        assert isinstance(run.training_plan, TrainingPlan)
        assert isinstance(run.training_plan.module, BaseModuleClass)
        assert run.training_plan.n_obs_training == run.data_splitter.n_train == 81
        assert run.model.is_trained_
        assert not any("elbo" in str(name) for name in {*run.model.history_, *model.history.columns})
        assert {"train_loss", "validation_loss"} <= set(run.model.history_)

    def test_scvis_history_agrees_with_ours(self, few: AnnData, model: SCGPT, runners: list[TrainRunner]) -> None:
        model.train(few, **RUN)
        for name in ("train_loss", "validation_loss", "validation_accuracy"):
            theirs = runners[0].model.history_[name][name].to_numpy(float)
            np.testing.assert_array_equal(theirs, model.history[name])

    def test_checkpoints_are_written_last(
        self, few: AnnData, model: SCGPT, runners: list[TrainRunner], tmp_path: Path
    ) -> None:
        model.train(few, **RUN, patience=1, checkpoint_dir=tmp_path)
        callbacks = runners[0].trainer.callbacks
        assert isinstance(callbacks[-1], Checkpoint)
        assert sum(isinstance(callback, Checkpoint) for callback in callbacks) == 1

    def test_no_checkpoint_without_folder(self, few: AnnData, model: SCGPT, runners: list[TrainRunner]) -> None:
        model.train(few, **RUN)
        assert not any(isinstance(callback, Checkpoint) for callback in runners[0].trainer.callbacks)


class TestSideEffects:
    @pytest.mark.parametrize("labels_key", ["bulk_labels", None])
    def test_nothing_appears_in_the_working_folder(
        self,
        few: AnnData,
        model: SCGPT,
        in_empty_folder: Callable[[], None],
        tmp_path: Path,
        labels_key: str | None,
    ) -> None:
        model.train(few, **{**RUN, "labels_key": labels_key}, patience=1)
        model.train(few, **{**RUN, "labels_key": labels_key}, checkpoint_dir=tmp_path / "run")
        in_empty_folder()
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.ckpt"]

    def test_random_states_and_flags_are_the_users(
        self, few: AnnData, model: SCGPT, random_states: Callable[[], tuple[object, ...]]
    ) -> None:
        before = random_states()
        levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch.utilities.rank_zero", "scvi")}
        filters, benchmark = list(warnings.filters), torch.backends.cudnn.benchmark
        model.train(few, **RUN)
        assert random_states() == before
        assert {name: logging.getLogger(name).level for name in levels} == levels
        assert (list(warnings.filters), torch.backends.cudnn.benchmark) == (filters, benchmark)
        assert torch.is_grad_enabled()

    def test_failing_run_is_no_exception(self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch) -> None:
        before = torch.random.get_rng_state()
        monkeypatch.setattr(Classification, "__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.train(few, **RUN)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_run_says_nothing_and_warns_of_nothing(
        self, few: AnnData, model: SCGPT, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
    ) -> None:
        model.train(few, **RUN, patience=1, validation_size=0.3)
        assert [str(warning.message) for warning in recwarn] == []
        out, err = capfd.readouterr()
        assert out == ""
        assert "rank_zero" not in err
        assert "GPU available" not in err


class TestDropout:
    def test_is_drawn_in_training_and_off_in_validation(
        self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: set[tuple[bool, bool]] = set()
        loss = Classification.__call__

        def watched(self: Classification, network: Any, batch: Any) -> Any:
            if network.training != is_step(network, batch):
                return loss(self, network, batch)
            once, twice = (network.encode(batch.genes, batch.values, batch.padding).cell for _ in range(2))
            seen.add((network.training, torch.equal(once, twice)))
            return loss(self, network, batch)

        monkeypatch.setattr(Classification, "__call__", watched)
        model.train(few, **RUN)
        assert seen == {(True, False), (False, True)}
        assert not model.network.training

    def test_differs_from_step_to_step(self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch) -> None:
        draws: list[float] = []
        loss = Classification.__call__

        def watched(self: Classification, network: Any, batch: Any) -> Any:
            if is_step(network, batch):
                state = torch.random.get_rng_state()
                draws.append(float(torch.rand(())))
                torch.random.set_rng_state(state)
            return loss(self, network, batch)

        monkeypatch.setattr(Classification, "__call__", watched)
        model.train(few, **RUN)
        assert len(draws) == len(set(draws)) == 12


def test_every_epoch_has_its_own_batches_and_samples(
    few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], list[list[int]]]] = []
    loss = Classification.__call__

    def watched(self: Classification, network: Any, batch: Any) -> Any:
        if is_step(network, batch):
            seen.append((batch.cells.tolist(), batch.genes.tolist()))
        return loss(self, network, batch)

    monkeypatch.setattr(Classification, "__call__", watched)
    model.train(few, **RUN, max_length=20)
    epochs = [
        dict(zip(sum((rows for rows, _ in part), []), sum((genes for _, genes in part), []), strict=True))
        for part in (seen[:6], seen[6:])
    ]
    assert epochs[0].keys() == epochs[1].keys()
    assert list(epochs[0]) != list(epochs[1])
    assert sum(epochs[0][row] != epochs[1][row] for row in epochs[0]) > 70


class TestOptions:
    @pytest.mark.parametrize(
        ("batch_size", "how", "task"),
        [
            (8, {"accumulate": 4}, {"prior": "none"}),
            # Batches of other sizes, whose cells and classes weigh other than those of the last one.
            (10, {"accumulate": 4}, {"prior": "none", "class_weight": "balanced"}),
            (10, {"accumulate": 4}, {"labels_key": None, "mask_ratio": [0.2, 0.7]}),
            (10, {"accumulate_tokens": 10**6}, {"labels_key": None, "mask_ratio": [0.2, 0.7]}),
        ],
    )
    def test_accumulated_batches_are_one_larger_batch(
        self,
        few: AnnData,
        make_model: Callable[..., SCGPT],
        batch_size: int,
        how: dict[str, Any],
        task: dict[str, Any],
    ) -> None:
        rows = np.arange(few.n_obs)
        split = Split(rows[:32], rows[32:48], rows[48:])
        options = {**RUN, "max_epochs": 3, "optimizer": "adamw", "optimizer_options": {"eps": 1e-3}, "split": split}
        options |= task
        models = []
        steps: list[tuple[int, dict[str, Any]]] = [(32, {}), (batch_size, how), (batch_size, {})]
        for size, several in steps:
            model = make_model(few.var_names, dropout=0.0)
            model.train(few, **{**options, "batch_size": size}, **several)
            models.append(weights(model))
        whole, accumulated, small = models
        for name in whole:
            torch.testing.assert_close(accumulated[name], whole[name], rtol=0, atol=2e-5)
        assert any((small[name] - whole[name]).abs().max() > 1e-3 for name in whole)

    @pytest.mark.parametrize("optimizer", ["galore", "adamw"])
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_gradient_norm_is_clipped(self, few: AnnData, model: SCGPT, optimizer: str, precision: str) -> None:
        norms: list[float] = []

        def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms.append(float(torch.linalg.vector_norm(torch.stack([grad.norm() for grad in grads]))))

        handle = register_optimizer_step_post_hook(measure)
        try:
            run = {**RUN, "max_epochs": 1, "optimizer": optimizer, "precision": precision, "rng": 0}
            model.train(few, **run, clip_norm=float("inf"))
            free, norms = norms, []
            model.train(few, **run, clip_norm=0.05)
        finally:
            handle.remove()
        assert min(free) > 0.05
        assert max(norms) == pytest.approx(0.05, rel=1e-3)

    def test_mixed_precision_trains_float32_weights(self, few: AnnData, model: SCGPT) -> None:
        before = weights(model)
        model.train(few, **RUN, prior="none", precision="bf16-mixed")
        after = weights(model)
        assert all(tensor.dtype == torch.float32 for tensor in after.values())
        assert any(not torch.equal(after[name], before[name]) for name in before)
        assert np.isfinite(model.history["validation_loss"]).all()

    def test_patience_ends_the_run(self, few: AnnData, model: SCGPT) -> None:
        model.train(
            few, **{**RUN, "max_epochs": 40, "lr": 0.5}, warmup=0.0, optimizer="adamw", patience=3, prior="none"
        )
        losses = model.history["validation_loss"]
        assert len(losses) < 40
        assert model.result.best_epoch == losses.idxmin() == len(losses) - 4

    def test_patience_needs_validation_cells(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="patience requires validation cells"):
            model.train(few, **RUN, patience=2, validation_size=0.0)

    @pytest.mark.parametrize("optimizer", ["galore", "adamw"])
    def test_optimizer_state_is_counted(
        self, few: AnnData, model: SCGPT, runners: list[TrainRunner], optimizer: str
    ) -> None:
        model.train(few, **{**RUN, "max_epochs": 1, "validation_size": 0.0}, optimizer=optimizer)
        state = runners[0].trainer.optimizers[0].state.values()
        tensors = [value for entry in state for value in entry.values() if isinstance(value, torch.Tensor)]
        assert model.result.optimizer_bytes == sum(tensor.nbytes for tensor in tensors) > 0
        assert model.result.best_epoch == 0

    def test_galore_keeps_less_state_than_adamw(self, few: AnnData, make_model: Callable[..., SCGPT]) -> None:
        sizes = []
        for optimizer in ("galore", "adamw"):
            model = make_model(few.var_names, d_model=32, d_hid=64)
            model.train(few, **{**RUN, "max_epochs": 1}, optimizer=optimizer)
            sizes.append(model.result.optimizer_bytes)
        assert sizes[0] < sizes[1]


class TestBestEpoch:
    @pytest.mark.parametrize(
        "objective", [pytest.param(Classification(3), id="classes"), pytest.param(MaskedExpression(), id="masked")]
    )
    def test_weights_of_the_best_epoch_are_kept(
        self, few: AnnData, model: SCGPT, objective: Classification | MaskedExpression
    ) -> None:
        labels_key = "bulk_labels" if isinstance(objective, Classification) else None
        # Steps that grow until they do harm: the best epoch is not the last.
        options = {**RUN, "labels_key": labels_key, "max_epochs": 6, "lr": 3.0, "warmup": 1.0}
        options["prior"] = None if labels_key is None else "none"
        model.train(few, **options, optimizer="adamw", validation_size=0.3)
        losses = model.history["validation_loss"]
        best = model.result.best_epoch
        assert best is not None
        assert best == losses.idxmin()
        assert best < 5
        assert self.validation_loss(model, few, objective, labels_key) == pytest.approx(losses[best], rel=1e-6)

    def validation_loss(self, model: SCGPT, few: AnnData, objective: Any, labels_key: str | None) -> float:
        cells = model.cells(few)
        if labels_key is not None:
            cells = cells.with_targets(labels=few.obs[labels_key].cat.codes.to_numpy(np.int64))
        assert model.split is not None
        rows = model.split.validation
        total = 0.0
        with torch.no_grad():
            for request in sorted_batches(rows, cells.lengths[rows], batch_size=16):
                batch = objective.corrupt(cells.batch(request), seed=0, draw=0)
                total += float(objective(model.network, batch).total) * len(batch)
        return total / len(rows)

    def test_without_validation_the_last_epoch_is_kept(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, **RUN, validation_size=0.0)
        assert model.result.best_epoch == 1
        assert not any("validation" in str(name) for name in model.history)


class TestDivergence:
    def test_ends_the_run_and_keeps_model_and_checkpoint(
        self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        before, calls = weights(model), [0]
        loss = Classification.__call__

        def diverging(self: Classification, network: Any, batch: Any) -> Any:
            calls[0] += is_step(network, batch)
            result = loss(self, network, batch)
            return result._replace(total=result.total * (float("nan") if calls[0] > 8 else 1))

        monkeypatch.setattr(Classification, "__call__", diverging)
        with pytest.raises(
            DataError, match=r"train_loss became nan in epoch 1, batch \d.*Use a lower lr.*32-true.*clip_norm"
        ):
            model.train(few, **RUN, checkpoint_dir=tmp_path)
        for name, tensor in weights(model).items():
            assert torch.equal(tensor, before[name])
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


def test_package_of_training_is_light() -> None:
    code = "import sys, scgalore.train; print(sorted({'scvi', 'lightning', 'scanpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
