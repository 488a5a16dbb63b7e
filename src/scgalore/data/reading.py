"""Options for reading an AnnData: matrix, type of its values, and gene names."""

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
    """Options for reading the cells of an AnnData.

    Public functions have them as separate parameters; the package passes them as one object.

    Raises
    ------
    OptionError
        If a value is not one of the choices or out of range.
    """

    layer: str | None = declare(TEXT, "Layer with the expression; ``None`` is ``adata.X``.")
    gene_symbols: str | None = declare(
        TEXT, "Column of ``adata.var`` with gene names; ``None`` is ``adata.var_names``."
    )
    data_type: str | None = declare(
        DATA_TYPE, 'Content of the matrix: ``"counts"`` or ``"log1p"``; ``None`` infers it from the values.'
    )
    depth_key: str | None = declare(TEXT, "Column of ``adata.obs`` with the total counts of each cell.")
    species: str = declare(SPECIES, 'Species of the genes: ``"human"`` or ``"mouse"``.', default="human")
    min_matched: float | None = declare(
        MATCHED, "Minimum fraction of the counts in genes of the vocabulary; ``None`` is the default of the package."
    )

    def __post_init__(self) -> None:
        for option in options_of(type(self)):
            value = getattr(self, option.name)
            object.__setattr__(self, option.name, option.check(option.default if value is None else value))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Create from a mapping, such as recorded parameters; missing keys and ``None`` use the default."""
        found: dict[str, Any] = {name: given.get(name) for name in READING}
        return cls(**found)

    def reads(self) -> list[Read]:
        """Slots that are read, as input of ``scgalore.data.results.refuse_overwrite``."""
        return [
            ("layers", "layer=", self.layer),
            ("var", "gene_symbols=", self.gene_symbols),
            ("obs", "depth_key=", self.depth_key),
            ("uns", "the base of the logarithm", "log1p"),
        ]

    def params(self) -> dict[str, Any]:
        """All options by name, for ``uns`` and as keyword arguments."""
        return asdict(self)

    def of_tokens(self) -> dict[str, Any]:
        """Options that affect tokens: all but ``depth_key``, since values are binned within each cell."""
        return {name: value for name, value in asdict(self).items() if name != "depth_key"}


READING = tuple(option.name for option in options_of(Reading))
"""Names of the parameters."""

AS_IT_IS = Reading()
"""The defaults: ``X`` with ``var_names``, and the data type inferred from the values."""
