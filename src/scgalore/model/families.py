"""The model families that the package knows, and which of them a folder or a network belongs to.

To add one, write a subclass of :class:`scgalore.nn.CellNetwork` and put a :class:`Family` into :data:`FAMILIES`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from scgalore.errors import WeightsError
from scgalore.weights import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from scgalore.model.family import Family
    from scgalore.nn import CellNetwork

__all__ = ["FAMILIES", "family_of_folder", "family_of_network"]

FAMILIES: dict[str, Family] = {}
"""Families by name; each family's own file adds its row."""

FIRST = "scgpt"
"""Family of the folders that scgalore 0.5.0 wrote, which do not name it."""


def family_of_folder(folder: Path) -> Family:
    """Family whose weights a folder holds.

    Raises
    ------
    WeightsError
        If it holds none, or those of a family that is not in :data:`FAMILIES`.
    """
    config = _config(folder)
    if "scgalore" in config:
        name = config.get("family", FIRST)
        if name not in FAMILIES:
            msg = (
                f"{folder} holds a model of the family {name!r}; known are {', '.join(map(repr, FAMILIES))}. Update scgalore, "
                "or import the package that adds this family."
            )
            raise WeightsError(msg)
        return FAMILIES[name]
    # Families that were added later may look more closely.
    for family in reversed(FAMILIES.values()):
        if family.recognises(folder):
            return family
    read_checkpoint(folder)  # raises if the folder is incomplete, naming the file
    msg = f"{folder} holds weights of none of the families {', '.join(map(repr, FAMILIES))}."
    raise WeightsError(msg)


def family_of_network(network: CellNetwork) -> Family:
    """Family of a network, by its class.

    Raises
    ------
    WeightsError
        If none in :data:`FAMILIES` has networks of this class.
    """
    for family in FAMILIES.values():
        if type(network) is family.network:
            return family
    msg = f"{type(network).__name__} belongs to no family in scgalore.model.FAMILIES. Put a row for it there."
    raise WeightsError(msg)


def _config(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads the folder next reports it
        return {}
    return content if isinstance(content, dict) else {}
