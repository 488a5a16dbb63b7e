import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from benchmarks.optimizer_quality import (
    ENTRIES,
    GRID,
    TASKS,
    TUNING_SEED,
    Ledger,
    Study,
    Task,
    chosen_entries,
    extended,
    gene_means,
    label_scores,
    loss_ratios,
    main,
    masked_errors,
    paired,
    read_task,
    settings_from,
    split_for,
    step_times,
    trained_optimizer,
    untrained_model,
    verdict,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import log_loss

from scgalore.data.sampler import BatchRequest
from scgalore.data.vocab import GeneVocab
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig
from scgalore.objectives import MaskedExpression

SMALL = replace(TASKS["pbmc68k"], epochs=1, n_cells=48, batch_size=24, max_length=8, read_length=12)
MASKED = Task("masked", None, None, epochs=1, max_length=16, read_length=24, n_cells=90)
numbers = st.lists(st.floats(-1, 1), min_size=3, max_size=6)


@pytest.fixture(scope="module")
def weights(_pbmc_once: AnnData, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a small network with random weights."""
    vocab = GeneVocab.from_genes(sorted(_pbmc_once.var_names))
    config = SCGPTConfig(n_tokens=len(vocab), pad_id=vocab.pad_id, d_model=16, n_heads=2, d_hid=16, n_layers=1)
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    SCGPT.from_config(config, vocab).save(folder)
    return str(folder)


@pytest.fixture
def study(tmp_path: Path, weights: str) -> Study:
    """One that keeps its fits in a folder of its own."""
    return Study(Ledger(tmp_path / "fits.jsonl", None, workers=1, say=lambda _: None), seeds=(1, 2), weights=weights)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([3.0, 1.0, 2.0], [0.1, 0.33, 1.0]),
        ([1.0, 2.0, 3.0], [0.03, 0.1, 0.33, 1.0]),
        ([3.0, 2.0, 1.0], [0.1, 0.33, 1.0, 3.3]),
        ([float("inf")] * 3, [0.03, 0.1, 0.33, 1.0]),
    ],
    ids=["inside", "lower edge", "upper edge", "all diverged"],
)
def test_grid_grows_beyond_the_edge_that_is_best(losses: list[float], expected: list[float]) -> None:
    assert extended([0.1, 0.33, 1.0], losses) == pytest.approx(expected)


def test_all_entries_get_grids_of_one_size_around_their_own_default() -> None:
    entries = chosen_entries(list(ENTRIES), {}, lambda _: None)
    assert {len(entry.grid) for entry in entries} == {len(GRID)}
    assert {entry.label for entry in entries} >= {"galore", "adamw"}


@given(numbers, st.data())
def test_a_difference_is_called_one_where_the_paired_t_test_finds_it(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.floats(-1, 1), min_size=len(a), max_size=len(a)))
    if np.std(np.subtract(a, b)) < 1e-6:
        return
    rows = pd.DataFrame({"entry": ["x"] * len(a) + ["y"] * len(b), "seed": [*range(len(a))] * 2, "loss": [*a, *b]})
    test = stats.ttest_rel(a, b)
    difference, error, n = paired(rows, "loss", "x", "y")
    assert difference / error == pytest.approx(test.statistic, rel=1e-6, abs=1e-9)
    if abs(test.pvalue - 0.05) > 1e-6:
        found = "within noise" if test.pvalue > 0.05 else "better" if difference < 0 else "worse"
        assert verdict(difference, error, n, better=-1) == found
        opposite = {"better": "worse", "worse": "better"}
        assert verdict(difference, error, n, better=1) == opposite.get(found, found)


def test_splits_are_paired_by_seed_and_one_without_a_partner_is_left_out() -> None:
    rows = pd.DataFrame(
        {"entry": ["x", "x", "y", "y", "y"], "seed": [2, 1, 1, 2, 3], "loss": [5.0, 3.0, 1.0, 2.0, 90.0]}
    )
    assert paired(rows, "loss", "x", "y") == (pytest.approx(2.5), pytest.approx(0.5), 2)
    assert paired(rows, "loss", "x", "absent")[2] == 0


def test_loss_ratios_weigh_tasks_of_different_size_alike() -> None:
    rows = pd.DataFrame(
        [
            {"task": task, "seed": seed, "entry": entry, "loss": scale * factor}
            for task, scale in (("a", 0.1), ("b", 40.0))
            for seed in (1, 2)
            for entry, factor in (("x", 1.1), ("y", 1.0))
        ]
    )
    (ratio,) = loss_ratios(rows, "y", labels=["x", "y", "absent"])
    assert ratio["percent"] == pytest.approx(10.0)
    assert ratio["n"] == 4


def test_label_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities, truth = rng.dirichlet(np.ones(4), size=50), rng.integers(0, 4, 50)
    scores = label_scores(probabilities, truth)
    assert scores["loss"] == pytest.approx(log_loss(truth, probabilities, labels=range(4)))
    assert scores["accuracy"] == pytest.approx((probabilities.argmax(1) == truth).mean())


def test_a_class_that_nobody_has_does_not_lower_macro_f1() -> None:
    assert label_scores(np.eye(4)[[0, 1, 2]], np.array([0, 1, 2]))["macro F1"] == pytest.approx(1.0)


def test_tuning_holds_nothing_out_and_scoring_splits_differ(weights: str) -> None:
    _, cells = read_task(SMALL, None, weights)
    assert len(split_for(cells, TUNING_SEED).test) == 0
    first, second = split_for(cells, 1), split_for(cells, 2)
    assert len(first.test) == round(0.2 * cells.n_obs)
    assert not np.array_equal(first.test, second.test)


def test_masked_error_is_the_mean_over_all_hidden_tokens_whatever_the_batches(weights: str) -> None:
    _, cells = read_task(MASKED, None, weights)
    model, rows = SCGPT.from_pretrained(weights), np.arange(70)  # three batches, the last one small
    whole = MaskedExpression().corrupt(cells.batch(BatchRequest(rows)), seed=0, draw=0)
    with torch.no_grad():
        loss = MaskedExpression()(model.network, whole)
    found = masked_errors(model, cells, rows)
    assert found["masked error"] == pytest.approx(float(loss.parts["mse"]), rel=1e-4)
    assert found["loss"] == pytest.approx(float(loss.total), rel=1e-4)


def test_gene_means_are_those_of_the_training_cells(weights: str) -> None:
    _, cells = read_task(MASKED, None, weights)
    split = split_for(cells, 1)
    train, test = (cells.batch(BatchRequest(rows)) for rows in (split.train, split.test))
    masked = MaskedExpression().corrupt(test, seed=0, draw=0)
    hidden = masked.targets["masked"]
    genes, bins = train.genes[:, 1:][~train.padding[:, 1:]], train.values[:, 1:][~train.padding[:, 1:]]
    errors = []
    for gene, target in zip(masked.genes[hidden], masked.targets["expression"][hidden], strict=True):
        same = bins[genes == gene]
        errors.append(float((same if len(same) else bins).mean() - target) ** 2)
    assert gene_means({}, cells, split)["masked error"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_a_default_given_in_words_is_the_same_fit_and_another_rank_is_another(study: Study) -> None:
    galore = ENTRIES["galore"]
    gap = galore.options["optimizer_options"]["update_proj_gap"]
    same, other = galore.variant({"update_proj_gap": gap}), galore.variant({"rank": 3})
    assert same is not None
    assert other is not None
    assert study.job(SMALL, same, 0.1, 1) == study.job(SMALL, galore, 0.1, 1)
    assert study.job(SMALL, other, 0.1, 1) != study.job(SMALL, galore, 0.1, 1)


def test_variants_are_made_of_the_entries_that_take_the_option() -> None:
    entries = chosen_entries(["galore", "adamw"], settings_from(["rank=3", "train.clip_norm=2.5"]), print)
    assert [entry.label for entry in entries] == ["galore", "adamw", "galore, rank=3, train.clip_norm=2.5"]
    assert entries[-1].train["clip_norm"] == 2.5
    with pytest.raises(SystemExit, match="None of the entries"):
        chosen_entries(["adamw"], {"rank": 3}, print)
    with pytest.raises(SystemExit, match="option=value"):
        settings_from(["rank"])


def test_an_interrupted_run_goes_on_where_it_was(study: Study) -> None:
    entry, study = ENTRIES["galore"], replace(study, seeds=(1,))
    grids = study.tune(SMALL, [entry])
    losses = study.validation_losses(SMALL, entry, grids["galore"])
    row, reference = study.score(SMALL, [entry], grids)
    assert row["lr"] == grids["galore"][int(np.argmin(losses))]
    assert reference["entry"] == "class frequencies"
    path = study.ledger.path
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:20])  # killed while it wrote

    said: list[str] = []
    again = replace(study, ledger=Ledger(path, None, workers=1, say=said.append))
    assert again.tune(SMALL, [entry]) == grids
    repeated, _ = again.score(SMALL, [entry], grids)
    assert len(said) == 2
    assert len(path.read_text().splitlines()) == len(lines)
    for measured in ("accuracy", "loss", "validation_loss", "optimizer_bytes", "best_epoch"):
        assert repeated[measured] == row[measured]


def test_random_weights_are_those_of_the_seed_and_lora_does_not_start_from_them(study: Study) -> None:
    task = replace(MASKED, from_scratch=True)
    jobs = [study.job(task, ENTRIES["galore"], 0.1, seed) for seed in (1, 1, 2)]
    first, again, other = (untrained_model(job).network.state_dict()["encoder.embedding.weight"] for job in jobs)
    pretrained = untrained_model(study.job(MASKED, ENTRIES["galore"], 0.1, 1)).network.state_dict()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, pretrained["encoder.embedding.weight"])
    assert not ENTRIES["lora + adamw"].fits(task)
    assert ENTRIES["lora + adamw"].fits(MASKED)
    assert ENTRIES["lte + galore"].fits(task)


def test_what_cannot_run_here_is_left_out_and_said(study: Study) -> None:
    broken = replace(ENTRIES["adamw"], label="broken", train={"optimizer": "adamw", "precision": "9-bit"})
    said: list[str] = []
    study.ledger.say = said.append
    assert study.tune(SMALL, [broken]) == {}
    assert len(said) == 1
    assert "precision" in study.ledger.unavailable["broken"]


def test_timed_steps_have_the_gradients_of_training(study: Study) -> None:
    optimizer = trained_optimizer(SMALL, ENTRIES["galore"], study)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    before = [param.detach().clone() for param in params]
    optimizer.step()
    moved = [not (old == new).all() for old, new in zip(before, params, strict=True)]
    assert sum(moved) > len(moved) / 2
    times = step_times(SMALL, [ENTRIES["galore"], ENTRIES["adamw"]], study, rounds=3)
    assert set(times) == {"galore", "adamw"}


@pytest.mark.slow
def test_quick_run_writes_table_and_numbers(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fits, out = tmp_path / "fits.jsonl", tmp_path / "results"
    main(["--quick", "--weights", weights, "--fits", str(fits), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "kang is left out: it needs kang18_pbmc_ifnb_muscat.h5ad" in printed
    table = (out / "optimizer_quality.md").read_text()
    assert table in printed
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][1:5] == [
        ":---",
        "galore",
        "adamw",
        "class frequencies",
    ]
    content = json.loads((out / "optimizer_quality.json").read_text())
    assert len(content["fits"]) == len(fits.read_text().splitlines())
    assert content["about"]["versions"]["torch"]
