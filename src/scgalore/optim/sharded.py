"""Optimizer state divided among processes by parameter (ZeRO stage 1).

The idea is that of Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (SC
2020).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from scgalore.errors import OptionError
from scgalore.optim.expected import weights_of
from scgalore.optim.needs import TrainingNeeds, needs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scgalore.optim.expected import Weights

    CountState = Callable[[Tensor, Mapping[str, Any]], int]

__all__ = ["ShardedOptimizer", "dealt"]


class ShardedOptimizer(TrainingNeeds, Optimizer):
    """Each process updates its share of the parameters, keeps state only for these, and sends them to the others.

    The trained weights are bit-identical to those of the wrapped optimizer: it has all parameters, in their groups and
    order, but creates state only for those that have a gradient. (torch's ``ZeroRedundancyOptimizer`` builds it
    on a part of the parameters; GaLore's random starts and staggered refreshes depend on a parameter's position among
    all.)

    Parameters
    ----------
    optimizer
        Any optimizer that updates each parameter separately, creates its state at the first step and skips parameters
        without gradient. Gradients must be equal on all processes, as
        :class:`~torch.nn.parallel.DistributedDataParallel` leaves them.
    count
        Function that computes the bytes of state of a parameter from it and its group, by which parameters are
        distributed; by default their size.

    Raises
    ------
    OptionError
        If there is no process group, the optimizer already has state, or it updates all parameters at once, as
        :class:`~scgalore.optim.SophiaG` does.

    Notes
    -----
    Parameters are assigned in decreasing order of their state to the process with the least state. ``state_dict()``
    returns the state of this process. After ``consolidate_state_dict()``, which all processes must call, the next call
    on process 0 returns that of all processes, in the format of the wrapped optimizer. Any number of processes can load
    it, and each keeps its share.
    """

    def __init__(self, optimizer: Optimizer, count: CountState | None = None) -> None:
        if not (distributed.is_available() and distributed.is_initialized()):
            msg = "ShardedOptimizer requires a process group of torch.distributed. Call torch.distributed.init_process_group() first."
            raise OptionError(msg)
        if not needs_of(optimizer).shardable:
            msg = f"{type(optimizer).__name__} needs all parameters at once, so its state cannot be divided among processes."
            raise OptionError(msg)
        if optimizer.state:
            msg = "The optimizer already has state; wrap it before its first step."
            raise OptionError(msg)
        self.optimizer = optimizer
        self.rank = distributed.get_rank()
        self._whole_state: dict[int, Any] | None = None
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._same_groups()
        self._owners = dealt(weights_of(optimizer), distributed.get_world_size(), count)

    def _same_groups(self) -> None:
        # Groups and state are shared, so that a schedule also sets the learning rate of the wrapped optimizer.
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def _params(self) -> list[Tensor]:
        return [param for group in self.optimizer.param_groups for param in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters of this process and receive the others.

        Parameters
        ----------
        closure
            Evaluates the model again, with gradients enabled, and returns the loss.

        Returns
        -------
        The loss of the closure, if one was given.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [param for param in self._params() if param.grad is not None]
        withheld = [(param, param.grad) for param in trained if self._owners[param] != self.rank]
        for param, _ in withheld:
            param.grad = None
        try:
            self.optimizer.step()
        finally:
            for param, grad in withheld:
                param.grad = grad
        self._exchange(trained)
        return loss

    def _exchange(self, params: list[Tensor]) -> None:
        # One message for each sender and type, since hundreds of small ones would wait for each other.
        parcels: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        for param in params:
            parcels.setdefault((self._owners[param], param.dtype), []).append(param)
        for (owner, _), parts in parcels.items():
            flat = torch.cat([part.reshape(-1) for part in parts])
            distributed.broadcast(flat, src=owner)
            if owner != self.rank:
                for part, values in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                    part.copy_(values.view_as(part))

    def needs_curvature(self) -> bool:
        """Whether the wrapped optimizer needs an estimate of the curvature."""
        return needs_of(self.optimizer).needs_curvature()

    def update_curvature(self, loss: Tensor, n_terms: int) -> None:
        """Pass an estimate of the curvature to the wrapped optimizer."""
        needs_of(self.optimizer).update_curvature(loss, n_terms)

    def refresh(self) -> None:
        """Prepare the wrapped optimizer for different gradients."""
        needs_of(self.optimizer).refresh()

    def consolidate_state_dict(self) -> None:
        """Collect the state of all processes on process 0, in host memory; all of them must call this."""
        own = self.optimizer.state_dict()["state"]
        parts: list[Any] | None = [None] * distributed.get_world_size() if self.rank == 0 else None
        distributed.gather_object(_on_host(own), parts, dst=0)
        if parts is not None:
            whole = {index: state for part in parts for index, state in part.items()}
            self._whole_state = {index: whole[index] for index in sorted(whole)}

    def state_dict(self) -> dict[str, Any]:
        """State of this process, or once that of all of them after :meth:`consolidate_state_dict`."""
        state_dict = self.optimizer.state_dict()
        if self._whole_state is not None:
            state_dict["state"], self._whole_state = self._whole_state, None
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the share of this process from the state of all of them."""
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        own = {i for i, param in zip(indices, self._params(), strict=True) if self._owners[param] == self.rank}
        state = {index: value for index, value in state_dict["state"].items() if index in own}
        self.optimizer.load_state_dict({**state_dict, "state": state})
        self._same_groups()


def dealt(weights: Weights, size: int, count: CountState | None = None) -> dict[Tensor, int]:
    """Process of each parameter: in decreasing order of state, the process with the least state."""
    loads = [0] * size
    owners: dict[Tensor, int] = {}
    costs = [(param, param.numel() if count is None else count(param, group)) for param, group in weights]
    for param, cost in sorted(costs, key=lambda pair: -pair[1]):
        rank = loads.index(min(loads))
        owners[param] = rank
        loads[rank] += cost
    return owners


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_host(item) for item in value)
    return value
