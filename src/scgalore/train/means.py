"""Means over the cells of an epoch, which are restored when a run is resumed within the epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Means", "of_all_processes"]


class Means:
    """Sums of losses and metrics over the cells that this process has seen in an epoch so far.

    Lightning keeps such sums too, and a checkpoint that is written inside an epoch does not have them.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, name: str, value: Tensor, n: int) -> None:
        """Add a mean over ``n`` cells."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value.detach().float() * n, count + n

    def take(self) -> dict[str, Tensor]:
        """Means over the cells of all processes, which must all call this; the sums are then empty."""
        sums, self._sums = self._sums, {}
        if not sums:
            return {}
        parts = torch.stack([torch.stack([total, total.new_tensor(count)]) for total, count in sums.values()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(parts)
        return dict(zip(sums, (parts[:, 0] / parts[:, 1]).unbind(), strict=True))

    def state_dict(self) -> dict[str, list[Any]]:
        """Sums so far."""
        return {name: [total.cpu(), count] for name, (total, count) in self._sums.items()}

    def load_state_dict(self, state_dict: dict[str, list[Any]], device: torch.device) -> None:
        """Restore the sums."""
        self._sums = {name: (total.to(device), count) for name, (total, count) in state_dict.items()}


def of_all_processes(own: Any) -> list[Any]:
    """Give each process what all of them have, in their order; all must call this.

    Parameters
    ----------
    own
        What this process has; it is pickled where there are others.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [own]
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, own)
    return shares
