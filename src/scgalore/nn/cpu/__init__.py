"""Kernels that are faster than PyTorch's on some processors, and their selection."""

from scgalore.nn.cpu.choice import gain_of_bfloat16, kernels, kernels_in_words, using_kernels

__all__ = ["gain_of_bfloat16", "kernels", "kernels_in_words", "using_kernels"]
