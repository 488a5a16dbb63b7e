from pathlib import Path
from typing import Any

import pytest
from anndata import AnnData

from scgalore.pipeline import RunConfig

QUICK: dict[str, Any] = {
    "model": "scgpt-mini",
    "n_genes": 120,
    "curriculum": [40, 120],
    "max_epochs": 2,
    "max_cells": 200,
    "batch_size": 16,
    "accelerator": "cpu",
    "lr": 1e-3,
}


@pytest.fixture(scope="session")
def pbmc_file(_pbmc_once: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 cells x 765 genes in a file."""
    path = tmp_path_factory.mktemp("data") / "pbmc.h5ad"
    _pbmc_once.write_h5ad(path)
    return path


def quick(data: Path, out: Path, **options: Any) -> RunConfig:
    """Configuration of a run of seconds."""
    return RunConfig(**{"data": data, "out": out, **QUICK, **options})
