"""Plots of what is in an AnnData; nothing here changes it or computes more than a count."""

from scgalore.pl._confusion_matrix import confusion_matrix
from scgalore.pl._history import history

__all__ = ["confusion_matrix", "history"]
