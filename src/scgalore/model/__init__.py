"""Models as users hold them."""

from scgalore.model.scgpt import SCGPT

__all__ = ["SCGPT"]
