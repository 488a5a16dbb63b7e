"""Results of the tools as tables and AnnData objects; nothing is computed here."""

from scgalore.get._perturbation_scores import perturbation_scores

__all__ = ["perturbation_scores"]
