"""A run on compounds at doses, from its configuration and from the command line."""

import json
from pathlib import Path

import anndata as ad
import pytest
from tests.dosed_screens import COMPOUNDS, KEYS, dosed
from tests.pipeline.conftest import quick
from typer.testing import CliRunner

from scgalore.cli import app
from scgalore.errors import MissingKeyError
from scgalore.genes import get_gene_set
from scgalore.perturb import COMPOUND_BASELINES
from scgalore.pipeline import run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "drugs.h5ad"
    adata = dosed(compounds=[name for name in COMPOUNDS if name != "drug a/b"], n_cells=6)
    adata.var_names = sorted(get_gene_set("hallmark_interferon_alpha_response").genes)[: adata.n_vars]
    adata.obsm["vectors"] = adata.uns["fingerprints"].reindex(adata.obs["drug"]).fillna(0).to_numpy()
    adata.write_h5ad(path)
    return path


def check(out: Path) -> None:
    adata = ad.read_h5ad(out / "results.h5ad")
    held_out = set(adata.uns["predict_perturbation"]["rows"]["compound"])
    assert len(held_out) == 1
    assert set(
        adata.obs.loc[adata.obs["drug"].isin(held_out), adata.uns["predict_perturbation"]["params"]["split_key"]]
    ) == {"test"}
    found = json.loads((out / "metrics.json").read_text())
    assert {"model", "prior", "ceiling", *COMPOUND_BASELINES} == set(found["groups"]["unseen_compound"]["mse"])
    assert adata.uns["finetune"]["params"]["dose_key"] == "dose"
    assert "dose mean" in (out / "report.md").read_text()


def test_configuration(file: Path, tmp_path: Path) -> None:
    keys = {**KEYS, "vectors_key": "vectors"}
    out = run(quick(file, tmp_path / "run", **keys, n_genes=30, curriculum=None, max_epochs=1))
    check(out)


def test_command_line(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = "--pert-key drug --pert-kind compound --dose-key dose --vectors-key fingerprints --model scgpt-mini --max-epochs 1"
    found = CliRunner().invoke(app, ["run", str(file), "--out", str(out), *options.split(), "--accelerator", "cpu"])
    assert found.exit_code == 0, found.output
    check(out)


def test_a_key_that_is_not_there_is_found_at_once(file: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError, match="vectors_key='morgan'.*'fingerprints', 'vectors'"):
        run(quick(file, tmp_path / "run", **KEYS, vectors_key="morgan"))
    assert not (tmp_path / "run").exists()
