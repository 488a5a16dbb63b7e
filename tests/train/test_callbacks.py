import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tests.bitwise import differences
from tests.flagged import flag_network, flagged_cells, flagged_split

from scgalore._settings import settings
from scgalore.errors import DataError
from scgalore.nn import SCGPTNetwork
from scgalore.objectives import Perturbation
from scgalore.train import TrainConfig, TrainResult, fit
from scgalore.train.callbacks import BestWeights, History, ShowProgress, StopEarly

UNBEATABLE = -1.0
"""An error that no epoch can have."""


def trainer(epoch: int, *, n_epochs: Any = 10, **metrics: float) -> Any:
    """The little of a trainer that the callbacks read."""
    return SimpleNamespace(
        current_epoch=epoch,
        max_epochs=n_epochs,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        should_stop=False,
        is_global_zero=True,
    )


def plan() -> Any:
    return SimpleNamespace(module=SimpleNamespace(network=torch.nn.Linear(2, 1, bias=False)))


class TestHistory:
    def test_rows_survive_a_round_trip(self) -> None:
        history, again = History(), History()
        history.on_train_epoch_start(trainer(0), plan())
        history.on_train_epoch_end(trainer(0, train_loss=2.0, validation_loss=3.0), plan())
        again.load_state_dict(history.state_dict())
        again.on_train_epoch_end(trainer(1, train_loss=1.0), plan())
        assert [row["epoch"] for row in again.rows] == [0, 1]
        assert len(history.rows) == 1
        assert history.rows[0].items() >= {"lr": 0.1, "train_loss": 2.0, "validation_loss": 3.0}.items()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("name", ["train_loss", "validation_loss"])
    def test_loss_that_is_not_finite_ends_the_run(self, name: str, value: float) -> None:
        with pytest.raises(DataError, match=f"{name} became {value} in epoch 3.*Use a lower lr"):
            History().on_train_epoch_end(trainer(3, **{name: value}), plan())


