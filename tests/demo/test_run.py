from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from scgalore.demo import Recipe, run_demo
from scgalore.demo.folder import FILES
from scgalore.errors import OptionError

QUICK = Recipe(max_epochs=1, batch_size=32, max_length=32)


@dataclass
class Finished:
    folder: Path
    lines: list[str]
    report: str
    adata: ad.AnnData


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("demo") / "new" / "out"
    before = dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()
    folder = run_demo(out, model=tiny_model, n_seeds=1, random_weights=True, recipe=QUICK, say=lines.append)
    assert (dict(mpl.rcParams), plt.get_fignums(), mpl.get_backend()) == before
    assert folder == out
    report = (out / "report.md").read_text(encoding="utf-8")
    return Finished(folder, lines, report, ad.read_h5ad(out / "results.h5ad"))


def table(report: str, first_column: str) -> pd.DataFrame:
    """The table of a report whose header starts with a word, as text by its first column."""
    lines = iter(report.splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_column}"))
    rows = [header, *(line for line in iter(lambda: next(lines, ""), "") if not line.startswith("| --"))]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return pd.DataFrame(cells[1:], columns=cells[0]).set_index(first_column)


@pytest.mark.slow
class TestFinishedDemo:
    def test_folder_holds_the_promised_files_and_no_others(self, finished: Finished) -> None:
        assert sorted(path.name for path in finished.folder.iterdir()) == sorted(FILES)
        assert [path.name for path in finished.folder.parent.iterdir()] == ["out"], "a draft was left"
        for name in FILES:
            assert f"  {finished.folder / name}" in "\n".join(finished.lines)

    def test_scores_are_those_of_the_labels_in_the_results(self, finished: Finished) -> None:
        obs = finished.adata.obs[finished.adata.obs["scgpt_split"] == "test"]
        truth, predicted = obs["bulk_labels"].astype(str), obs["scgpt_label"].astype(str)
        row = table(finished.report, "method").loc["tiny + galore"]
        f1 = f1_score(truth, predicted, average="macro", labels=sorted(set(truth)), zero_division=0)
        assert row["accuracy"] == f"{accuracy_score(truth, predicted):.3f}"
        assert row["macro F1"] == f"{f1:.3f}"
        assert (row["seeds"], row["held-out cells"]) == ("1", str(len(obs))) == ("1", "140")

    @pytest.mark.parametrize(
        ("method", "scaled"), [("logistic regression", False), ("logistic regression, scaled genes", True)]
    )
    def test_logistic_regression_saw_the_same_genes_and_cells(
        self, finished: Finished, method: str, scaled: bool
    ) -> None:
        adata = finished.adata
        genes = ~adata.var_names.isin(sorted(adata.var_names)[:5])  # those that the model has no tokens for
        x, truth = adata.X[:, genes].toarray(), adata.obs["bulk_labels"].astype(str).to_numpy()
        train = (adata.obs["scgpt_split"] == "train").to_numpy()
        if scaled:
            x = StandardScaler().fit(x[train]).transform(x)
        predicted = LogisticRegression(max_iter=2000).fit(x[train], truth[train]).predict(x[~train])
        row = table(finished.report, "method").loc[method]
        assert float(str(row["accuracy"])) == pytest.approx(accuracy_score(truth[~train], predicted), abs=0.008)
        assert float(str(row["macro F1"])) == pytest.approx(
            f1_score(truth[~train], predicted, average="macro"), abs=0.02
        )

    def test_majority_is_the_most_frequent_class(self, finished: Finished) -> None:
        obs = finished.adata.obs[finished.adata.obs["scgpt_split"] == "test"]
        share = (obs["bulk_labels"] == "Dendritic").mean()
        assert table(finished.report, "method").loc["majority class", "accuracy"] == f"{share:.3f}"

    def test_differences_are_those_of_the_scores(self, finished: Finished) -> None:
        scores = finished.adata.uns["demo"]["scores"].set_index("method")
        rivals = scores.filter(like="logistic", axis="index")
        mine, best = scores.loc["tiny + galore"], rivals.loc[rivals["macro_f1"].idxmax()]
        row = table(finished.report, "seed").loc["0"]
        assert row["accuracy"] == f"{mine['accuracy'] - best['accuracy']:+.3f}"
        assert row["macro F1"] == f"{mine['macro_f1'] - best['macro_f1']:+.3f}"

    def test_random_weights_are_reported_when_asked_for(self, finished: Finished) -> None:
        assert "same network, random weights" in table(finished.report, "method").index
        assert "## What pretraining buys" in finished.report

    def test_results_are_ready_for_scanpy(self, finished: Finished) -> None:
        sc = pytest.importorskip("scanpy")
        adata = finished.adata
        assert adata.obsm["X_scGPT"].shape == (700, 16)
        assert adata.obsm["X_umap"].shape == (700, 2)
        assert adata.uns["neighbors"]["params"]["use_rep"] == "X_scGPT"
        ax = sc.pl.umap(adata, color="scgpt_label", show=False)
        plt.close(ax.figure)

    def test_a_class_has_one_colour_in_both_panels(self, finished: Finished) -> None:
        def colors(key: str) -> dict[str, str]:
            return dict(zip(finished.adata.obs[key].cat.categories, finished.adata.uns[f"{key}_colors"], strict=True))

        assert colors("scgpt_label").items() <= colors("bulk_labels").items()

    @pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".png")])
    def test_pictures_show_something(self, finished: Finished, name: str) -> None:
        assert f"]({name})" in finished.report
        pixels = image.imread(finished.folder / name)
        assert min(pixels.shape[:2]) > 400
        assert 0.01 < np.mean(pixels[..., :3].min(axis=2) < 0.9) < 0.5

    def test_costs_are_those_of_this_run(self, finished: Finished) -> None:
        seconds = table(finished.report, "part")["seconds"].astype(float)
        assert seconds["total"] == pytest.approx(seconds.drop("total").sum(), abs=0.5)
        training = finished.adata.uns["finetune"]["training"]
        assert f"Optimizer state: galore {training['optimizer_bytes'] / 1e6:.2f} MB" in finished.report
        assert finished.adata.uns["finetune"]["weights"]["sha256"] in finished.report

    def test_it_is_not_replaced_unless_forced(self, finished: Finished, tiny_model: Path) -> None:
        with pytest.raises(OptionError, match="--force"):
            run_demo(finished.folder, model=tiny_model, recipe=QUICK)
        assert (finished.folder / "report.md").read_text(encoding="utf-8") == finished.report


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"optimizer": "gallore"}, "galore", id="optimizer"),
        pytest.param({"model": "scgpt-minni"}, "scgpt-mini", id="model"),
        pytest.param({"n_seeds": 0}, "n_seeds=0", id="no_seeds"),
        pytest.param({"recipe": Recipe(max_epochs=0)}, "max_epochs=0", id="recipe"),
    ],
)
def test_a_run_that_fails_leaves_nothing(
    tiny_model: Path, tmp_path: Path, options: dict[str, object], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        run_demo(tmp_path / "a" / "out", **{"model": tiny_model, "recipe": QUICK, **options})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
