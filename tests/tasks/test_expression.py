from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from tests.pipeline.conftest import quick

from scgalore.data.sampler import BatchRequest
from scgalore.model import SCGPT
from scgalore.objectives import MaskedExpression
from scgalore.tasks.expression import RULES, Expression, _mean_bins


@pytest.fixture
def task(few: AnnData, tmp_path: Path) -> Expression:
    task = Expression(
        quick(tmp_path / "x.h5ad", tmp_path / "run", validation_size=0.1, test_size=0.3, optimizer="galore")
    )
    task.split(few)
    return task


def test_error_is_that_of_the_objective(few: AnnData, model: SCGPT, task: Expression) -> None:
    model.network.eval()
    found = task.evaluate(few, model).metrics
    cells, test = model.cells(few), task.parts(few).test
    objective = MaskedExpression(mask_value=model.network.config.mask_value)
    each = []
    for row in test:
        batch = objective.corrupt(cells.batch(BatchRequest(np.array([row]))), seed=0, draw=0)
        each.append(float(objective(model.network, batch).parts["mse"]))
    assert found["test"]["n"] == len(test)
    assert found["test"]["mse"] == pytest.approx(np.mean(each), rel=1e-4)
    assert found["test"]["mse_se"] == pytest.approx(np.std(each, ddof=1) / np.sqrt(len(test)), rel=1e-3)


def test_rules_know_training_cells_only(few: AnnData, model: SCGPT, task: Expression) -> None:
    cells, train = model.cells(few), task.parts(few).train
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
    few: AnnData, model: SCGPT, task: Expression, random_states: Callable[[], object]
) -> None:
    before = random_states()
    first, second = (task.evaluate(few, model) for _ in range(2))
    assert first.metrics == second.metrics
    assert random_states() == before
    assert set(first.metrics["baselines"]) == set(RULES)


def test_mean_visible_bin_is_that_of_the_cell(few: AnnData, model: SCGPT, task: Expression) -> None:
    cells, test = model.cells(few), task.parts(few).test
    objective = MaskedExpression(mask_value=model.network.config.mask_value)
    each = []
    for row in test:
        batch = objective.corrupt(cells.batch(BatchRequest(np.array([row]))), seed=0, draw=0)
        values, masked = batch.targets["expression"][0, 1:].numpy(), batch.targets["masked"][0, 1:].numpy()
        each.append(np.mean((values[masked] - values[~masked].mean()) ** 2))
    found = task.evaluate(few, model).metrics["baselines"][RULES[2]]
    assert found["mse"] == pytest.approx(np.mean(each), rel=1e-5)
