"""What the processes do that ``test_galore_distributed`` starts."""

import sys
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.optim.problems import make_batch, make_network, make_optimizer, train
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scgalore.optim.subspace import BASIS_METHODS, MOMENTS

N_RANKS, BATCH, N_STEPS = 2, 32, 50

#: Options of the runs that stop in one process and go on in another.
RESUMED: list[dict[str, Any]] = [
    *({"basis": basis, "moments": moments} for basis, moments in product(BASIS_METHODS, MOMENTS)),
    *({"basis": basis, "proj_type": "full", "lazy": True, "stagger": False} for basis in BASIS_METHODS),
    {"dtype": torch.bfloat16},
]


def start_run(*, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    network = make_network(dtype)
    return network, make_optimizer(network, **options)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def resume(folder: Path, steps: range) -> None:
    """Continue each run from its file and write its weights beside it."""
    for number, options in enumerate(RESUMED):
        saved = torch.load(folder / f"{number}.pt", weights_only=True)
        network, optimizer = start_run(**options)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        train(network, optimizer, steps)
        torch.save(weights_of(network), folder / f"{number}-resumed.pt")


def train_on(network: nn.Module, optimizer: torch.optim.Optimizer, part: slice) -> None:
    """Train on the same part of every batch."""
    for step in range(N_STEPS):
        inputs, classes = make_batch(step, BATCH)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs[part]), classes[part]).backward()
        optimizer.step()


def distributed(folder: Path, rank: int) -> None:
    """Train with each basis on a share of every batch, and write weights and bases."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=N_RANKS,
        timeout=timedelta(seconds=100),
    )
    share = BATCH // N_RANKS
    for basis in BASIS_METHODS:
        network, optimizer = start_run(basis=basis, lr=1e-3)
        torch.manual_seed(rank)  # no draw may come from the generator of the process
        train_on(DistributedDataParallel(network), optimizer, slice(rank * share, (rank + 1) * share))
        bases = [state["basis"] for state in optimizer.state.values() if "basis" in state]
        torch.save({"weights": weights_of(network), "bases": bases}, folder / f"{basis}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    task, place, n_threads, *numbers = sys.argv[1:]
    torch.set_num_threads(int(n_threads))
    if task == "resume":
        resume(Path(place), range(*map(int, numbers)))
    else:
        distributed(Path(place), int(numbers[0]))
