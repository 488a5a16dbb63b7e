from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import image
from matplotlib import pyplot as plt
from sklearn.metrics import accuracy_score, f1_score

from scgalore.data.vocab import GeneVocab
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig
from scgalore.pipeline import RunConfig
from scgalore.pipeline.demo import FILES, compare, run_demo, score_table, strongest

QUICK: dict[str, Any] = {"max_epochs": 1, "batch_size": 32, "max_length": 32, "accelerator": "cpu"}


def table(**f1: list[float]) -> pd.DataFrame:
    """Scores by method; accuracy is 0.1 higher."""
    rows = [
        {"seed": seed, "method": method, "accuracy": value + 0.1, "macro_f1": value, "n": 140 + seed}
        for method, values in f1.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("mine", "verdict"),
    [
        pytest.param([0.70, 0.75, 0.65], "equals theirs within the noise (difference +0.000", id="equal"),
        pytest.param([0.69, 0.75, 0.65], "within the noise (difference -0.003", id="slightly_below"),
        pytest.param([0.65, 0.69, 0.61], "fails to reach theirs, by 0.050, which is more than", id="below"),
        pytest.param([0.75, 0.81, 0.69], "exceeds theirs, by 0.050, which is more than", id="above"),
        pytest.param([0.40, 0.75, 0.85], "within the noise (difference -0.033", id="wild"),
    ],
)
def test_verdict_compares_the_difference_with_its_spread(mine: list[float], verdict: str) -> None:
    accuracy, f1 = compare(table(mine=mine, theirs=[0.70, 0.75, 0.65]), "mine", "theirs")
    assert verdict in accuracy
    assert verdict in f1
    assert (accuracy.split(":")[0], f1.split(":")[0]) == ("accuracy", "macro F1")


def test_spread_is_that_of_the_paired_differences() -> None:
    # Both methods vary much between seeds, but always together.
    sentence = compare(table(mine=[0.4, 0.6, 0.8], theirs=[0.43, 0.62, 0.82]), "mine", "theirs")[1]
    sd = np.std([-0.03, -0.02, -0.02], ddof=1)
    assert "fails to reach" in sentence
    assert f"{sd:.3f}" in sentence


def test_one_seed_gives_no_verdict() -> None:
    assert "is 0.300 below theirs. With one seed" in compare(table(mine=[0.4], theirs=[0.7]), "mine", "theirs")[1]


def test_score_table_has_mean_and_spread() -> None:
    text = score_table(table(mine=[0.5, 0.6, 0.7], theirs=[0.8]))
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in text.splitlines()}
    assert rows["mine"] == ["0.700 ± 0.100", "0.600 ± 0.100", "3", "140-142"]
    assert rows["theirs"] == ["0.900", "0.800", "1", "140"]


def test_the_comparison_is_with_the_stronger_baseline() -> None:
    scores = table(a=[0.5, 0.9], b=[0.6, 0.7], c=[1.0, 1.0])
    assert strongest(scores, ["a", "b"]) == "a"


