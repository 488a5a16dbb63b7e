"""The self-supervised objectives by name: what ``objective=`` of pre-training can say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scgalore.errors import OptionError
from scgalore.objectives.generative import GenerativeExpression
from scgalore.objectives.masked_expression import MaskedExpression

if TYPE_CHECKING:
    from collections.abc import Callable

    from scgalore.nn import CellNetwork
    from scgalore.objectives.base import Objective

__all__ = ["PRETRAINING", "pretraining_objective"]


def _masked(network: CellNetwork, **options: Any) -> Objective:
    return MaskedExpression(mask_value=network.config.mask_value, **options)


def _generative(network: CellNetwork, **options: Any) -> Objective:
    return GenerativeExpression(mask_value=network.config.mask_value, **options)


PRETRAINING: dict[str, Callable[..., Objective]] = {"masked": _masked, "generative": _generative}
"""What makes each objective, from a network and, where it is given, ``mask_ratio``. A network names those that it can be trained for
(:attr:`scgalore.nn.CellNetwork.pretraining`), its own first."""


def pretraining_objective(
    network: CellNetwork, name: str | None = None, mask_ratio: float | tuple[float, ...] | None = None
) -> Objective:
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
