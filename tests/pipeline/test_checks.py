"""What a run decides and refuses before it starts."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from tests.pipeline.conftest import quick

from scgalore.adapters import ADAPTERS
from scgalore.errors import DataError, OptionError
from scgalore.optim import OPTIMIZERS
from scgalore.pipeline.checks import settle, with_genes


def test_what_was_left_open_is_decided_and_recorded(pbmc_file: Path, tmp_path: Path) -> None:
    settled, file = settle(quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels", adapter="lora"))
    assert settled.training["optimizer_options"].keys() == OPTIMIZERS["galore"].options.keys()
    assert settled.training["adapter_options"].keys() == ADAPTERS["lora"].options.keys()
    assert settled.training["lr"] == 1e-3
    assert (settled.validation_size, settled.test_size) == (0.1, 0.1)
    assert (len(file.obs), len(file.var)) == (700, 765)


@pytest.mark.parametrize(
    ("n_genes", "max_epochs", "phases"), [(700, 3, [500, 700]), (700, 1, [700]), (None, 9, [500, 650])]
)
def test_phases_of_a_curriculum_end_with_all_genes_and_have_an_epoch_each(
    pbmc_file: Path, tmp_path: Path, n_genes: int | None, max_epochs: int, phases: list[int]
) -> None:
    options = {"curriculum": True, "n_genes": n_genes, "max_epochs": max_epochs}
    settled, _ = settle(quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels", **options))
    decided = with_genes(settled, 650)
    assert decided.training["curriculum"] == phases
    assert decided.n_genes == phases[-1]


def test_another_version_is_warned_of(pbmc_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels")
    with caplog.at_level("WARNING", logger="scgalore"):
        settle(config)
        assert caplog.text == ""
        settle(config.changed(version="0.1.0"))
    assert "of version 0.1.0" in caplog.text


def test_files_without_cells_or_without_targets_are_refused(pbmc: AnnData, tmp_path: Path) -> None:
    pbmc.obs["nothing"] = np.nan
    pbmc.write_h5ad(tmp_path / "cells.h5ad")
    pbmc[:0].write_h5ad(tmp_path / "empty.h5ad")
    with pytest.raises(DataError, match=r"empty: 0 cells x 765 genes"):
        settle(quick(tmp_path / "empty.h5ad", tmp_path / "run"))
    with pytest.raises(DataError, match=r"has a value in obs\['nothing'\]"):
        settle(quick(tmp_path / "cells.h5ad", tmp_path / "run", labels_key="nothing"))


def test_several_processes_are_refused(pbmc_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match="made by one process"):
        settle(quick(pbmc_file, tmp_path / "run", labels_key="bulk_labels"))
