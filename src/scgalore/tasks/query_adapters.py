"""What an adapter learned of query batches, kept apart from the weights, so that cells of other batches are embedded as before."""

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
    """An adapter that holds for some batches.

    Attributes
    ----------
    batches
        Their names.
    name, options
        Entry of :data:`scgalore.adapters.ADAPTERS`, and all of its options.
    tensors
        Its factors.
    """

    batches: tuple[str, ...]
    name: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]

    def applied(self, network: CellNetwork) -> CellNetwork:
        """Copy of the network it was trained on, with the adapter in the weights."""
        changed = copy.deepcopy(network)
        with torch.random.fork_rng(devices=[]):
            adapter = attach_adapter(self.name, changed, **self.options)
        adapter.load_tensors(self.tensors)
        adapter.detach()
        return changed.eval()

    def to_config(self) -> dict[str, Any]:
        """All but the factors."""
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
            msg = f"it holds no adapter: {error!r}"
            raise ValueError(msg) from error
        if not tensors or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            msg = "it holds no factors, or some that are not finite numbers"
            raise ValueError(msg)
        return cls(tuple(config["batches"]), config["name"], dict(config["options"]), tensors)
