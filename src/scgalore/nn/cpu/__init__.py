"""Kernels that are faster than torch's own on some processors, and the choice among them."""

from scgalore.nn.cpu.choice import gain_of_bfloat16, kernels, kernels_in_words, using_kernels

__all__ = ["gain_of_bfloat16", "kernels", "kernels_in_words", "using_kernels"]
