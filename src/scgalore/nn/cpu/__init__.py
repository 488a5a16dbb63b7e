"""Kernels that are faster than torch's own on some processors."""
