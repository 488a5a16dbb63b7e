"""One name for each perturbed gene if labels use several."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scgalore.perturb.labels.genes import GeneNames

__all__ = ["GeneNaming"]


@dataclass(frozen=True)
class GeneNaming:
    """One name for each gene.

    Attributes
    ----------
    of_gene
        Current symbol of each gene name in the labels.
    spelled
        Names in the labels, by current symbol.
    measured
        Name of the measured gene, by current symbol; ``None`` if it is not measured.
    gene_names
        Names of the measured genes.
    """

    of_gene: dict[str, str]
    spelled: dict[str, tuple[str, ...]]
    measured: dict[str, str | None]
    gene_names: GeneNames

    @classmethod
    def of(cls, genes: Iterable[str], gene_names: GeneNames) -> GeneNaming:
        """Group names that refer to the same gene.

        Parameters
        ----------
        genes
            Gene names in the labels.
        gene_names
            Names of the measured genes.
        """
        spelled: dict[str, dict[str, None]] = defaultdict(dict)
        of_gene = {gene: gene_names.identity(gene) for gene in dict.fromkeys(genes)}
        for gene, identity in of_gene.items():
            spelled[identity][gene] = None
        measured = {identity: gene_names.measured_as(identity) for identity in spelled}
        return cls(of_gene, {identity: tuple(names) for identity, names in spelled.items()}, measured, gene_names)

    def name(self, gene: str) -> str:
        """Name in results."""
        identity = self.of_gene[gene]
        return self.measured[identity] or self.drawn(gene)

    def drawn(self, gene: str) -> str:
        """Name for drawing splits, which depend on the order of names: the one in the labels, unless they use several."""
        identity = self.of_gene[gene]
        spelled = self.spelled[identity]
        if len(spelled) == 1:
            return spelled[0]
        return self.measured[identity] or self.gene_names.common_name(identity, spelled)

    def joined(self) -> dict[str, tuple[str, ...]]:
        """Names of genes with several names in the labels, by the name in results."""
        return {self.name(names[0]): names for names in self.spelled.values() if len(names) > 1}

    def renamed(self) -> dict[str, str]:
        """Name in results of each gene that has a single, different name in the labels."""
        alone = [names[0] for names in self.spelled.values() if len(names) == 1]
        return {gene: self.name(gene) for gene in alone if self.name(gene) != gene}
