from collections.abc import Callable

import numpy as np
import pytest
from anndata import AnnData

from scgalore._keys import CellKeys
from scgalore.data.sampler import BatchRequest
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.objectives import MaskedExpression
from scgalore.tasks import Findings, TrainingCall
from scgalore.tasks.expression import RULES, Expression, _mean_bins
from scgalore.tasks.registry import resolve_call
from scgalore.tl import finetune

TASK = Expression()
SPLIT = CellKeys("finetune").split


@pytest.fixture
def call(few: AnnData) -> TrainingCall:
    """A call whose split is in ``few``."""
    options = {"accelerator": "cpu"}
    _, call = resolve_call(options, task="expression", seed=0, function=finetune, validation_size=0.1, test_size=0.3)
    TASK.split(few, call, SPLIT)
    return call


def evaluate(few: AnnData, model: SCGPT, call: TrainingCall) -> Findings:
    return TASK.evaluate(few, model, call, name="scgpt")


def test_error_is_that_of_the_objective(few: AnnData, model: SCGPT, call: TrainingCall) -> None:
    model.network.eval()
    found = evaluate(few, model, call).metrics
    cells, test = model.cells(few), TASK.split_in(few, SPLIT).test
    objective = MaskedExpression(mask_value=model.network.config.mask_value)
    each = []
    for row in test:
        batch = objective.corrupt(cells.batch(BatchRequest(np.array([row]))), seed=0, draw=0)
        each.append(float(objective(model.network, batch).parts["mse"]))
    assert found["test"]["n"] == len(test)
    assert found["test"]["mse"] == pytest.approx(np.mean(each), rel=1e-4)
    assert found["test"]["mse_se"] == pytest.approx(np.std(each, ddof=1) / np.sqrt(len(test)), rel=1e-3)


def test_rules_know_training_cells_only(few: AnnData, model: SCGPT, call: TrainingCall) -> None:
    cells, train = model.cells(few), TASK.split_in(few, SPLIT).train
    means, overall = _mean_bins(cells, train)
    values: dict[int, list[float]] = {}
    for row in train:
        batch = cells.batch(BatchRequest(np.array([row])))
        for gene, value in zip(batch.genes[0, 1:].tolist(), batch.values[0, 1:].tolist(), strict=True):
            values.setdefault(gene, []).append(value)
    for gene, seen in values.items():
        assert means[gene] == pytest.approx(np.mean(seen))
    assert overall == pytest.approx(np.mean(np.concatenate(list(values.values()))))


def test_evaluation_is_repeatable_and_leaves_the_network_as_it_was(
    few: AnnData, model: SCGPT, call: TrainingCall, random_states: Callable[[], object]
) -> None:
    before = random_states()
    first, second = (evaluate(few, model, call) for _ in range(2))
    assert first.metrics == second.metrics
    assert random_states() == before
    assert set(first.metrics["baselines"]) == set(RULES)


def test_mean_visible_bin_is_that_of_the_cell(few: AnnData, model: SCGPT, call: TrainingCall) -> None:
    cells, test = model.cells(few), TASK.split_in(few, SPLIT).test
    objective = MaskedExpression(mask_value=model.network.config.mask_value)
    each = []
    for row in test:
        batch = objective.corrupt(cells.batch(BatchRequest(np.array([row]))), seed=0, draw=0)
        values, masked = batch.targets["expression"][0, 1:].numpy(), batch.targets["masked"][0, 1:].numpy()
        each.append(np.mean((values[masked] - values[~masked].mean()) ** 2))
    found = evaluate(few, model, call).metrics["baselines"][RULES[2]]
    assert found["mse"] == pytest.approx(np.mean(each), rel=1e-5)


def test_genes_that_are_masked_are_as_many_as_asked_for(few: AnnData, model: SCGPT) -> None:
    _, call = resolve_call({"mask_ratio": 0.5}, task="expression", seed=0, function=finetune)
    objective = TASK.prepare(TASK.read(few, call), model, call).objective
    batch = model.cells(few).batch(BatchRequest(np.arange(few.n_obs)))
    masked = objective.corrupt(batch, seed=0, draw=0).targets["masked"].sum(dim=1).numpy()
    lengths = (~batch.padding).sum(dim=1).numpy() - 1
    np.testing.assert_array_equal(masked, lengths // 2)


@pytest.mark.parametrize("ratio", [0.0, 1, [0.5, 2], [], "half"])
def test_ratios_lie_between_0_and_1(few: AnnData, model: SCGPT, ratio: object) -> None:
    with pytest.raises(OptionError, match="mask_ratio="):
        model.train(few, task="expression", mask_ratio=ratio, max_epochs=1)
    assert not model.is_trained


def test_a_model_without_flags_learns_to_generate(few: AnnData, model: SCGPT) -> None:
    before = model.network
    model.train(few, objective="generative", mask_ratio=[0.3, 0.6], max_epochs=2, batch_size=32, lr=2e-3)
    assert model.network.generates
    assert not before.generates
    assert {"train_mse", "validation_mse_from_cell"} <= set(model.history)
    assert model.history["train_loss"].is_monotonic_decreasing
    flags = model.network.flag_encoder.weight
    model.train(few, objective="generative", max_epochs=1, batch_size=32, lr=2e-3)
    assert flags is model.network.flag_encoder.weight  # trained on, not drawn anew
