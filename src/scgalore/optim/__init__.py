"""Optimizers in plain torch, useful on any :class:`torch.nn.Module`."""

from scgalore.optim.galore import GaLoreAdamW
from scgalore.optim.groups import describe_groups, param_groups
from scgalore.optim.memory import state_bytes
from scgalore.optim.registry import OPTIMIZERS, OptimizerSpec, build_optimizer

__all__ = [
    "OPTIMIZERS",
    "GaLoreAdamW",
    "OptimizerSpec",
    "build_optimizer",
    "describe_groups",
    "param_groups",
    "state_bytes",
]
