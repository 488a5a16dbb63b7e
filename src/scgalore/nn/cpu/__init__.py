"""Kernels that are faster than torch's own on some processors, and the switch that turns them off."""

from scgalore.nn.cpu.switch import use_cpu_kernels

__all__ = ["use_cpu_kernels"]
