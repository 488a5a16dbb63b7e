"""Generate the expression of some genes of a cell from the others: scGPT's pre-training objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scgalore.errors import OptionError
from scgalore.objectives.masked_expression import MaskedExpression

if TYPE_CHECKING:
    from torch import Tensor

    from scgalore.data.tokens import TokenBatch
    from scgalore.nn import CellNetwork


@dataclass(frozen=True)
class GenerativeExpression(MaskedExpression):
    """Squared error of genes that are generated from the perceived genes of their cell (Cui et al. 2024, pre-training).

    Genes are selected as in :class:`MaskedExpression`. Generated genes have a flag instead of a value and attend to the
    perceived genes, ``<cls>`` and themselves; perceived genes do not attend to generated ones. Masked genes, in
    contrast, influence the states of all others. If the network has the head, expression is also predicted from the
    cell embedding, which depends only on the perceived genes.

    Needs a generative network (:attr:`scgalore.nn.CellNetwork.generates`);
    :meth:`~scgalore.nn.CellNetwork.generative_variant` converts any scGPT network.

    Attributes
    ----------
    mask_ratio
        Fraction of a cell's genes to generate; of several, one is drawn per cell (in scGPT per batch). ``<cls>`` and
        padding are never generated.
    mask_value
        Value of the masked genes, which the network ignores.
    from_cell_prompt
        Whether genes are generated a second time, with the cell embedding of the first pass as the input of ``<cls>``,
        without a gradient into it. Doubles the time per step. scGPT does so after 1,000 steps.
        See :doc:`/concepts/generation` for its effect.
    """

    mask_ratio: float | tuple[float, ...] = (0.25, 0.5, 0.75)
    from_cell_prompt: bool = False
    name: str = "generative_expression"

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add the expression to predict, and which tokens are generated."""
        return _generating(super().example(batch))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Select the generated tokens and mask their values; the originals become ``targets["expression"]``."""
        return _generating(super().corrupt(batch, seed=seed, draw=draw))

    def predictions(self, network: CellNetwork, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Expression of every token; ``"_from_prompt"`` is the second pass."""
        if not network.generates:
            msg = "GenerativeExpression needs a generative network. Use network.generative_variant(seed=)."
            raise OptionError(msg)
        inputs, conditions = (batch.genes, batch.values, batch.padding_if_any), batch.conditions
        encoded = network.encode(*inputs, cell_only=False, **conditions)
        predicted = network.expressions(encoded, batch.values, **conditions)
        if self.from_cell_prompt:
            prompted = network.encode(*inputs, cell_only=False, **conditions, cell=encoded.cell.detach())
            predicted["_from_prompt"] = network.expression(prompted, batch.values, **conditions)
        return predicted


def _generating(batch: TokenBatch) -> TokenBatch:
    return batch.with_conditions(generated=batch.targets["masked"])
