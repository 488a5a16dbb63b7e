from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from benchmarks.lowrank_claims import data
from benchmarks.lowrank_claims.claims import FULL, QUICK, all_arms, claim_a, claim_b, claim_c
from benchmarks.lowrank_claims.harness import Budget, next_exponent, read_runs, study
from benchmarks.lowrank_claims.report import difference, epochs_to, machine, reading, tables
from benchmarks.lowrank_claims.tasks import Cells, Characters, Digits
from benchmarks.lowrank_claims.training import Arm, factor, prepare, train
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.lowrank_claims.tasks import Task

pytest.importorskip("peft")

SCRATCH = Digits(rest_lr=3e-3, learnt=(), n_labelled=40)
TASKS = (Characters(rest_lr=3e-3), SCRATCH, Cells(rest_lr=3e-3), Cells(rest_lr=3e-3, labels=False))


def id_of(value: Any) -> str:
    return f"{value.claim}: {value.task.name}, {value.name}" if isinstance(value, Arm) else value.name


@pytest.mark.parametrize("play", data.PLAYS)
def test_parts_of_a_text_are_the_whole_text_once(play: str) -> None:
    parts = data.characters((play,))
    sections = zip(*parts.values(), strict=True)
    ids = torch.cat([piece for section in sections for piece in section])
    letters = data.alphabet()
    text = (Path(data.__file__).parent / "texts" / f"{play}.txt").read_text(encoding="ascii")
    assert "".join(letters[i] for i in ids.tolist()) == text
    assert sum(map(len, parts["train"])) == pytest.approx(0.8 * len(text), rel=0.01)


def test_parts_of_the_digits_share_no_image() -> None:
    parts = data.digits((5, 6, 7, 8, 9))
    seen = [{image.numpy().tobytes() for image in part.images} for part in parts.values()]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert sum(map(len, parts.values())) == 896
    assert all(part.classes.unique().tolist() == [0, 1, 2, 3, 4] for part in parts.values())


def test_few_labelled_images_are_as_many_of_each_class() -> None:
    images = data.few_of_each(data.digits((5, 6, 7))["train"], 10, torch.Generator().manual_seed(0))
    assert images.classes.bincount().tolist() == [10, 10, 10]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=id_of)
def test_networks_learn(task: Task) -> None:
    arm = Arm("", task, "", "full", steps=25, batch=16, lr=2e-3, decay=False)
    before = train(replace(arm, steps=1), 1e-12, 0, None)
    after = train(arm, 2e-3, 0, None)
    assert after["test"]["loss"] < 0.95 * before["test"]["loss"]


def test_same_seed_gives_the_same_scores() -> None:
    arm = next(arm for arm in claim_b(QUICK) if arm.method == "lora")
    arm = replace(arm, task=SCRATCH)
    first, second, other = (train(arm, arm.lr, seed, None) for seed in (0, 0, 1))
    assert first["test"] == second["test"]
    assert first["curve"] == second["curve"]
    assert first["test"] != other["test"]


def _numbers(arm: Arm) -> tuple[int, int]:
    trainable = prepare(arm.task.network(0, None), arm, 0)
    tuned, rest = ([param.numel() for param in group] for group in (trainable.tuned, trainable.rest))
    return sum(tuned), sum(rest)


def _without_base(arm: Arm) -> Arm:
    """Same shapes, without the pre-training."""
    task = arm.task
    if isinstance(task, Digits):
        task = replace(task, learnt=(), pretraining_steps=0)
    return replace(arm, task=task)


def test_compared_adapters_have_equally_many_parameters() -> None:
    compared: dict[str, set[tuple[int, int]]] = {}
    for arm in map(_without_base, [*claim_c(FULL), *claim_b(FULL)]):
        if arm.method == "lora" and arm.options["rank"] != 16:
            compared.setdefault(arm.task.name, set()).add(_numbers(arm))
    assert {task: [n for n, _ in numbers] for task, numbers in compared.items()} == {
        "scGPT, cell types": [12_288],
        "scGPT, masked genes": [12_288],
        "GPT, fine-tuned": [16_384],
        "ViT, 50 images": [16_384],
        "ViT, 150 images": [16_384],
    }


@pytest.mark.parametrize("arm", [arm for arm in claim_a(FULL) if arm.options], ids=id_of)
def test_heads_have_the_numbers_of_their_ranks_and_all_but_the_adapted_weights_trains(arm: Arm) -> None:
    network = arm.task.network(0, None)
    n_all = sum(param.numel() for param in network.parameters())
    names = (".out_proj.weight", ".linear1.weight", ".linear2.weight")
    shapes = [tuple(param.shape) for key, param in network.named_parameters() if key.endswith(names)]
    shapes += [(64, 64)] * 3 * 4  # q, k and v of four blocks
    heads = arm.options["n_heads"] * arm.options["rank"] * sum(sum(shape) for shape in shapes)
    assert _numbers(arm) == (heads, n_all - sum(math.prod(shape) for shape in shapes))


def test_full_and_head_arms_train_what_they_say() -> None:
    arms = {arm.method: _without_base(arm) for arm in claim_b(FULL)[:5]}
    network = arms["full"].task.network(0, None)
    n_all = sum(param.numel() for param in network.parameters())
    n_head = sum(param.numel() for param in network.get_submodule("head").parameters())
    assert _numbers(arms["full"]) == (n_all - n_head, n_head)
    assert _numbers(arms["head"]) == (n_head, 0)
    assert _numbers(arms["lora"])[1] == n_head


