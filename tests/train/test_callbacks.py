import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scgalore.errors import DataError
from scgalore.train.callbacks import BestWeights, History, StopEarly


def trainer(epoch: int, **metrics: float) -> Any:
    """The little of a trainer that the callbacks read."""
    return SimpleNamespace(
        current_epoch=epoch,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        should_stop=False,
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
        with pytest.raises(DataError, match=f"{name} became {value} in epoch 3.*Lower lr"):
            History().on_train_epoch_end(trainer(3, **{name: value}), plan())


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
