"""A network and its objective as a module of scvi-tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi.module.base import BaseModuleClass, LossOutput

if TYPE_CHECKING:
    from torch import Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn.base import CellNetwork
    from scgalore.objectives import Objective

__all__ = ["SCGPTModule"]


class SCGPTModule(BaseModuleClass):
    """Module for scvi's training plan; its ``loss`` is that of the objective.

    Parameters
    ----------
    network
        The network to train.
    objective
        The training objective.
    """

    def __init__(self, network: CellNetwork, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def loss(self, batch: TokenBatch) -> LossOutput:
        """Loss of a batch with the objective's parts as extra metrics."""
        loss = self.objective(self.network, batch)
        return LossOutput(loss=loss.total, n_obs_minibatch=loss.n, extra_metrics=loss.parts)

    def forward(self, batch: TokenBatch, **_: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], LossOutput]:
        """Compute the loss, in the triple expected by scvi's training plans."""
        # Objectives run the network themselves, since corruption and heads differ; encoding here would double the work.
        return {}, {}, self.loss(batch)