def test_each_number_of_heads_has_both_references() -> None:
    arms = claim_a(FULL)
    full = {(arm.batch, arm.steps) for arm in arms if arm.method == "matrices"}
    heads = [arm for arm in arms if arm.method == "lte"]
    assert {arm.options["n_heads"] for arm in heads} == {1, 4, 16}
    for arm in heads:
        assert (arm.batch, arm.steps) in full
        assert (arm.batch // arm.options["n_heads"], arm.steps) in full


def test_arms_of_a_task_start_alike_and_take_as_many_samples() -> None:
    for arms in (claim_b(FULL), claim_c(FULL)):
        lengths: dict[Task, set[tuple[Any, ...]]] = {}
        for arm in arms:
            lengths.setdefault(arm.task, set()).add((arm.steps, arm.batch, arm.decay, arm.score_every))
        assert all(len(length) == 1 for length in lengths.values())


def test_names_are_unique_within_a_claim() -> None:
    names = [(arm.claim, arm.task.name, arm.name) for arm in all_arms(FULL)]
    assert len(set(names)) == len(names)


@given(st.floats(-2, 2), st.integers(3, 7))
def test_search_surrounds_the_optimum(optimum: float, n_trials: int) -> None:
    losses: dict[float, tuple[float, ...]] = {}
    for _ in range(n_trials):
        exponent = next_exponent(losses)
        assert exponent not in losses
        losses[exponent] = (abs(exponent - optimum),)
    nearest = min(losses.values())[0]
    assert nearest <= max(0.5, abs(optimum) - (n_trials - 2))


def test_search_turns_away_from_what_diverges() -> None:
    losses: dict[float, tuple[float, ...]] = {0.0: (2.0,), 1.0: (math.inf,)}
    assert next_exponent(losses) == -1
    losses[-1.0] = (3.0,)
    assert next_exponent(losses) == -0.5


@pytest.mark.parametrize("decay", [True, False])
def test_schedule_warms_up_and_ends_as_it_should(*, decay: bool) -> None:
    factors = [factor(step, 100, decay=decay) for step in range(101)]
    assert factors[0] == 0.2
    assert max(factors) == 1.0
    assert factors[:5] == sorted(factors[:5])
    assert factors[100] == (pytest.approx(0) if decay else 1.0)


def _arm() -> Arm:
    return Arm("B", SCRATCH, "full", "full", steps=2, batch=10, lr=1e-3, score_every=1)


def test_finished_runs_are_not_repeated(tmp_path: Path) -> None:
    first = study(_arm(), Budget(2, 2), tmp_path)
    assert [run["seed"] for run in first["runs"]] == [0, 1]
    path = tmp_path / "runs.jsonl"
    assert len(read_runs(path)) == 4
    before = path.read_bytes()
    assert study(_arm(), Budget(2, 2), tmp_path) == first
    assert path.read_bytes() == before


def test_interrupted_study_continues(tmp_path: Path) -> None:
    first = study(_arm(), Budget(2, 2), tmp_path)
    path = tmp_path / "runs.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n" + lines[2][: len(lines[2]) // 2] + "\n")
    second = study(_arm(), Budget(2, 2), tmp_path)
    assert [run["test"] for run in second["runs"]] == [run["test"] for run in first["runs"]]
    assert set(read_runs(path)) == {run["key"] for run in (*first["trials"], *first["runs"])}


def test_other_numbers_of_an_arm_are_another_run(tmp_path: Path) -> None:
    study(_arm(), Budget(1, 1), tmp_path)
    study(replace(_arm(), batch=5), Budget(1, 1), tmp_path)
    assert len(read_runs(tmp_path / "runs.jsonl")) == 4


def _scored(losses: Sequence[float]) -> dict[str, Any]:
    return {"runs": [{"test": {"loss": loss}} for loss in losses]}


def test_difference_is_the_paired_interval() -> None:
    one, other = [1.0, 1.2, 1.1, 1.4], [0.9, 1.0, 1.2, 1.1]
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    mean, half = map(float, difference(_scored(one), _scored(other), "loss", digits=6).split(" ± "))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=2e-6)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(-1, 1), st.sampled_from(["loss", "accuracy"]))
def test_reading_is_what_a_paired_test_says(noise: list[float], shift: float, metric: str) -> None:
    one = {"runs": [{"test": {metric: value + shift}} for value in noise]}
    other = {"runs": [{"test": {metric: value**2}} for value in noise]}
    gaps = [value + shift - value**2 for value in noise]
    if max(gaps) - min(gaps) < 1e-6:
        return
    result = stats.ttest_1samp(gaps, 0)
    if abs(result.pvalue - 0.05) > 1e-6:
        is_better = (result.statistic > 0) == (metric == "accuracy")
        expected = "better" if is_better else "worse"
        assert reading(one, other, metric) == (expected if result.pvalue < 0.05 else "no difference beyond noise")


def test_one_seed_decides_nothing() -> None:
    assert reading(_scored([1.0]), _scored([2.0]), "loss") == "no difference beyond noise"


def test_epochs_to_target_count_only_seeds_that_reach_it() -> None:
    curves = [[0.1, 0.6, 0.9], [0.7, 0.6, 0.5], [0.1, 0.2, 0.3]]
    scored = {"runs": [{"curve": [{"accuracy": value} for value in curve]} for curve in curves]}
    assert epochs_to(scored, 0.6) == "2 (2/3)"
    assert epochs_to(scored, 0.8) == "not reached (1/3)"


def test_tables_hold_every_arm(tmp_path: Path) -> None:
    arms = [replace(_arm(), name=name) for name in ("full", "another")]
    studies = [study(arm, Budget(1, 2), tmp_path) for arm in arms]
    text = tables(studies, {**machine(), "workers": 1})
    for name in ("full", "another"):
        assert f"| {SCRATCH.name}: {name} |" in text