@pytest.fixture(scope="module")
def tiny_model(_pbmc_once: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small network with random weights that knows all but five of pbmc68k's genes."""
    vocab = GeneVocab.from_genes(sorted(_pbmc_once.var_names)[5:])
    config = SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=16, n_heads=2, d_hid=16, n_layers=1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    SCGPT.from_config(config, vocab).save(folder)
    return folder


@dataclass
class Finished:
    folder: Path
    lines: list[str]
    report: str
    adata: AnnData


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "new" / "out"
    before = dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()
    folder = run_demo(out, model=tiny_model, n_seeds=2, say=lines.append, **QUICK)
    assert (dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()) == before
    assert folder == out
    report = (out / "report.md").read_text(encoding="utf-8")
    return Finished(folder, lines, report, ad.read_h5ad(out / "results.h5ad"))


def rows_of(report: str, first_column: str) -> pd.DataFrame:
    """The table of a report whose header starts with a word, as text by its first column."""
    lines = iter(report.splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_column}"))
    rows = [header, *(line for line in iter(lambda: next(lines, ""), "") if not line.startswith("| --"))]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return pd.DataFrame(cells[1:], columns=cells[0]).set_index(first_column)


class TestFinishedDemo:
    def test_folder_holds_the_promised_files_and_a_run_for_each_seed(self, finished: Finished) -> None:
        names = sorted(path.name for path in finished.folder.iterdir())
        assert names == sorted([*FILES, "cells.h5ad", "seed_0", "seed_0_network", "seed_1", "seed_1_network"])
        assert [path.name for path in finished.folder.parent.iterdir()] == ["out"], "a draft was left"
        for name in FILES:
            assert f"  {finished.folder / name}" in "\n".join(finished.lines)
        for seed in range(2):
            run = RunConfig.from_json(finished.folder / f"seed_{seed}" / "config.json")
            assert (run.rng, run.test_size, run.training.get("curriculum")) == (seed, 0.2, None)

    def test_scores_are_those_of_the_labels_in_the_results(self, finished: Finished) -> None:
        found = []
        for seed in range(2):
            obs = ad.read_h5ad(finished.folder / f"seed_{seed}" / "results.h5ad").obs
            obs = obs[obs["scgpt_split"] == "test"]
            truth, predicted = obs["bulk_labels"].astype(str), obs["scgpt_label"].astype(str)
            f1 = f1_score(truth, predicted, average="macro", labels=sorted(set(truth)), zero_division=0)
            found.append((accuracy_score(truth, predicted), f1))
        row = rows_of(finished.report, "method").loc["tiny + galore"]
        for values, text in zip(zip(*found, strict=True), (row["accuracy"], row["macro F1"]), strict=True):
            assert text == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
        assert row["seeds"] == "2"

    def test_all_genes_are_used(self, finished: Finished) -> None:
        assert finished.adata.n_vars == 765

    def test_results_are_ready_for_scanpy(self, finished: Finished) -> None:
        assert finished.adata.obsm["X_scGPT"].shape[1] == 16
        assert finished.adata.obsm["X_umap"].shape[1] == 2

    @pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".png")])
    def test_pictures_show_something(self, finished: Finished, name: str) -> None:
        assert f"]({name})" in finished.report
        pixels = image.imread(finished.folder / name)
        assert min(pixels.shape[:2]) > 400
        assert 0.01 < np.mean(pixels[..., :3].min(axis=2) < 0.9) < 0.5

    def test_it_is_not_replaced_unless_forced(self, finished: Finished, tiny_model: Path) -> None:
        with pytest.raises(OptionError, match="--force"):
            run_demo(finished.folder, model=tiny_model, **QUICK)
        with pytest.raises(OptionError, match="no-such-model"):
            run_demo(finished.folder, model="no-such-model", force=True, **QUICK)
        assert (finished.folder / "report.md").read_text(encoding="utf-8") == finished.report

    @pytest.mark.parametrize("foreign", ["thesis.tex", "seed_0/thesis.tex", "seed_7"])
    def test_foreign_files_are_never_lost(self, finished: Finished, tiny_model: Path, foreign: str) -> None:
        path = finished.folder / foreign
        path.write_text("years")
        with pytest.raises(OptionError, match=foreign.split("/")[-1]):
            run_demo(finished.folder, model=tiny_model, force=True, **QUICK)
        assert path.read_text() == "years"
        path.unlink()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"optimizer": "gallore"}, "galore", id="optimizer"),
        pytest.param({"model": "scgpt-minni"}, "scgpt-mini", id="model"),
        pytest.param({"n_seeds": 0}, "n_seeds=0", id="no_seeds"),
        pytest.param({"max_epochs": 0}, "max_epochs=0", id="recipe"),
    ],
)
def test_a_demo_that_fails_leaves_nothing(
    tiny_model: Path, tmp_path: Path, options: dict[str, object], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        run_demo(tmp_path / "a" / "out", **{"model": tiny_model, **QUICK, **options})
    assert list(tmp_path.iterdir()) == []
