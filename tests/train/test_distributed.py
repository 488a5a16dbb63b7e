"""Training in two processes, started by torchrun and by Lightning."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from anndata import AnnData
from tests.bitwise import differences
from tests.launching import run, torchrun
from tests.train.distributed_runs import RUN, RUNS, SHARDED, result, train

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this build of torch has no gloo"
)
SCRIPT = Path(__file__).with_name("launched_script.py")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs in two processes, one after the other."""
    folder = tmp_path_factory.mktemp("distributed")
    done = torchrun("tests.train.distributed_runs", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stderr").write_text(done.stderr)
    return folder


def ranks(runs: Path, name: str) -> list[dict[str, Any]]:
    return [torch.load(runs / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


def alone(adata: AnnData, name: str) -> dict[str, Any]:
    """Same run in this process, with the batches of both."""
    network, options = RUNS[name]
    return result(train(adata, network, {**options, "batch_size": 2 * RUN["batch_size"]}))


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a))


@pytest.mark.slow
def test_two_processes_train_resume_and_share_the_optimizers_state(tmp_path: Path) -> None:
    """A part of what the slow tests below find out with every optimizer and adapter."""
    names = ("whole_galore", "sharded_galore", "resumed_sharded_galore", "diverging")
    done = torchrun("tests.train.distributed_runs", tmp_path, *names)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names:
        assert differences(*ranks(tmp_path, name)) == [], name
    whole, sharded, resumed, diverging = (ranks(tmp_path, name)[0] for name in names)
    assert differences(whole["weights"], sharded["weights"]) == []
    assert differences(sharded, resumed, besides=("seconds",)) == []
    assert 0.4 < sharded["training"]["optimizer_bytes"] / whole["training"]["optimizer_bytes"] < 0.75
    assert "train_loss became nan in epoch 0" in diverging["error"]


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("name", RUNS)
    def test_weights_history_and_best_epoch_are_equal_to_the_last_bit(self, runs: Path, name: str) -> None:
        first, second = ranks(runs, name)
        assert differences(first, second) == []

    # A head of three classes has gradients of lower rank than the basis, whose other directions are rounding errors.
    @pytest.mark.parametrize(("name", "share"), [("smooth", 1e-3), ("galore_smooth", 5e-2)])
    def test_train_like_one_with_the_double_batch(self, runs: Path, few: AnnData, name: str, share: float) -> None:
        both, one = ranks(runs, name)[0], alone(few, name)
        network, options = RUNS[name]
        start = train(few, network, {**options, "max_epochs": 1, "lr": 1e-12}).network.state_dict()
        way = distance(one["weights"], start)
        assert distance(both["weights"], one["weights"]) < share * way
        half = result(train(few, network, options))
        assert distance(both["weights"], half["weights"]) > 0.2 * way
        assert both["history"]["lr"] == one["history"]["lr"]

    def test_end_a_step_when_both_have_the_tokens_and_weigh_all_that_is_predicted(
        self, runs: Path, few: AnnData
    ) -> None:
        both, one = ranks(runs, "steps_of_tokens")[0], alone(few, "steps_of_tokens")
        network, options = RUNS["steps_of_tokens"]
        start = train(few, network, {**options, "max_epochs": 1, "lr": 1e-12}).network.state_dict()
        way = distance(one["weights"], start)
        assert both["training"]["steps"] == one["training"]["steps"] < 4 * len(few) // (2 * RUN["batch_size"])
        assert distance(both["weights"], one["weights"]) < 1e-3 * way

    def test_losses_and_metrics_are_means_over_all_cells(self, runs: Path, few: AnnData) -> None:
        both, one = ranks(runs, "smooth")[0]["history"], alone(few, "smooth")["history"]
        assert both.keys() == one.keys()
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy"):
            np.testing.assert_allclose(both[name], one[name], rtol=1e-4)

    def test_stop_in_the_same_epoch(self, runs: Path, few: AnnData) -> None:
        both, one = ranks(runs, "stopping")[0], alone(few, "stopping")
        assert both["history"]["epoch"] == one["history"]["epoch"]
        assert len(one["history"]["epoch"]) < RUNS["stopping"][1]["max_epochs"]
        assert both["training"]["best_epoch"] == one["training"]["best_epoch"]

    def test_see_other_cells_with_other_dropout(self, runs: Path, few: AnnData) -> None:
        both = ranks(runs, "galore")[0]
        network, options = RUNS["galore"]
        half = result(train(few, network, options))
        assert distance(both["weights"], half["weights"]) > 1e-3

    def test_resumed_run_is_the_whole_run(self, runs: Path) -> None:
        for resumed, whole in (("resumed_galore", "galore"), ("resumed_sharded_galore", "sharded_galore")):
            first, second = ranks(runs, resumed)
            assert differences(first, second) == []
            assert differences(first, ranks(runs, whole)[0], besides=("seconds",)) == []

    def test_write_one_checkpoint(self, runs: Path) -> None:
        for name in ("resumed_galore", "resumed_sharded_galore"):
            folder = runs / f"{name}_checkpoints"
            assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
            state = torch.load(folder / "last.ckpt", weights_only=True)["optimizer_states"][0]
            assert len(state["state"]) > 5

    def test_nan_in_one_ends_both_runs(self, runs: Path) -> None:
        for rank in ranks(runs, "diverging"):
            assert "train_loss became nan in epoch 0" in rank["error"]

    def test_say_nothing_twice(self, runs: Path) -> None:
        assert "Initializing distributed" not in (runs / "stderr").read_text()
        assert "early_stopping was automatically disabled" not in (runs / "stderr").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", SHARDED)
class TestSharded:
    def test_weights_are_those_of_the_whole_optimizer(self, runs: Path, optimizer: str) -> None:
        whole, sharded = (ranks(runs, f"{kind}_{optimizer}")[0] for kind in ("whole", "sharded"))
        assert differences(whole["weights"], sharded["weights"]) == []
        assert differences(whole["history"], sharded["history"], besides=("seconds",)) == []

    def test_process_keeps_about_half_of_the_state(self, runs: Path, optimizer: str) -> None:
        whole, sharded = (ranks(runs, f"{kind}_{optimizer}")[0]["training"] for kind in ("whole", "sharded"))
        assert 0.4 < sharded["optimizer_bytes"] / whole["optimizer_bytes"] < 0.75


@pytest.mark.slow
def test_script_that_asks_for_two_devices(tmp_path: Path) -> None:
    done = run([sys.executable, str(SCRIPT), str(tmp_path)])
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert differences(first, second) == []
    assert first["training"]["best_epoch"] >= 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt", "checkpoints"]
