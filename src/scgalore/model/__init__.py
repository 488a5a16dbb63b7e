"""Models, model families, and memory estimates."""

from scgalore.model.cell_model import CellModel
from scgalore.model.families import FAMILIES, load
from scgalore.model.family import Family
from scgalore.model.memory import savings
from scgalore.model.scbert import SCBERT
from scgalore.model.scgpt import SCGPT, scgpt_config

__all__ = ["FAMILIES", "SCBERT", "SCGPT", "CellModel", "Family", "load", "savings", "scgpt_config"]