class TestShowProgress:
    def test_log_file_gets_a_line_every_so_often(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Two epochs of four batches, of ten seconds each."""
        seconds = iter(range(0, 1000, 10))
        monkeypatch.setattr("scgalore._progress.time.monotonic", lambda: next(seconds))
        monkeypatch.setattr("scgalore._progress.is_shown", lambda: False)
        settings.progress = True
        callback = ShowProgress()
        with caplog.at_level(logging.INFO, logger="scgalore"):
            for epoch in range(2):
                state = trainer(epoch, n_epochs=2, **({"validation_loss": 0.5} if epoch else {}))
                state.num_training_batches = 4
                callback.on_train_epoch_start(state, plan())
                for batch in range(4):
                    callback.on_train_batch_end(state, plan(), None, None, batch)
            callback.on_train_end(state, plan())
        assert [record.getMessage().strip() for record in caplog.records] == [
            "training: 3 of 8 batches (38%), 50 s left; epoch 1 of 2",
            "training: 6 of 8 batches (75%), 20 s left; epoch 2 of 2, validation_loss 0.5",
        ]


class TestBestWeights:
    def run(self, scores: list[float]) -> tuple[BestWeights, Any]:
        best, module = BestWeights("validation_loss"), plan()
        for epoch, score in enumerate(scores):
            with torch.no_grad():
                module.module.network.weight.fill_(epoch)
            best.on_train_epoch_end(trainer(epoch, validation_loss=score), module)
        return best, module

    def test_lowest_score_is_put_back(self) -> None:
        best, module = self.run([3.0, 1.0, 2.0])
        best.on_fit_end(trainer(2), module)
        assert best.epoch == 1
        assert module.module.network.weight.unique().tolist() == [1.0]

    def test_first_of_equal_scores_and_no_nan(self) -> None:
        assert self.run([1.0, 1.0])[0].epoch == 0
        assert self.run([math.nan, 5.0])[0].epoch == 1

    def test_without_scores_the_last_weights_stay(self) -> None:
        best, module = BestWeights("validation_loss"), plan()
        before = module.module.network.weight.clone()
        best.on_train_epoch_end(trainer(0, train_loss=1.0), module)
        best.on_fit_end(trainer(0), module)
        assert (best.epoch, best.weights) == (-1, {})
        assert torch.equal(module.module.network.weight, before)

    def test_survives_a_round_trip(self) -> None:
        best, module = self.run([3.0, 1.0])
        again = BestWeights("validation_loss")
        again.load_state_dict(best.state_dict())
        again.on_train_epoch_end(trainer(2, validation_loss=2.0), module)
        assert (again.best, again.epoch) == (1.0, 1)


@pytest.mark.parametrize(("waited", "stops"), [(0, False), (1, False), (2, True)])
def test_resumed_run_remembers_that_it_had_stopped(waited: int, stops: bool) -> None:
    state = {**StopEarly("validation_loss", patience=2).state_dict(), "wait_count": waited}
    resumed, run = StopEarly("validation_loss", patience=2), trainer(0)
    resumed.load_state_dict(state)
    resumed.on_train_start(run, plan())
    assert run.should_stop is stops


@pytest.mark.parametrize(("hopeless", "epochs"), [([1.0] * 5, 2), ([0.0] * 5, 3), ([1.0, 0.0, 0.0, 0.0], 2)])
def test_epochs_that_are_clearly_worse_than_the_start_count_twice(hopeless: list[float], epochs: int) -> None:
    stop, ran = StopEarly("validation_loss", patience=3, start=0.5), 0
    stop._check_on_train_epoch_end = True
    for epoch, of_epoch in enumerate(hopeless):
        run = trainer(epoch, validation_loss=0.5, validation_hopeless=of_epoch)
        run.state, run.sanity_checking, run.fast_dev_run = SimpleNamespace(fn=TrainerFn.FITTING), False, False
        run.strategy = SimpleNamespace(reduce_boolean_decision=lambda stop, all: stop)
        stop.on_train_epoch_end(run, plan())
        ran += 1
        if run.should_stop:
            break
    assert ran == epochs


class TestWeightsOfTheStartMayBeTheBest:
    """A score of the start makes them count: they stay until an epoch does better."""

    def run(self, start: float, scores: list[float]) -> tuple[BestWeights, Any]:
        best, module = BestWeights("validation_loss", start=start), plan()
        with torch.no_grad():
            module.module.network.weight.fill_(-5)
        best.on_fit_start(trainer(0), module)
        for epoch, score in enumerate(scores):
            with torch.no_grad():
                module.module.network.weight.fill_(epoch)
            best.on_train_epoch_end(trainer(epoch, validation_loss=score), module)
        best.on_fit_end(trainer(len(scores)), module)
        return best, module.module.network.weight.unique().tolist()

    @pytest.mark.parametrize(
        ("start", "scores", "epoch", "weight"),
        [
            (1.0, [3.0, 1.0, math.nan], -1, -5.0),
            (1.0, [3.0, 0.9, 0.95], 1, 1.0),
            (1.0, [], -1, -5.0),
            (math.inf, [3.0, 4.0], 0, 0.0),
        ],
    )
    def test_until_an_epoch_beats_it(self, start: float, scores: list[float], epoch: int, weight: float) -> None:
        best, weights = self.run(start, scores)
        assert best.epoch == epoch
        assert weights == [weight]

    def test_kept_weights_are_a_copy(self) -> None:
        best, module = BestWeights("validation_loss", start=0.5), plan()
        before = module.module.network.weight.detach().clone()
        best.on_fit_start(trainer(0), module)
        with torch.no_grad():
            module.module.network.weight.add_(1)
        assert torch.equal(best.weights["weight"], before)

    def test_a_resumed_run_keeps_those_of_the_first_start(self) -> None:
        first, module = BestWeights("validation_loss", start=0.5), plan()
        start = module.module.network.weight.detach().clone()
        first.on_fit_start(trainer(0), module)
        resumed, later = BestWeights("validation_loss", start=0.5), plan()
        resumed.load_state_dict(first.state_dict())
        resumed.on_fit_start(trainer(1), later)
        resumed.on_train_epoch_end(trainer(1, validation_loss=0.6), later)
        resumed.on_fit_end(trainer(1), later)
        assert resumed.epoch == -1
        assert torch.equal(later.module.network.weight, start)


class TestPerturbationRuns:
    """The same in real runs, whose objective knows the score of the start."""

    def train(
        self,
        network: SCGPTNetwork,
        start: float,
        folder: Path | None = None,
        *,
        monitor: str = "validation_choice",
        resume: bool = False,
        **options: Any,
    ) -> TrainResult:
        config = TrainConfig(**{"max_epochs": 3, "batch_size": 8, "lr": 1e-2, "accelerator": "cpu", **options})
        return fit(
            network,
            flagged_cells(),
            flagged_split(),
            Perturbation(start, monitor=monitor),
            config,
            checkpoint_dir=folder,
            resume=resume,
        )

    def test_weights_of_the_start_come_back(self) -> None:
        network = flag_network(at_zero=True)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        result = self.train(network, UNBEATABLE)
        assert result.best_epoch == -1
        assert result.history.index.tolist() == [0, 1, 2]
        assert differences(before, network.state_dict()) == []

    def test_an_epoch_that_does_better_is_kept(self) -> None:
        network = flag_network(at_zero=True)
        result = self.train(network, 2.5, monitor="validation_score")
        assert result.best_epoch == result.history["validation_score"].idxmin()
        assert any(bool(p.any()) for p in network.decoder.coeff_decoder.fc[-1].parameters())  # type: ignore[index]

    def test_a_resumed_run_ends_with_the_weights_of_the_first_start(self, tmp_path: Path) -> None:
        network, other = flag_network(at_zero=True), flag_network(seed=5)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        self.train(network, UNBEATABLE, tmp_path)
        again = self.train(other, UNBEATABLE, tmp_path, resume=True)
        assert again.best_epoch == -1
        assert len(again.history) == 3
        assert differences(before, other.state_dict()) == []

    @pytest.mark.parametrize("patience", [1, 2])
    def test_patience_counts_from_the_start(self, patience: int) -> None:
        result = self.train(flag_network(at_zero=True), UNBEATABLE, patience=patience, max_epochs=6)
        assert len(result.history) == patience

    def test_patience_counts_from_the_first_epoch_without_a_score_of_the_start(self) -> None:
        result = self.train(flag_network(), math.inf, patience=1, max_epochs=6)
        assert len(result.history) > 1
        assert result.best_epoch >= 0


def test_early_stopping_without_a_score_of_the_start_has_none() -> None:
    assert StopEarly("validation_loss", patience=2).best_score == math.inf
    assert StopEarly("validation_loss", patience=2, start=0.25).best_score == 0.25
