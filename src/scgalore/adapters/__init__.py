"""Low-rank adapters for linear layers in plain torch, useful on any :class:`torch.nn.Module`."""

from scgalore.adapters.base import TARGETS, Adapter, target_layers
from scgalore.adapters.registry import ADAPTERS, AdapterSpec, attach_adapter, check_adapter

__all__ = ["ADAPTERS", "TARGETS", "Adapter", "AdapterSpec", "attach_adapter", "check_adapter", "target_layers"]
