"""Preparation of a network for training, and restoration of its structure afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scgalore.adapters import attach_adapter
from scgalore.adapters.base import attached
from scgalore.errors import OptionError, WeightsError
from scgalore.nn.embedding import RowEmbedding, embedding_mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from scgalore.adapters import Adapter
    from scgalore.nn import CellNetwork
    from scgalore.train import TrainConfig

__all__ = ["AdapterWeights", "Trainable", "apply_adapter", "trainable"]


@dataclass(frozen=True)
class AdapterWeights:
    """Trained adapter, separate from the base weights.

    Attributes
    ----------
    name
        Entry of :data:`scgalore.adapters.ADAPTERS`.
    options
        Complete options.
    tensors
        Factors of the adapter.
    heads
        Other tensors of the network that were trained.
    """

    name: str
    options: dict[str, Any]
    tensors: dict[str, Tensor]
    heads: dict[str, Tensor]


@dataclass(frozen=True)
class Trainable:
    """A network inside :func:`trainable`.

    Attributes
    ----------
    adapter
        Attached adapter, if any.
    before
        Tensors before the adapter was attached.
    table
        Original table of gene embeddings.
    """

    network: CellNetwork
    adapter: Adapter | None
    before: dict[str, Tensor]
    table: nn.Embedding

    def whole(self) -> CellNetwork:
        """Copy of the network with its own structure and the current weights, on the CPU."""
        copied = deepcopy(self.network).cpu()
        if (adapter := attached(copied)) is not None:
            adapter.detach()
        if isinstance(rows := copied.gene_table, RowEmbedding):
            copied.gene_table = deepcopy(self.table).cpu()
            rows.write_back(copied.gene_table)
        return copied.eval()

    def adapter_weights(self) -> AdapterWeights | None:
        """Trained adapter; ``None`` if other weights were trained, so that the adapter alone is not sufficient."""
        adapter = self.adapter
        if adapter is None or adapter.options["others"] != "freeze":
            return None
        own = {id(param) for param in adapter.parameters()}
        trained: dict[str, Tensor] = {}
        trained |= {name: p for name, p in self.network.named_parameters() if p.requires_grad and id(p) not in own}
        # Statistics of batch norms also change in frozen layers.
        trained |= {name: buffer for name, buffer in self.network.named_buffers() if name in self.before}
        own_heads = {id(param) for head in self.network.cell_heads.values() for param in head.parameters()}
        heads = {
            name: tensor.detach().cpu().clone()
            for name, tensor in trained.items()
            if name not in self.before
            or id(tensor) in own_heads
            or not torch.equal(tensor.detach().cpu(), self.before[name])
        }
        factors = {name: tensor.detach().cpu().clone() for name, tensor in adapter.tensors().items()}
        return AdapterWeights(adapter.name, dict(adapter.options), factors, heads)


@contextmanager
def trainable(network: CellNetwork, config: TrainConfig, tokens: NDArray[np.int64]) -> Iterator[Trainable]:
    """Slice or freeze the gene embedding and attach the adapter, according to the configuration.

    At the end of the block, rows are merged into the table and the adapter into the weights; if it fails, all weights
    are restored.

    Parameters
    ----------
    network
        Network on the CPU.
    config
        Configuration with embedding mode and adapter.
    tokens
        Token ids that occur in batches, int64 ``(n,)``.
    """
    table = network.gene_table
    with embedding_mode(config.embedding).applied(network, torch.from_numpy(tokens)):
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        adapter = None
        try:
            if config.adapter is not None:
                options = {"seed": config.seed, **config.adapter_options}
                adapter = attach_adapter(config.adapter, network, **options)
            if not any(param.requires_grad for param in network.parameters()):
                msg = "There are no trainable parameters. Unfreeze parameters of model.network, or choose another embedding=."
                raise OptionError(msg)
            yield Trainable(network, adapter, before, table)
        except BaseException:
            if adapter is not None:
                adapter.detach()
            network.load_state_dict(before)
            raise
        if adapter is not None:
            adapter.detach()


def apply_adapter(network: CellNetwork, weights: AdapterWeights) -> None:
    """Merge a trained adapter into its base weights, and load the heads trained with it.

    Raises
    ------
    WeightsError
        If names or shapes differ from those of this network.
    """
    own = network.state_dict()
    wrong = [name for name, head in weights.heads.items() if name not in own or own[name].shape != head.shape]
    if wrong:
        msg = f"The adapter's {wrong[0]} does not match this network. Use the weights it was trained on."
        raise WeightsError(msg)
    adapter = attach_adapter(weights.name, network, **weights.options)
    try:
        adapter.load_tensors(weights.tensors)
    finally:
        adapter.detach()
    with torch.no_grad():
        for name, head in weights.heads.items():
            own[name].copy_(head)
