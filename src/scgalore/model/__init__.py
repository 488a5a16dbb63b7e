"""Models as users hold them, and the memory they take in training."""

from scgalore.model.memory import savings
from scgalore.model.scgpt import SCGPT

__all__ = ["SCGPT", "savings"]
