"""Weights: known by name, fetched and verified, read from and written to checkpoint folders."""

from scgalore.weights.bundle import bundle, unbundle
from scgalore.weights.checkpoint import Checkpoint, read_checkpoint
from scgalore.weights.fetch import fetch_weights, resolve_model_folder
from scgalore.weights.load import LoadReport, load_tensors
from scgalore.weights.registry import WeightsEntry, WeightsFile, get_entry, list_weights, register
from scgalore.weights.save import export_scbert, export_scgpt, write_checkpoint
from scgalore.weights.scbert import read_scbert
from scgalore.weights.scgpt import read_scgpt

__all__ = [
    "Checkpoint",
    "LoadReport",
    "WeightsEntry",
    "WeightsFile",
    "bundle",
    "export_scbert",
    "export_scgpt",
    "fetch_weights",
    "get_entry",
    "list_weights",
    "load_tensors",
    "read_checkpoint",
    "read_scbert",
    "read_scgpt",
    "register",
    "resolve_model_folder",
    "unbundle",
    "write_checkpoint",
]
