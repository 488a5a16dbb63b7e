"""How an AnnData is read: which matrix, what its values are, and what its genes are called."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from scgalore._options import TEXT, choice, declare, documented, number, options_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore.data.results import Read

__all__ = ["AS_IT_IS", "DATA_TYPE", "MATCHED", "READING", "SPECIES", "Reading"]

DATA_TYPE = choice("counts", "log1p")
SPECIES = choice("human", "mouse")
MATCHED = number("it must be a fraction from 0 to 1", lambda value: 0 <= value <= 1)


@documented
@dataclass(frozen=True)
class Reading:
    """How the cells of an AnnData are read.

    The public functions have these as parameters of their own; inside the package one object travels.

    Raises
    ------
    OptionError
        If a value is none of the choices, or out of range.
    """

    layer: str | None = declare(TEXT, "Layer to read the expression from; ``None`` is ``adata.X``.")
    gene_symbols: str | None = declare(
        TEXT, "Column of ``adata.var`` that holds the gene names; ``None`` is ``adata.var_names``."
    )
    data_type: str | None = declare(
        DATA_TYPE, 'What the matrix holds: ``"counts"`` or ``"log1p"``; ``None`` decides by its values.'
    )
    depth_key: str | None = declare(TEXT, "Column of ``adata.obs`` with the counts of each cell over all of its genes.")
    species: str = declare(SPECIES, 'Species of the genes: ``"human"`` or ``"mouse"``.', default="human")
    min_matched: float | None = declare(
        MATCHED, "Share of the expressed counts that the vocabulary must know; ``None`` is the default of the package."
    )

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            object.__setattr__(self, option.name, option.check(option.default if value is None else value))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Take what a mapping has of these, such as recorded parameters; what is missing or ``None`` is the default."""
        found: dict[str, Any] = {name: given.get(name) for name in READING}
        return cls(**found)

    def reads(self) -> list[Read]:
        """Slots that are read, for ``scgalore.data.results.refuse_overwrite``."""
        return [
            ("layers", "layer=", self.layer),
            ("var", "gene_symbols=", self.gene_symbols),
            ("obs", "depth_key=", self.depth_key),
            ("uns", "the base of the logarithm", "log1p"),
        ]

    def params(self) -> dict[str, Any]:
        """All of them by name, for ``uns`` and for functions that have them as parameters."""
        return asdict(self)

    def of_tokens(self) -> dict[str, Any]:
        """Those that tokens depend on: all but the depth of cells, since values are binned within each cell."""
        return {name: value for name, value in asdict(self).items() if name != "depth_key"}


READING = tuple(option.name for option in options_of(Reading))
"""Names of the parameters."""

AS_IT_IS = Reading()
"""``X``, by the names of ``var``, with values that say themselves what they are."""
