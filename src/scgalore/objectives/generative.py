"""Generate the expression of some genes of a cell from the others: the objective scGPT is pre-trained with."""

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

    Genes are chosen as :class:`MaskedExpression` masks them. Generated genes have a flag in place of a value and attend to the
    perceived genes, ``<cls>`` and themselves; perceived genes see no generated ones. A masked gene, in contrast, takes
    part in the states of all others. Where the network has the head, expression is also predicted from the cell embedding,
    which depends on the perceived genes alone.

    Needs a network that generates (:attr:`scgalore.nn.CellNetwork.generates`);
    :meth:`~scgalore.nn.CellNetwork.generative_variant` makes one of any scGPT network.

    Attributes
    ----------
    mask_ratio
        Share of a cell's genes to generate; of several, each cell draws one (upstream: each batch). ``<cls>`` and padding are
        never generated.
    mask_value
        What stands in place of the hidden values, which the network does not read.
    from_cell_prompt
        Whether genes are generated a second time, with the cell embedding of the first pass as the input of ``<cls>`` and
        without a gradient into it. A step takes about twice the time. Upstream does so after 1,000 steps.
        :doc:`/concepts/generation` says what it was seen to be worth.
    """

    mask_ratio: float | tuple[float, ...] = (0.25, 0.5, 0.75)
    from_cell_prompt: bool = False
    name: str = "generative_expression"

    def example(self, batch: TokenBatch) -> TokenBatch:
        """Add the expression to predict, and which tokens are generated."""
        return _generating(super().example(batch))

    def corrupt(self, batch: TokenBatch, *, seed: int, draw: int) -> TokenBatch:
        """Choose the generated tokens and hide their values; the originals become ``targets["expression"]``."""
        return _generating(super().corrupt(batch, seed=seed, draw=draw))

    def predictions(self, network: CellNetwork, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Expression of every token; ``"_from_prompt"`` is that of the second pass."""
        if not network.generates:
            msg = "GenerativeExpression trains networks that generate, and this one does not: take its generative_variant(seed=)."
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
