"""What the three sources of cells have in common, and that nothing outside of `scgalore.data` asks which one it has."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from tests.flagged import flag_network, flagged_cells, flagged_split

import scgalore
from scgalore.data import stream
from scgalore.data.batches import BatchPlan
from scgalore.data.source import CellSource
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.objectives import Perturbation
from scgalore.train import TrainConfig, fit

KINDS = ("cells", "stream", "perturbations")


@pytest.fixture
def make(few: AnnData, model: SCGPT) -> Callable[[str], CellSource]:
    """Make a source of a kind."""

    def source(kind: str) -> CellSource:
        if kind == "cells":
            return model.cells(few, max_length=20)
        if kind == "stream":
            return stream(few, model.vocab, config=model.tokenizer_config(max_length=20), batch_size=8, buffer_size=16)
        return flagged_cells()

    return source


@pytest.mark.parametrize("kind", KINDS)
class TestEverySource:
    plan = BatchPlan(8, seed=3)

    def test_serves_training_batches_within_what_it_announces(
        self, make: Callable[[str], CellSource], kind: str
    ) -> None:
        source = make(kind)
        batches = source.training_batches(None, self.plan)
        n_cells, n_tokens = source.largest_batch(None, self.plan)
        drawn = [item.batch for item in served(batches)]
        assert len(drawn) == batches.n_batches(0)
        assert sum(map(len, drawn)) == batches.n
        assert max(map(len, drawn)) <= n_cells
        assert max(batch.genes.shape[1] for batch in drawn) <= n_tokens + 2  # perturbed genes that are not measured
        assert set(np.unique(np.concatenate([batch.genes.ravel() for batch in drawn]))) <= set(source.tokens())

    def test_validation_batches_are_always_the_same(self, make: Callable[[str], CellSource], kind: str) -> None:
        batches = make(kind).validation_batches(None, self.plan)
        cells = []
        for epoch in (0, 4):
            batches.set_epoch(epoch)
            cells.append([(item.draw, item.batch.cells.tolist()) for item in served(batches)])
        assert cells[0] == cells[1]
        assert len(cells[0]) == batches.n_batches(0)

    def test_first_is_a_training_batch(self, make: Callable[[str], CellSource], kind: str) -> None:
        first = make(kind).training_batches(None, self.plan).first()
        assert first.draw == 0
        assert len(first.batch) >= 1

    def test_identity_is_plain_and_repeatable(self, make: Callable[[str], CellSource], kind: str) -> None:
        identity = make(kind).identity()
        assert json.loads(json.dumps(identity)) == identity == make(kind).identity()
        assert identity["number of cells"] == make(kind).n_obs

    def test_limits_are_options_of_training_with_reasons(self, make: Callable[[str], CellSource], kind: str) -> None:
        for name, why in make(kind).limits.items():
            assert hasattr(TrainConfig(), name)
            assert why.endswith(".")


def served(batches: Any) -> list[Any]:
    requests = batches.sampler
    return list(batches.dataset) if requests is None else [batches.dataset[request] for request in requests]


def test_an_option_that_the_source_decides_is_refused() -> None:
    with pytest.raises(OptionError, match="max_length=9: perturbed cells have a token for each measured gene"):
        fit(flag_network(), flagged_cells(), flagged_split(), Perturbation(), TrainConfig(max_length=9))


def test_a_stream_has_no_rows_to_choose_from(make: Callable[[str], Any]) -> None:
    source = make("stream")
    with pytest.raises(OptionError, match="reads all of its cells"):
        source.training_batches(np.arange(3), BatchPlan(8))
    with pytest.raises(OptionError, match="shuffles its cells"):
        next(source.windows(np.arange(3)))


def test_nobody_outside_asks_which_kind_it_is() -> None:
    sources = {"TokenCells", "TokenStream", "PerturbationCells"}
    root = Path(scgalore.__file__).parent
    asked = [
        f"{path.relative_to(root)}:{call.lineno}"
        for path in root.rglob("*.py")
        if path.parent != root / "data"
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "isinstance"
        if sources & {getattr(name, "id", "") for name in ast.walk(call.args[1])}
    ]
    assert asked == []
