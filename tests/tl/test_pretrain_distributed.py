"""Pre-training in two processes, started by torchrun."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from anndata import AnnData
from tests.bitwise import differences
from tests.launching import torchrun
from tests.tiny_plugin import few_cells
from tests.tl.pretrain_process import RUN, RUNS, attempt

import scgalore as sg

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
    ),
]


@pytest.fixture(scope="module")
def runs(_pbmc_once: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs in two processes, one after the other; 81 cells to train on, 9 held out."""
    folder, few = tmp_path_factory.mktemp("distributed"), few_cells(_pbmc_once)
    (folder / "cells").mkdir()
    few[::2].copy().write_h5ad(folder / "cells" / "even.h5ad")
    few[1::2].copy().write_h5ad(folder / "cells" / "odd.h5ad")
    (folder / "genes.txt").write_text(" ".join(few.var_names), encoding="utf-8")
    done = torchrun("tests.tl.pretrain_process", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sync_dist" not in done.stderr
    return folder


def ranks(runs: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(runs / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def alone(runs: Path, name: str, **changed: Any) -> dict[str, Any]:
    """Same run in this process."""
    network, options = RUNS[name]
    return attempt(runs, network, {**options, **changed})


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return float(np.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a)))


@pytest.mark.parametrize("name", [*RUNS, "resumed_sharded_muon"])
def test_weights_and_history_are_equal_to_the_last_bit(runs: Path, name: str) -> None:
    first, second = ranks(runs, name)
    assert differences(first, second, besides=("seen",)) == []


def test_each_cell_is_seen_by_exactly_one(runs: Path) -> None:
    parts = [part["seen"] for part in ranks(runs, "pass")]
    cells = [cell for seen in parts for step in seen for cell in step]
    # One of 81 cells is left over, and nine others are held out.
    assert len(cells) == len(set(cells)) == 80
    assert [len(step) for step in parts[0]] == [len(step) for step in parts[1]]
    one = alone(runs, "pass", batch_size=16, buffer_size=32, max_steps=6, steps_per_epoch=6)
    assert set(cells) < {cell for step in one["seen"] for cell in step}


def test_steps_of_the_same_cells_are_those_of_one_process(runs: Path) -> None:
    """Each process has a half of all cells in a batch."""
    both, one = ranks(runs, "together")[0], alone(runs, "together", batch_size=82, buffer_size=82)
    start = alone(runs, "together", batch_size=82, buffer_size=82, lr=1e-12, max_steps=1)["weights"]
    other = alone(runs, "together", batch_size=41, buffer_size=41)["weights"]
    way = distance(one["weights"], start)
    assert both["training"]["steps"] == one["training"]["steps"] == 6
    assert both["history"]["lr"] == one["history"]["lr"]
    assert distance(both["weights"], one["weights"]) < 1e-3 * way
    assert distance(both["weights"], other) > 1e-2 * way
    np.testing.assert_allclose(both["history"]["train_loss"], one["history"]["train_loss"], rtol=0.02)


def test_sharded_state_trains_the_same_weights(runs: Path) -> None:
    whole, sharded = (ranks(runs, name)[0] for name in ("muon", "sharded_muon"))
    assert differences(whole["weights"], sharded["weights"]) == []
    assert sharded["training"]["optimizer_bytes"] < 0.8 * whole["training"]["optimizer_bytes"]


def test_hours_are_the_same_number_of_steps_for_both(runs: Path) -> None:
    first, second = ranks(runs, "hours")
    assert first["training"]["steps"] == second["training"]["steps"] > 0


class TestResumed:
    def test_inside_an_epoch_to_the_same_bits(self, runs: Path) -> None:
        resumed, whole = (ranks(runs, name)[0] for name in ("resumed_sharded_muon", "sharded_muon"))
        besides = ("seconds", "cells_per_second", "tokens_per_second", "waited", "seen")
        assert differences(resumed, whole, besides=besides) == []
        for again, before in zip(ranks(runs, "resumed_sharded_muon"), ranks(runs, "sharded_muon"), strict=True):
            assert again["seen"] == before["seen"][-len(again["seen"]) :]
            assert len(again["seen"]) == 5

    def test_the_first_process_writes(self, runs: Path) -> None:
        saved = sg.model.load(runs / "model")
        assert differences(dict(saved.network.state_dict()), ranks(runs, "resumed_sharded_muon")[0]["weights"]) == []
        assert {path.name for path in (runs / "run").iterdir()} == {"last.ckpt", "best", "logs"}
        history = pd.DataFrame(ranks(runs, "resumed_sharded_muon")[0]["history"])
        best = history["validation_loss"].nsmallest(2).index
        assert {path.name for path in (runs / "run" / "best").iterdir()} == {f"epoch-{epoch}" for epoch in best}
        logs = sorted((runs / "run" / "logs" / "csv").iterdir())
        assert len(logs) == 2  # before and after
        steps = pd.concat(pd.read_csv(log / "metrics.csv") for log in logs)["step_loss"].dropna()
        assert 0 < len(steps) <= RUN["max_steps"]
