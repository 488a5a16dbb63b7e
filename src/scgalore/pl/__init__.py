"""Plots of results stored in an AnnData; they do not modify it and compute nothing beyond counts."""

from scgalore.pl._attention import attention
from scgalore.pl._confusion_matrix import confusion_matrix
from scgalore.pl._dose_response import dose_response
from scgalore.pl._gene_network import gene_network
from scgalore.pl._gene_selection import gene_selection
from scgalore.pl._history import history
from scgalore.pl._in_silico_shifts import in_silico_shifts
from scgalore.pl._integration_scores import integration_scores
from scgalore.pl._memory import memory
from scgalore.pl._perturbation_effect import perturbation_effect
from scgalore.pl._perturbation_embedding import perturbation_embedding
from scgalore.pl._perturbation_scores import perturbation_scores

__all__ = [
    "attention",
    "confusion_matrix",
    "dose_response",
    "gene_network",
    "gene_selection",
    "history",
    "in_silico_shifts",
    "integration_scores",
    "memory",
    "perturbation_effect",
    "perturbation_embedding",
    "perturbation_scores",
]
