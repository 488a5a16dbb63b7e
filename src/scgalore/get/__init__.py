"""Results of the tools as tables and AnnData objects."""

from scgalore.get._integration_scores import integration_scores
from scgalore.get._perturbation_effects import perturbation_effects
from scgalore.get._perturbation_scores import perturbation_scores
from scgalore.get._perturbed_cells import perturbed_cells

__all__ = ["integration_scores", "perturbation_effects", "perturbation_scores", "perturbed_cells"]
