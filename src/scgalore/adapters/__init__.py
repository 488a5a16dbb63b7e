"""Low-rank adapters for linear layers of any :class:`torch.nn.Module`, in plain torch."""

from scgalore.adapters.base import TARGETS, Adapter, target_layers
from scgalore.adapters.registry import ADAPTERS, AdapterSpec, attach_adapter, check_adapter

__all__ = ["ADAPTERS", "TARGETS", "Adapter", "AdapterSpec", "attach_adapter", "check_adapter", "target_layers"]
