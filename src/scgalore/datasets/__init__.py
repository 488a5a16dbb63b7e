"""Public single-cell data sets: download and verification."""

from scgalore.datasets.canonical import to_canonical
from scgalore.datasets.fetch import fetch_dataset, load_dataset
from scgalore.datasets.named import (
    adamson_2016,
    dixit_2016,
    norman_2019,
    perturbench_devel,
    replogle_2022_k562_essential,
    replogle_2022_rpe1,
    vcc_2025_h1,
)
from scgalore.datasets.registry import DatasetEntry, get_entry, list_datasets

__all__ = [
    "DatasetEntry",
    "adamson_2016",
    "dixit_2016",
    "fetch_dataset",
    "get_entry",
    "list_datasets",
    "load_dataset",
    "norman_2019",
    "perturbench_devel",
    "replogle_2022_k562_essential",
    "replogle_2022_rpe1",
    "to_canonical",
    "vcc_2025_h1",
]
