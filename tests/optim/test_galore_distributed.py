"""GaLoreAdamW in several processes: one after the other, and side by side."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.optim.galore_processes import BATCH, N_RANKS, RESUMED, start_run, train_on, weights_of
from tests.optim.problems import make_network, train

from scgalore.optim.subspace import BASIS_METHODS

REPOSITORY = Path(__file__).parents[2]


def start(task: str, folder: Path, *numbers: int, n_threads: int = 1) -> "subprocess.Popen[str]":
    words = map(str, (task, folder, n_threads, *numbers))
    command = [sys.executable, "-m", "tests.optim.galore_processes", *words]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def finish(*processes: "subprocess.Popen[str]") -> None:
    try:
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def resumed_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that stopped after seven steps here and went on to the seventeenth in a new process."""
    folder = tmp_path_factory.mktemp("resumed")
    for number, options in enumerate(RESUMED):
        network, optimizer = start_run(**options)
        train(network, optimizer, range(7))
        saved = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(saved, folder / f"{number}.pt")
    # Another number of threads would add up in another order.
    finish(start("resume", folder, 7, 17, n_threads=torch.get_num_threads()))
    return folder


@pytest.mark.parametrize("number", range(len(RESUMED)), ids=lambda number: "-".join(map(str, RESUMED[number].values())))
def test_run_resumed_in_a_new_process_is_bit_identical(resumed_runs: Path, number: int) -> None:
    network, optimizer = start_run(**RESUMED[number])
    train(network, optimizer, range(17))
    resumed = torch.load(resumed_runs / f"{number}-resumed.pt", weights_only=True)
    assert largest_difference(resumed, weights_of(network)) == 0.0
    assert largest_difference(resumed, weights_of(make_network())) > 0.01


@pytest.fixture(scope="module")
def parallel_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes at once, with each basis."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    folder = tmp_path_factory.mktemp("parallel")
    finish(*(start("distributed", folder, rank) for rank in range(N_RANKS)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("basis", BASIS_METHODS)
def test_two_processes_train_like_one_with_the_whole_batch(parallel_runs: Path, basis: str) -> None:
    ranks = [torch.load(parallel_runs / f"{basis}-{rank}.pt", weights_only=True) for rank in range(N_RANKS)]
    assert largest_difference(ranks[0]["weights"], ranks[1]["weights"]) == 0.0
    assert all(torch.equal(a, b) for a, b in zip(*(rank["bases"] for rank in ranks), strict=True))

    network, optimizer = start_run(basis=basis, lr=1e-3)
    start_weights = weights_of(network)
    train_on(network, optimizer, slice(BATCH))
    # Ten refreshes, and eps at its default.
    assert largest_difference(ranks[0]["weights"], weights_of(network)) < 1e-5
    assert largest_difference(ranks[0]["weights"], start_weights) > 0.03
    half, optimizer = start_run(basis=basis, lr=1e-3)
    train_on(half, optimizer, slice(BATCH // N_RANKS))
    assert largest_difference(ranks[0]["weights"], weights_of(half)) > 1e-3
