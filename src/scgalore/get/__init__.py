"""Results of the tools as tables and AnnData objects."""

from scgalore.get._gene_network import gene_network
from scgalore.get._gene_network_scores import gene_network_scores
from scgalore.get._in_silico_effects import in_silico_effects
from scgalore.get._in_silico_shifts import in_silico_shifts
from scgalore.get._integration_scores import integration_scores
from scgalore.get._perturbation_effects import perturbation_effects
from scgalore.get._perturbation_scores import perturbation_scores
from scgalore.get._perturbed_cells import perturbed_cells

__all__ = [
    "in_silico_effects",
    "in_silico_shifts",
    "gene_network",
    "gene_network_scores",
    "integration_scores",
    "perturbation_effects",
    "perturbation_scores",
    "perturbed_cells",
]
