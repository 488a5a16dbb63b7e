"""Adapters for query batches, stored separately from the weights, so that embeddings of other batches do not change."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from scgalore.adapters import attach_adapter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from scgalore.nn.base import CellNetwork

__all__ = ["QueryAdapter"]


@dataclass(frozen=True)
class QueryAdapter:
    """An adapter for some batches.

    Attributes
    ----------
    batches
        Names of the batches.
    name, options
        Entry of :data:`scgalore.adapters.ADAPTERS`, and its complete options.
    tensors
        Factors of the adapter.
    """

    batches: tuple[str, ...]
    name: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]

    def applied(self, network: CellNetwork) -> CellNetwork:
        """Copy of the network it was trained with, with the adapter merged into the weights."""
        changed = copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            adapter = attach_adapter(self.name, changed, **self.options)
        adapter.load_tensors(self.tensors)
        adapter.detach()
        return changed.eval()

    def to_config(self) -> dict[str, Any]:
        """Everything except the factors."""
        return {"batches": list(self.batches), "name": self.name, "options": dict(self.options)}

    def to_bytes(self) -> bytes:
        """The factors, as a safetensors file."""
        return save({name: tensor.contiguous() for name, tensor in self.tensors.items()})

    @classmethod
    def from_bytes(cls, content: bytes, config: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_bytes` and :meth:`to_config`; raises ``ValueError`` if there are no finite factors."""
        try:
            tensors = load(content)
        except SafetensorError as error:
            msg = f"it does not contain an adapter: {error!r}"
            raise ValueError(msg) from error
        if not tensors or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            msg = "it contains no factors, or factors that are not finite"
            raise ValueError(msg)
        return cls(tuple(config["batches"]), config["name"], dict(config["options"]), tensors)
