"""How long a run trains where that is left open."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.train import TrainConfig, budget
from scgalore.train.budget import FEWEST_EPOCHS, MOST_EPOCHS, PATIENCE, STEPS, has_converged, open_epochs, settle_budget

RUN: dict[str, Any] = {"labels_key": "bulk_labels", "batch_size": 16, "lr": 2e-3, "accelerator": "cpu"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make open budgets short: 3 epochs of the 6 steps that 81 cells have."""
    monkeypatch.setattr(budget, "STEPS", 18)
    monkeypatch.setattr(budget, "FEWEST_EPOCHS", 1)


class TestEpochs:
    @given(st.integers(1, 10**6), st.integers(1, 512), st.integers(1, 8), st.integers(1, 4))
    def test_give_enough_steps_and_no_epoch_more(
        self, n: int, batch_size: int, accumulate: int, processes: int
    ) -> None:
        config = TrainConfig(batch_size=batch_size, accumulate=accumulate)
        epochs = open_epochs(n, config, n_processes=processes)
        assert FEWEST_EPOCHS <= epochs <= MOST_EPOCHS
        steps = math.ceil(math.ceil(n / (batch_size * processes)) / accumulate)
        assert epochs * steps >= STEPS or epochs == MOST_EPOCHS
        assert (epochs - 1) * steps < STEPS or epochs == FEWEST_EPOCHS

    def test_an_automatic_batch_size_has_as_many_cells_in_a_step(self) -> None:
        assert open_epochs(500, TrainConfig(batch_size="auto")) == open_epochs(500, TrainConfig())

    def test_every_phase_has_one(self) -> None:
        config = TrainConfig(curriculum=list(range(10, 10 + 3 * FEWEST_EPOCHS)))
        assert open_epochs(10**7, config) == 3 * FEWEST_EPOCHS

    def test_of_unknown_cells_are_a_fixed_number(self) -> None:
        assert open_epochs(None, TrainConfig()) == FEWEST_EPOCHS


class TestSettle:
    def test_what_is_given_stays(self) -> None:
        for config in (TrainConfig(max_epochs=3), TrainConfig(max_epochs=3, patience=2)):
            assert settle_budget(config, 100, validated=True) == config

    def test_what_is_open_gets_patience_if_there_is_something_to_be_patient_with(self) -> None:
        config = settle_budget(TrainConfig(), 500, validated=True)
        assert (config.max_epochs, config.patience) == (open_epochs(500, TrainConfig()), PATIENCE)
        assert settle_budget(TrainConfig(), 500, validated=False).patience is None
        assert settle_budget(TrainConfig(), None, validated=True).patience is None
        assert settle_budget(TrainConfig(patience=2), 500, validated=True).patience == 2

    def test_a_run_that_goes_on_keeps_its_own(self) -> None:
        for begun in ({"max_epochs": 4, "patience": 2}, {"max_epochs": 4, "patience": None}):
            config = settle_budget(TrainConfig(), 500, validated=True, begun=begun)
            assert {"max_epochs": config.max_epochs, "patience": config.patience} == begun

    def test_phases_share_the_epochs_out(self) -> None:
        config = settle_budget(TrainConfig(curriculum=[100, 200]), 500, validated=True)
        assert isinstance(config.curriculum, dict)
        assert list(config.curriculum) == [100, 200]
        assert sum(config.curriculum.values()) == config.max_epochs

    def test_phases_with_epochs_leave_nothing_open(self) -> None:
        config = TrainConfig(curriculum={100: 2, 200: 3})
        assert config.max_epochs == 5
        assert settle_budget(config, 500, validated=True) == config

    @pytest.mark.parametrize(
        ("curriculum", "message"), [({100: 0}, "integers of at least 1"), ([200, 100], "increase from phase to phase")]
    )
    def test_phases_are_checked_all_the_same(self, curriculum: Any, message: str) -> None:
        with pytest.raises(OptionError, match=message):
            TrainConfig(curriculum=curriculum)


class TestConverged:
    @pytest.mark.parametrize(
        ("scores", "converged"),
        [
            ([5.0], None),
            ([5.0, 4.0], None),
            ([5.0, 4.0, 3.0, 2.0], False),
            ([5.0, 1.0, 0.99, 0.98], True),
            ([5.0, 4.0, 3.0, 2.0, 2.1], True),
            ([5.0, 5.0, 5.0, 4.9], False),
        ],
    )
    def test_is_having_gained_most_before_the_last_half(self, scores: list[float], converged: bool | None) -> None:
        assert has_converged(scores) is converged

    @given(st.lists(st.integers(-1000, 1000), min_size=3), st.integers(-3, 3))
    def test_does_not_hang_on_the_scale(self, scores: list[int], power: int) -> None:
        assert has_converged([score * 2.0**power for score in scores]) is has_converged(scores)


@pytest.mark.usefixtures("short")
class TestRuns:
    def test_train_as_long_as_they_say(self, few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level("INFO", logger="scgalore"):
            model.train(few, **RUN, prior="none", patience=9)
        assert "at most 3 epochs (max_epochs), stopping early after 9 epochs" in caplog.text
        assert model.result is not None
        assert len(model.history) == model.result.max_epochs == 3
        assert model.result.steps == 18
        assert model.result.patience == 9

    def test_do_not_hang_on_who_counts_the_cells(self, few: AnnData, make_model: Any) -> None:
        weights = []
        for options in ({}, {"max_epochs": 3, "patience": PATIENCE}):
            model = make_model(few.var_names)
            model.train(few, **RUN, prior="none", **options)
            weights.append(model.network.state_dict())
        assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_without_validation_cells_train_all_epochs(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, **RUN, prior="none", validation_size=0.0)
        assert model.result is not None
        assert (len(model.history), model.result.patience, model.result.converged) == (3, None, None)

    def test_go_on_with_the_budget_they_were_begun_with(
        self, few: AnnData, make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_model(few.var_names).train(few, **RUN, checkpoint_dir=tmp_path)
        monkeypatch.setattr(budget, "STEPS", 60)
        again = make_model(few.var_names)
        again.train(few, **RUN, checkpoint_dir=tmp_path, resume=True)
        assert again.result.max_epochs == 3
        again = make_model(few.var_names)
        again.train(few, **RUN, checkpoint_dir=tmp_path, resume=True, max_epochs=5)
        assert again.result.max_epochs == len(again.history) == 5


class TestMessage:
    @pytest.mark.parametrize(("lr", "converged"), [(1e-4, False), (2e-2, True)])
    def test_comes_where_the_last_epoch_was_the_best_and_not_else(
        self, few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture, lr: float, converged: bool
    ) -> None:
        options = {**RUN, "lr": lr, "optimizer": "adamw", "lr_schedule": "constant"}
        with caplog.at_level("WARNING", logger="scgalore"):
            model.train(few, **options, prior="none", max_epochs=6)
        assert model.result is not None
        assert model.result.converged is converged
        assert ("training had not converged" in caplog.text) is not converged
        assert ("max_epochs=12" in caplog.text) is not converged

    def test_does_not_come_where_the_linear_model_was_better(
        self, few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("WARNING", logger="scgalore"):
            model.train(few, **{**RUN, "lr": 1e-12}, max_epochs=4)
        assert model.result is not None
        assert (model.result.best_epoch, model.result.converged) == (-1, None)
        assert "converged" not in caplog.text
