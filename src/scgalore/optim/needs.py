"""Requirements of optimizers on the training loop in addition to ``step()``, and their capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

__all__ = ["TrainingNeeds", "needs_of"]


class TrainingNeeds:
    """Base class of optimizers with requirements; the defaults are for optimizers without any.

    Attributes
    ----------
    shardable
        Whether each of several processes may keep the state of, and update, only its share of the parameters.
    per_layer
        Whether ``step()`` may be called for each parameter as soon as its gradient is computed.
    """

    shardable: ClassVar[bool] = True
    per_layer: ClassVar[bool] = True

    def needs_curvature(self) -> bool:
        """Whether :meth:`update_curvature` is due before the coming step."""
        return False

    def update_curvature(self, loss: Tensor, n_terms: int) -> None:
        """Use a new estimate of the curvature; only called if it is due.

        Parameters
        ----------
        loss
            Mean negative log-likelihood at labels drawn from the model itself; a scalar.
        n_terms
            Number of terms in the mean.
        """

    def refresh(self) -> None:
        """Prepare for different gradients from the next step on."""


def needs_of(optimizer: Optimizer) -> TrainingNeeds:
    """Needs of any optimizer.

    Parameters
    ----------
    optimizer
        An optimizer of this package, or another one, which has no needs if it is not a :class:`TrainingNeeds`.
    """
    return optimizer if isinstance(optimizer, TrainingNeeds) else TrainingNeeds()
