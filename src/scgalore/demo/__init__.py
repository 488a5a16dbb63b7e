"""The demonstration: a model fine-tuned on real cells, beside its baselines, in a few minutes on a laptop."""

from scgalore.demo.run import Recipe, run_demo

__all__ = ["Recipe", "run_demo"]
