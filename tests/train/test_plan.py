from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from scvi.module.base import BaseModuleClass
from scvi.train import TrainingPlan

from scgalore.data.sampler import BatchRequest
from scgalore.model import SCGPT
from scgalore.nn.adapter import SCGPTModule
from scgalore.objectives import Classification, MaskedExpression
from scgalore.train import ObjectiveTrainingPlan, TrainConfig
from scgalore.train.plan import learning_rates


def factors(n_steps: int, warmup: float, shape: Any = "cosine", **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = learning_rates(optimizer, shape, n_steps=n_steps, warmup=warmup, **options)
    rates = []
    for _ in range(n_steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


class TestCosine:
    def test_start_peak_and_end(self) -> None:
        rates = factors(100, 0.1)
        assert rates[0] == pytest.approx(0.1)
        assert rates[9] == rates[10] == max(rates) == 1.0
        assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5)
        assert rates[-1] == pytest.approx(0.01, abs=1e-3)
        assert np.diff(rates[:10]) == pytest.approx(0.1)
        assert (np.diff(rates[10:]) < 0).all()

    def test_without_warmup_starts_at_the_peak(self) -> None:
        assert factors(20, 0.0)[0] == 1.0

    def test_warmup_only_ends_at_the_peak(self) -> None:
        assert factors(20, 1.0)[-1] == 1.0

    @pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
    def test_one_step_is_enough(self, warmup: float) -> None:
        assert factors(1, warmup) == [1.0]

    def test_steps_after_the_end_stay_at_the_floor(self) -> None:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = learning_rates(optimizer, "cosine", n_steps=3, warmup=0.0)
        for _ in range(10):
            optimizer.step()
            schedule.step()
        assert schedule.get_last_lr() == pytest.approx([0.01])


class TestOtherShapes:
    def test_a_constant_stays(self) -> None:
        assert factors(100, 0.1, "constant")[9:] == [1.0] * 91

    def test_a_cooldown_is_the_constant_until_the_last_fifth(self) -> None:
        rates = factors(100, 0.1, "cooldown")
        assert rates[:81] == factors(100, 0.1, "constant")[:81]
        assert np.diff(rates[80:]) == pytest.approx(-0.05)
        assert rates[-1] == pytest.approx(0.05)


class TestSwitches:
    def test_learning_rate_rises_again_to_the_same_cosine(self) -> None:
        plain = np.array(factors(100, 0.1))
        again = np.array(factors(100, 0.1, switches={40: 60}))
        assert again[:40].tolist() == plain[:40].tolist()
        assert again[40:46] / plain[40:46] == pytest.approx(np.arange(1, 7) / 6)
        assert again[46:].tolist() == plain[46:].tolist()


class TestPlan:
    @pytest.fixture
    def plan(self, model: SCGPT) -> ObjectiveTrainingPlan:
        return ObjectiveTrainingPlan(SCGPTModule(model.network, MaskedExpression()), TrainConfig(), {"lr": 1})

    def test_is_what_scvi_trains(self, plan: ObjectiveTrainingPlan) -> None:
        assert isinstance(plan, TrainingPlan)
        assert isinstance(plan.module, BaseModuleClass)

    def test_has_no_elbo(self, plan: ObjectiveTrainingPlan) -> None:
        assert plan.train_metrics == plan.val_metrics == {}

    def test_checkpoint_says_which_run_it_is(self, plan: ObjectiveTrainingPlan) -> None:
        checkpoint: dict[str, object] = {}
        plan.on_save_checkpoint(checkpoint)
        assert checkpoint["scgalore_run"] == {"lr": 1}

    def test_forward_gives_loss_parts_and_cells(self, few: AnnData, make_model: Callable[..., SCGPT]) -> None:
        model = make_model(few.var_names)
        model.network.put_heads(model.network.fresh_heads({"classes": 3}))
        codes = few.obs["bulk_labels"].cat.codes.to_numpy(np.int64)
        cells = model.cells(few).with_targets(labels=codes)
        plan = ObjectiveTrainingPlan(SCGPTModule(model.network, Classification(3)), TrainConfig())
        *_, output = plan(cells.batch(BatchRequest(np.arange(5))))
        assert output.n_obs_minibatch == 5
        assert set(output.extra_metrics) == {"accuracy"}
        assert output.loss.requires_grad
