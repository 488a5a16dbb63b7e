"""References that cells are mapped to: nearest neighbours, calibrated label transfer, and files."""

from scgalore.mapping.files import read_reference, write_reference
from scgalore.mapping.reference import Reference

__all__ = ["Reference", "read_reference", "write_reference"]
