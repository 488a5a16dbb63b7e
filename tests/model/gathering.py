"""What the processes do that ``test_distributed`` starts: share rows out and bring them together."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.functional import mse_loss

from scgalore._logging import info, warning
from scgalore._settings import settings
from scgalore.errors import OptionError
from scgalore.model.distributed import by_first, gather, process_group, refuse_devices, share
from scgalore.optim import build_optimizer
from scgalore.optim.sharded import ShardedOptimizer

N_OBS, WIDTH = 7, 3


def main(folder: Path) -> None:
    """Gather twice, in groups of their own, then in the group that training would leave."""
    settings.verbosity = 3
    rows = np.random.default_rng(0).normal(size=(N_OBS, WIDTH)).astype(np.float32)
    found: dict[str, Any] = {}
    for name in ("first", "second"):
        with process_group() as world:
            info(f"    {name} says process {world.rank}")
            found[name] = gather(rows[share(N_OBS, world)], world)
            found[f"{name}_few"] = gather(rows[:1][share(1, world)], world)
        assert by_first(lambda: f"process {world.rank}") == "process 0"
        with pytest.raises(OptionError, match="of process 0"):
            by_first(lambda: fail(world.rank))
        assert not distributed.is_initialized()
    distributed.init_process_group("gloo")  # the launcher's, as Lightning's
    with process_group() as world:
        found["third"] = gather(rows[share(N_OBS, world)], world)
        refuse_devices(2)
    assert distributed.is_initialized()
    warning(f"warning of process {world.rank}")
    bytes_of = sharded(world.rank)
    found |= {"rows": rows, "state_bytes": np.array(bytes_of)}
    np.savez(folder / f"{world.rank}.npz", allow_pickle=False, **found)
    distributed.destroy_process_group()


def fail(rank: int) -> None:
    """Raise an error of ours."""
    msg = f"of process {rank}"
    raise OptionError(msg)


def sharded(rank: int) -> list[int]:
    """Train with and without sharing of the state, and compare."""
    from scgalore.optim import state_bytes

    sizes, results = [], []
    for shared in (False, True):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24))
        optimizer = build_optimizer("galore", network, rank=4, update_proj_gap=3)
        if shared:
            optimizer = ShardedOptimizer(optimizer)
        for step in range(8):
            x = torch.randn(16, 24, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = mse_loss(network(x), x.roll(1, 1))
            loss.backward()
            optimizer.step()
        sizes.append(state_bytes(optimizer))
        results.append([param.detach().clone() for param in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert isinstance(optimizer, ShardedOptimizer)
    optimizer.consolidate_state_dict()
    whole = optimizer.state_dict()
    assert len(whole["state"]) == (4 if rank == 0 else len(optimizer.optimizer.state))
    with pytest.raises(OptionError, match="already has state"):
        ShardedOptimizer(optimizer.optimizer)
    return sizes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
