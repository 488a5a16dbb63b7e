"""References that cells are mapped to: nearest neighbours, what their labels are worth, and the file they are kept in."""

from scgalore.mapping.files import read_reference, write_reference
from scgalore.mapping.reference import Reference

__all__ = ["Reference", "read_reference", "write_reference"]
