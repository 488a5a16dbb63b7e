"""The self-supervised objectives by name: what ``objective=`` of pre-training can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from scgalore.errors import OptionError
from scgalore.objectives.base import Objective
from scgalore.objectives.generative import GenerativeExpression
from scgalore.objectives.masked_classes import MaskedClasses
from scgalore.objectives.masked_expression import MaskedExpression

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgalore.nn import CellNetwork

__all__ = ["PRETRAINING", "pretraining_objective"]


class SelfSupervised(Objective, Protocol):
    """An objective that hides some of a cell's genes and predicts them."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Shares of the genes to predict, of which each cell draws one."""
        ...


def _masked(network: CellNetwork, **options: Any) -> SelfSupervised:
    return MaskedExpression(mask_value=network.config.mask_value, **options)


def _generative(network: CellNetwork, **options: Any) -> SelfSupervised:
    return GenerativeExpression(mask_value=network.config.mask_value, **options)


def _classes(network: CellNetwork, **options: Any) -> SelfSupervised:
    return MaskedClasses(mask_value=network.config.mask_value, **options)


PRETRAINING: dict[str, Callable[..., SelfSupervised]] = {
    "masked": _masked,
    "generative": _generative,
    "classes": _classes,
}
"""What makes each objective, from a network and, where it is given, ``mask_ratio``. A network names those that it can be trained for
(:attr:`scgalore.nn.CellNetwork.pretraining`), its own first."""


def pretraining_objective(
    network: CellNetwork, name: str | None = None, mask_ratio: float | tuple[float, ...] | None = None
) -> SelfSupervised:
    """Make the self-supervised objective of a network.

    Parameters
    ----------
    network
        That is to be trained.
    name
        Key of :data:`PRETRAINING`; the network's own when ``None``.
    mask_ratio
        Share of a cell's genes to predict, or several of which each cell draws one; the objective's own when ``None``.

    Raises
    ------
    OptionError
        If the network cannot be trained for this objective.
    """
    known = network.pretraining
    if name is not None and name not in known:
        msg = f"objective={name!r}: a {type(network).__name__} can be pre-trained for {', '.join(map(repr, known)) or 'nothing'}."
        raise OptionError(msg)
    options = {} if mask_ratio is None else {"mask_ratio": mask_ratio}
    return PRETRAINING[name or known[0]](network, **options)
