"""Registry of self-supervised objectives, for ``objective=`` of pre-training."""

from __future__ import annotations

from inspect import signature
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
    """An objective that masks some of a cell's genes and predicts them."""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Fractions of genes to predict, one of which is drawn per cell."""
        ...


PRETRAINING: dict[str, Callable[..., SelfSupervised]] = {
    "masked": MaskedExpression,
    "generative": GenerativeExpression,
    "classes": MaskedClasses,
}
"""Constructor of each objective, with keywords ``mask_value``, ``mask_ratio`` and its own options. A network lists the
objectives it can be trained for (:attr:`scgalore.nn.CellNetwork.pretraining`), its default first."""


def pretraining_objective(network: CellNetwork, name: str | None = None, **options: Any) -> SelfSupervised:
    """Create the self-supervised objective of a network.

    Parameters
    ----------
    network
        Network to train.
    name
        Key of :data:`PRETRAINING`; ``None`` uses the network's default.
    **options
        Options of the objective, such as ``mask_ratio``; ``None`` uses the default.

    Raises
    ------
    OptionError
        If the network cannot be trained for this objective, or the objective does not have the option.
    """
    known = network.pretraining
    if name is not None and name not in known:
        msg = f"objective={name!r}: a {type(network).__name__} can be pre-trained for {', '.join(map(repr, known)) or 'nothing'}."
        raise OptionError(msg)
    name = known[0] if name is None else name
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        having = [one for one, made in PRETRAINING.items() if option in signature(made).parameters]
        if name not in having:
            msg = f"{option}={value!r} is for objective={' or '.join(map(repr, having))}, but the objective is {name!r}. Omit {option}=."
            raise OptionError(msg)
    return PRETRAINING[name](mask_value=network.config.mask_value, **given)
