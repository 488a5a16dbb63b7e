"""Optimizers in plain torch, useful on any :class:`torch.nn.Module`."""

from scgalore.optim.apollo import ApolloAdamW
from scgalore.optim.galore import GaLoreAdamW
from scgalore.optim.groups import describe_groups, param_groups
from scgalore.optim.layerwise import LayerwiseUpdate
from scgalore.optim.memory import MemoryReport, MemoryRow, memory_report, state_bytes
from scgalore.optim.muon import MuonAdamW
from scgalore.optim.registry import OPTIMIZERS, OptimizerSpec, build_optimizer
from scgalore.optim.sophia import SophiaG, sample_classes, sample_values

__all__ = [
    "OPTIMIZERS",
    "ApolloAdamW",
    "GaLoreAdamW",
    "LayerwiseUpdate",
    "MemoryReport",
    "MemoryRow",
    "MuonAdamW",
    "OptimizerSpec",
    "SophiaG",
    "build_optimizer",
    "describe_groups",
    "memory_report",
    "param_groups",
    "sample_classes",
    "sample_values",
    "state_bytes",
]
