"""A run that was interrupted and resumed is, bit for bit, the run that was not."""

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from tests.bitwise import differences
from tests.prepared import prepared
from tests.steps import is_step

from scgalore._settings import settings
from scgalore.adapters import ADAPTERS
from scgalore.data.split import random_split
from scgalore.errors import OptionError, WeightsError
from scgalore.model import SCGPT
from scgalore.nn import EMBEDDINGS
from scgalore.objectives import Classification, MaskedExpression
from scgalore.optim import OPTIMIZERS
from scgalore.train import TrainConfig, budget
from scgalore.train.checkpoint import WholeFiles, last_checkpoint

SCRIPT = Path(__file__).with_name("killed_runs.py")
OFTEN = {"galore", "lora", "rows"}
"""Choices that are tested in every run of the suite; the others take minutes together."""
RUN: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 3, "batch_size": 16, "lr": 2e-3, "rng": 1}


@pytest.fixture(scope="module", params=["galore-classes", pytest.param("adamw-masked", marks=pytest.mark.slow)])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the run that was killed and of the one that was not."""
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "SCGALORE_PROGRESS": "0"}
    command = [sys.executable, SCRIPT, folder, request.param]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "resumed", folder / "whole"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
class TestKilled:
    """A process gets SIGKILL in the middle of an epoch, the next one while it saves; a third finishes."""

    def test_weights_are_those_of_the_whole_run(self, parts: tuple[Path, Path]) -> None:
        resumed, whole = (torch.load(part / "weights.pt", weights_only=True) for part in parts)
        assert differences(resumed, whole) == []

    def test_optimizer_schedule_and_stopping_state_too(self, parts: tuple[Path, Path]) -> None:
        resumed, whole = (torch.load(last_checkpoint(part / "checkpoints"), weights_only=True) for part in parts)
        # GaLoreAdamW names torch's default of "differentiable" once a state was loaded.
        besides = (
            "differentiable",
            "seconds",
            "dirpath",
            "best_model_path",
            "last_model_path",
            "best_k_models",
            "kth_best",
        )
        # Lightning counts the restarts of its loops; what it counts of the training itself is global_step and epoch.
        assert differences(resumed, whole, besides=(*besides, "loops")) == []
        assert resumed["global_step"] == 6 * 4
        assert any(name.startswith("StopEarly") for name in resumed["callbacks"])

    def test_history_has_every_epoch_once(self, parts: tuple[Path, Path]) -> None:
        resumed, whole = (pd.read_csv(part / "history.csv", index_col="epoch") for part in parts)
        assert resumed.index.tolist() == list(range(6))
        pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"), check_exact=True)
        assert (parts[0] / "training.csv").read_text() == (parts[1] / "training.csv").read_text()

    def test_nothing_half_written_is_left(self, parts: tuple[Path, Path]) -> None:
        assert [path.name for path in (parts[0] / "checkpoints").iterdir()] == ["last.ckpt"]


class Stop(Exception):
    pass


@contextmanager
def stopping_at(step: int) -> Iterator[list[int]]:
    """Let the objectives raise at a training step; gives how many are left until then."""
    left = [step]

    def counted(loss: Any) -> Any:
        def call(self: Any, network: Any, batch: Any) -> Any:
            left[0] -= is_step(network, batch)
            if left[0] == 0:
                raise Stop
            return loss(self, network, batch)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for objective in (Classification, MaskedExpression):
            patch.setattr(objective, "__call__", counted(objective.__call__))
        yield left


def train(make: Callable[[], SCGPT], adata: AnnData, **options: Any) -> SCGPT:
    """Train the network alone, unless a linear model is asked for, which is fitted anew each time."""
    options = {**RUN, **options}
    if options["labels_key"] is not None:
        options.setdefault("prior", "none")
    model = make()
    model.train(adata, **options)
    return model


def assert_same_run(model: SCGPT, expected: SCGPT) -> None:
    assert differences(model.network.state_dict(), expected.network.state_dict()) == []
    pd.testing.assert_frame_equal(
        model.history.drop(columns="seconds"), expected.history.drop(columns="seconds"), check_exact=True
    )
    assert model.result.best_epoch == expected.result.best_epoch
    # galore-torch's bases are views of larger tensors, which a checkpoint leaves behind.
    assert model.result.optimizer_bytes <= expected.result.optimizer_bytes


@pytest.fixture
def make(few: AnnData, make_model: Callable[..., SCGPT]) -> Callable[[], SCGPT]:
    return lambda: make_model(few.var_names)


def test_a_run_goes_on_with_the_kernels_it_was_begun_with(
    few: AnnData, make_model: Callable[..., SCGPT], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> SCGPT:
        return make_model(few.var_names, d_model=64, d_hid=64)  # wide enough for a choice

    with settings.override(cpu_kernels="torch", verbosity=3):
        whole = train(make, few, max_epochs=2)
        with stopping_at(7), pytest.raises(Stop):
            train(make, few, max_epochs=2, checkpoint_dir=tmp_path)
        settings.cpu_kernels = "onednn"
        resumed = train(make, few, max_epochs=2, checkpoint_dir=tmp_path, resume=True)
        assert settings.cpu_kernels == "onednn"
        assert "using cpu_kernels='torch', with which the run was started, instead of 'onednn'" in caplog.text
        other = train(make, few, max_epochs=2)
    assert_same_run(resumed, whole)
    assert resumed.result.summary()["cpu_kernels"] == "torch"
    assert differences(other.network.state_dict(), whole.network.state_dict())


def test_a_run_whose_length_was_open_keeps_its_length(
    few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FEWEST_EPOCHS", 1)
    monkeypatch.setattr(budget, "STEPS", 18)  # three epochs
    options: dict[str, Any] = {"max_epochs": None, "prior": "none"}
    whole = train(make, few, **options)
    with pytest.raises(Stop), stopping_at(9):
        train(make, few, **options, checkpoint_dir=tmp_path)
    monkeypatch.setattr(budget, "STEPS", 60)
    resumed = train(make, few, **options, checkpoint_dir=tmp_path, resume=True)
    assert len(resumed.history) == 3
    assert_same_run(resumed, whole)


@pytest.mark.parametrize(
    ("step", "options"),
    [
        pytest.param(2, {}, id="before_the_first_checkpoint"),
        pytest.param(9, {}, id="middle_of_the_second_epoch"),
        pytest.param(9, {"prior": "linear"}, id="corrects_a_linear_model"),
        pytest.param(13, {"validation_size": 0.0}, id="without_validation_cells"),
        pytest.param(12, {"accumulate": 3}, id="gradient_accumulation"),
        pytest.param(12, {"accumulate_tokens": 1500}, id="accumulation_by_tokens"),
        pytest.param(25, {"batch_tokens": 250, "batch_size": 99}, id="cap_on_tokens"),
        pytest.param(
            25,
            {"batch_tokens": 250, "batch_size": 99, "num_workers": 2},
            id="cap_on_tokens_and_workers",
            marks=pytest.mark.slow,
        ),
        pytest.param(9, {"precision": "bf16-mixed"}, id="mixed_precision", marks=pytest.mark.slow),
        pytest.param(9, {"labels_key": None, "max_length": 20}, id="masked_expression_of_sampled_cells"),
        pytest.param(
            9,
            {"weight_decay": 0.1, "clip_norm": 0.1, "warmup": 0.5},
            id="decay_clipping_long_warmup",
            marks=pytest.mark.slow,
        ),
        pytest.param(9, {"per_layer_update": True, "clip_norm": math.inf}, id="per_layer_update"),
        *(
            pytest.param(9, {option: name}, id=f"{option}_{name}", marks=() if name in OFTEN else pytest.mark.slow)
            for option, names in (("optimizer", [*OPTIMIZERS]), ("adapter", [*ADAPTERS]), ("embedding", [*EMBEDDINGS]))
            for name in names
        ),
    ],
)
def test_resumed_run_is_the_whole_run(
    few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, step: int, options: dict[str, Any]
) -> None:
    whole = train(make, few, **options)
    with stopping_at(step), pytest.raises(Stop):
        train(make, few, **options, checkpoint_dir=tmp_path / "run")
    resumed = train(make, few, **options, checkpoint_dir=tmp_path / "run", resume=True)
    assert_same_run(resumed, whole)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="galore"),
        pytest.param({"batch_size": 6, "accumulate": 3, "optimizer": "adamw"}, id="gradient_accumulation"),
        pytest.param({"accumulate_tokens": 900, "batch_size": 6, "labels_key": None}, id="accumulation_by_tokens"),
        pytest.param({"batch_tokens": 300, "batch_size": 99}, id="cap_on_tokens"),
        pytest.param({"num_workers": 2}, id="workers", marks=pytest.mark.slow),
        pytest.param({"labels_key": None, "max_length": 20}, id="masked_expression_of_sampled_cells"),
        pytest.param({"per_layer_update": True, "clip_norm": math.inf}, id="per_layer_update", marks=pytest.mark.slow),
        pytest.param({"curriculum": {60: 1, 160: 2}}, id="curriculum"),
        *(
            pytest.param({option: name}, id=f"{option}_{name}", marks=pytest.mark.slow)
            for option, names in (("optimizer", [*OPTIMIZERS]), ("adapter", [*ADAPTERS]), ("embedding", [*EMBEDDINGS]))
            for name in names
        ),
    ],
)
def test_a_run_goes_on_inside_an_epoch(
    few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, options: dict[str, Any]
) -> None:
    few.var["selected_rank"] = np.arange(few.n_vars, dtype=float)
    many = 1000
    with stopping_at(many) as left:
        whole = train(make, few, **options)
    n_batches, accumulated = many - left[0], whole.result.accumulate + ("accumulate_tokens" in options)
    killed = n_batches // 2 + 2
    with stopping_at(killed), pytest.raises(Stop):
        train(make, few, **options, checkpoint_dir=tmp_path / "run", checkpoint_every=1)
    with stopping_at(many) as left:
        resumed = train(make, few, **options, checkpoint_dir=tmp_path / "run", resume=True)
    assert_same_run(resumed, whole)
    # Nothing was done twice but, before the last step of an epoch, one step.
    assert 0 <= many - left[0] - (n_batches - killed + 1) <= accumulated


def test_a_checkpoint_inside_an_epoch_is_written_in_time(
    few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    save = WholeFiles.save_checkpoint

    def noted(self: Any, checkpoint: dict[str, Any], *rest: Any, **more: Any) -> None:
        written.append(checkpoint["global_step"])
        save(self, checkpoint, *rest, **more)

    monkeypatch.setattr(WholeFiles, "save_checkpoint", noted)
    runs = {"never": None, "steps": 4, "soon": "0.0001 s", "late": "2 h"}
    steps = {}
    for name, every in runs.items():
        train(make, few, max_epochs=2, checkpoint_dir=tmp_path / name, checkpoint_every=every)
        steps[name] = written[:]
        written.clear()
    assert steps["never"] == steps["late"] == [6, 12]
    assert steps["steps"] == [4, 6, 10, 12]
    assert steps["soon"] == [*range(1, 5), *range(6, 11), 12]


def test_checkpoints_need_a_folder(few: AnnData, make: Callable[[], SCGPT]) -> None:
    with pytest.raises(OptionError, match="checkpoint_every=5 requires checkpoint_dir="):
        train(make, few, checkpoint_every=5)
    for wrong in (0, "soon", "5", "0 min", 1.5):
        with pytest.raises(OptionError, match="expected a number of steps, or a time"):
            train(make, few, checkpoint_every=wrong)


class TestRunThatHasEnded:
    """The same command once more after the end changes nothing."""

    def test_after_the_last_epoch(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        first = train(make, few, checkpoint_dir=tmp_path)
        before = last_checkpoint(tmp_path).read_bytes()
        again = train(make, few, checkpoint_dir=tmp_path, resume=True)
        assert_same_run(again, first)
        assert last_checkpoint(tmp_path).read_bytes() == before

    def test_after_an_early_stop(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        options = {"lr": 0.5, "warmup": 0.0, "max_epochs": 30, "patience": 2, "optimizer": "adamw"}
        first = train(make, few, **options, checkpoint_dir=tmp_path)
        assert len(first.history) < 30
        assert first.result.best_epoch == len(first.history) - 3
        again = train(make, few, **options, checkpoint_dir=tmp_path, resume=True)
        assert_same_run(again, first)


STEADY: dict[str, Any] = {"lr_schedule": "constant", "warmup": 0.0}


class TestMoreEpochs:
    """A run that has ended goes on with a larger max_epochs, and nothing that is past changes."""

    @pytest.mark.parametrize(
        "options",
        [
            pytest.param({**STEADY, "optimizer": "galore"}, id="galore"),
            pytest.param({**STEADY, "optimizer": "adamw", "patience": 5}, id="adamw"),
            pytest.param({**STEADY, "adapter": "lora", "labels_key": None}, id="lora"),
        ],
    )
    def test_with_a_constant_rate_it_is_the_longer_run(
        self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, options: dict[str, Any]
    ) -> None:
        whole = train(make, few, **options, max_epochs=4)
        train(make, few, **options, max_epochs=1, checkpoint_dir=tmp_path)
        train(make, few, **options, max_epochs=3, checkpoint_dir=tmp_path, resume=True)
        longer = train(make, few, **options, max_epochs=4, checkpoint_dir=tmp_path, resume=True)
        assert_same_run(longer, whole)

    def test_it_says_so_and_the_rate_follows_the_longer_schedule(
        self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = train(make, few, checkpoint_dir=tmp_path)
        caplog.set_level("INFO", logger="scgalore")
        longer = train(make, few, max_epochs=5, checkpoint_dir=tmp_path, resume=True)
        assert re.search(
            r"extending the run from 3 to 5 epochs, 3 of which are in .*last\.ckpt: the learning rate follows",
            caplog.text,
        )
        assert longer.history.index.tolist() == [0, 1, 2, 3, 4]
        pd.testing.assert_frame_equal(longer.history.iloc[:3], first.history, check_exact=True)
        rates = train(make, few, max_epochs=5).history["lr"]
        assert longer.history["lr"].iloc[3:].tolist() == rates.iloc[3:].tolist()
        assert longer.history["lr"].iloc[3] > first.history["lr"].iloc[2]

    def test_it_goes_on_from_an_interruption_too(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        whole = train(make, few, **STEADY, max_epochs=4)
        with stopping_at(9), pytest.raises(Stop):
            train(make, few, **STEADY, max_epochs=3, checkpoint_dir=tmp_path)
        assert_same_run(train(make, few, **STEADY, max_epochs=4, checkpoint_dir=tmp_path, resume=True), whole)

    def test_fewer_epochs_are_refused(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        train(make, few, max_epochs=2, checkpoint_dir=tmp_path)
        before = last_checkpoint(tmp_path).read_bytes()
        with pytest.raises(OptionError, match="max_epochs was 2, now 1"):
            train(make, few, max_epochs=1, checkpoint_dir=tmp_path, resume=True)
        assert last_checkpoint(tmp_path).read_bytes() == before

    def test_what_else_changes_is_refused(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        train(make, few, max_epochs=1, checkpoint_dir=tmp_path)
        with pytest.raises(OptionError, match="another run: batch_size was 16, now 8; ") as refused:
            train(make, few, max_epochs=2, batch_size=8, lr=1.0, checkpoint_dir=tmp_path, resume=True)
        assert "max_epochs" not in str(refused.value)

    @pytest.mark.parametrize("patience", [4, None])
    def test_an_early_stop_holds_until_there_is_more_patience(
        self,
        few: AnnData,
        make: Callable[[], SCGPT],
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        patience: int | None,
    ) -> None:
        options = {"lr": 0.5, **STEADY, "optimizer": "adamw"}
        first = train(make, few, **options, max_epochs=30, patience=2, checkpoint_dir=tmp_path)
        assert len(first.history) < 20
        caplog.set_level("INFO", logger="scgalore")
        again = train(make, few, **options, max_epochs=40, patience=2, checkpoint_dir=tmp_path, resume=True)
        assert_same_run(again, first)
        assert "has stopped early: 2 epochs without a better" in caplog.text
        n = len(first.history) + 2
        more = train(make, few, **options, max_epochs=n, patience=2, checkpoint_dir=tmp_path / "n")
        assert_same_run(more, first)
        more = train(make, few, **options, max_epochs=n, patience=patience, checkpoint_dir=tmp_path / "n", resume=True)
        assert_same_run(more, train(make, few, **options, max_epochs=n, patience=patience))
        assert len(more.history) > len(first.history)

    def test_the_last_phase_of_a_curriculum_takes_them(
        self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        few.var["selected_rank"] = np.arange(few.n_vars, dtype=float)
        genes = [few.n_vars // 2, few.n_vars]
        train(make, few, **STEADY, max_epochs=2, curriculum=genes, checkpoint_dir=tmp_path)
        caplog.set_level("INFO", logger="scgalore")
        longer = train(make, few, **STEADY, max_epochs=6, curriculum=genes, checkpoint_dir=tmp_path, resume=True)
        assert "the last phase of the curriculum gets the additional epochs" in caplog.text
        assert longer.history["n_genes"].nunique() == 2
        assert longer.history["n_genes"].iloc[1:].nunique() == 1
        whole = train(make, few, **STEADY, max_epochs=6, curriculum={genes[0]: 1, genes[1]: 5})
        assert_same_run(longer, whole)


class TestCheckpoint:
    @pytest.fixture
    def folder(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> Path:
        train(make, few, max_epochs=1, checkpoint_dir=tmp_path / "run")
        return tmp_path / "run"

    def test_holds_tensors_and_numbers_only(self, folder: Path) -> None:
        content = torch.load(last_checkpoint(folder), weights_only=True)
        assert content["optimizer_states"][0]["state"]
        assert content["callbacks"]["BestWeights"]["weights"]

    def test_is_refused_without_resume(self, few: AnnData, make: Callable[[], SCGPT], folder: Path) -> None:
        with pytest.raises(OptionError, match=r"last\.ckpt exists\. Pass resume=True"):
            train(make, few, max_epochs=1, checkpoint_dir=folder)

    def test_is_refused_when_damaged(self, few: AnnData, make: Callable[[], SCGPT], folder: Path) -> None:
        path = last_checkpoint(folder)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(WeightsError, match=r"last\.ckpt is damaged"):
            train(make, few, max_epochs=1, checkpoint_dir=folder, resume=True)

    def test_is_refused_when_foreign(self, few: AnnData, make: Callable[[], SCGPT], folder: Path) -> None:
        torch.save({"state_dict": {}}, last_checkpoint(folder))
        with pytest.raises(WeightsError, match="is not a checkpoint of scgalore"):
            train(make, few, max_epochs=1, checkpoint_dir=folder, resume=True)

    def test_resume_with_nothing_there_starts_anew(
        self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path
    ) -> None:
        fresh = train(make, few, max_epochs=1, checkpoint_dir=tmp_path / "none" / "yet", resume=True)
        assert_same_run(fresh, train(make, few, max_epochs=1))

    def test_resume_needs_a_folder(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="resume=True requires checkpoint_dir"):
            train(make, few, resume=True)
        (tmp_path / "file").touch()
        with pytest.raises(OptionError, match="is a file"):
            train(make, few, checkpoint_dir=tmp_path / "file")

    @pytest.mark.parametrize(
        ("changed", "named"),
        [
            pytest.param({"lr": 1e-3}, "lr was 0.002, now 0.001", id="lr"),
            pytest.param({"optimizer": "adamw"}, "optimizer was", id="optimizer"),
            pytest.param({"optimizer_options": {"rank": 2}}, "optimizer_options was", id="optimizer_options"),
            pytest.param({"batch_size": 8}, "batch_size was", id="batch_size"),
            pytest.param({"patience": 3}, "patience was None, now 3", id="patience"),
            pytest.param({"lr_schedule": "constant"}, "lr_schedule was", id="lr_schedule"),
            pytest.param({"rng": 2}, "seed was", id="seed"),
            pytest.param({"validation_size": 0.3}, "other split", id="split"),
            pytest.param({"max_length": 32}, "max_length was", id="max_length"),
            pytest.param({"labels_key": None}, "objective was 'classification'", id="objective"),
            pytest.param({"labels_key": "phase"}, "other labels", id="labels"),
        ],
    )
    def test_of_other_settings_is_refused(
        self, few: AnnData, make: Callable[[], SCGPT], folder: Path, changed: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(OptionError, match=f"belongs to another run: .*{named}"):
            train(make, few, **{"max_epochs": 1, **changed}, checkpoint_dir=folder, resume=True)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            pytest.param(lambda adata: adata[:, :-1].copy(), "other expression; other genes", id="gene_less"),
            pytest.param(
                lambda adata: adata[:-1].copy(), "number of cells was 90, now 89; other expression", id="cell_less"
            ),
            pytest.param(lambda adata: adata[::-1].copy(), "other expression", id="other_order"),
        ],
    )
    def test_of_other_cells_is_refused(
        self,
        few: AnnData,
        make: Callable[[], SCGPT],
        folder: Path,
        change: Callable[[AnnData], AnnData],
        named: str,
    ) -> None:
        with pytest.raises(OptionError, match=named):
            train(make, change(few), max_epochs=1, checkpoint_dir=folder, resume=True)

    def test_of_other_values_is_refused(self, few: AnnData, make: Callable[[], SCGPT], folder: Path) -> None:
        few.X.data[0] *= 1.5  # the same genes are expressed in the same cells
        with pytest.raises(OptionError, match="another run: other expression"):
            train(make, few, max_epochs=1, checkpoint_dir=folder, resume=True)

    def test_of_other_weights_is_refused(self, few: AnnData, make_model: Callable[..., SCGPT], folder: Path) -> None:
        with pytest.raises(OptionError, match="another run: other initial weights"):
            train(lambda: make_model(few.var_names, rng=1), few, max_epochs=1, checkpoint_dir=folder, resume=True)

    def test_of_renamed_classes_is_refused(self, few: AnnData, make: Callable[[], SCGPT], folder: Path) -> None:
        names = few.obs["bulk_labels"].cat.categories
        few.obs["bulk_labels"] = few.obs["bulk_labels"].cat.rename_categories([f"{name} cell" for name in names])
        with pytest.raises(OptionError, match="another run: memory was"):
            train(make, few, max_epochs=1, checkpoint_dir=folder, resume=True)

    def test_of_another_objective_is_refused(self, few: AnnData, make: Callable[[], SCGPT], tmp_path: Path) -> None:
        model = make()
        cells = model.cells(few)
        split, config = random_split(few.n_obs, seed=0), TrainConfig(max_epochs=1)
        model.fit(prepared(cells, split, config), checkpoint_dir=tmp_path)
        other = prepared(cells, split, config, objective=MaskedExpression(mask_ratio=0.2))
        with pytest.raises(OptionError, match="another run: mask_ratio was"):
            make().fit(other, checkpoint_dir=tmp_path, resume=True)

    def test_of_another_container_is_accepted(self, few: AnnData, make: Callable[[], SCGPT], folder: Path) -> None:
        few.X = few.X.toarray().astype(np.float64)
        shuffled = few[:, np.random.default_rng(0).permutation(few.n_vars)].copy()
        train(make, shuffled, max_epochs=1, checkpoint_dir=folder, resume=True)


def test_ctrl_c_leaves_the_model_as_it_was_and_is_no_exit(
    few: AnnData, make: Callable[[], SCGPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    model = make()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    monkeypatch.setattr(Classification, "__call__", interrupt)
    found = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell ignores it in what runs in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            model.train(few, **RUN)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a second Ctrl-C still works
    finally:
        signal.signal(signal.SIGINT, found)
    assert differences(model.network.state_dict(), before) == []
