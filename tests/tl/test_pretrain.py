import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import chisquare
from tests.bitwise import differences
from tests.scberts import SIZES as SCBERT_SIZES

import scgalore as sg
from scgalore.errors import DataError, OptionError
from scgalore.model import SCBERT, SCGPT
from scgalore.nn import SCBERTConfig
from scgalore.tl._pretrain import PretrainingRun
from scgalore.train.callbacks import History

RUN: dict[str, Any] = {"max_steps": 6, "steps_per_epoch": 2, "batch_size": 8, "block_size": 4, "buffer_size": 16}
SIZES = {"d_model": 16, "n_heads": 2, "d_hid": 32, "n_layers": 2, "max_length": 40}


READ = {name: RUN[name] for name in ("batch_size", "block_size", "buffer_size")}


def run_of(sources: Any, model: SCGPT, **options: Any) -> PretrainingRun:
    options = {"validation": None, "max_length": None, "rng": 0, "steps_per_epoch": 2, **READ, **options}
    return PretrainingRun.of(sources, model, **options)


@pytest.fixture
def files(few: AnnData, tmp_path: Path) -> list[Path]:
    """90 cells in two files; the genes of the second are others and in another order."""
    folder = tmp_path / "cells"
    folder.mkdir()
    paths = [folder / "first.h5ad", folder / "second.h5ad"]
    few[:50, :140].copy().write_h5ad(paths[0])
    few[50:, 20:][:, ::-1].copy().write_h5ad(paths[1])
    return paths


def weights(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


class TestModel:
    def test_one_that_is_passed_is_trained_in_place(self, model: SCGPT, files: list[Path]) -> None:
        before = weights(model)
        trained = sg.tl.pretrain(files, model, **RUN)
        assert trained is model
        assert differences(before, weights(model))
        assert (len(model.history), model.result.steps) == (3, 6)

    def test_sizes_make_one_with_the_genes_of_the_files(self, few: AnnData, files: list[Path]) -> None:
        trained = sg.tl.pretrain(files[0].parent, sg.model.scgpt_config(**SIZES), **RUN)
        assert trained.network.config.d_model == 16
        known = set(sg.genes.standardise(few.var_names))
        genes = set(trained.vocab.tokens) - {"<pad>", "<cls>", "<eoc>"}
        assert genes <= known
        assert len(genes) > 0.9 * len(known)
        assert sg.tl.embed(few, trained, copy=True).obsm["X_scGPT"].shape == (90, 16)

    @pytest.mark.parametrize("attention", ["favor", "exact"])
    def test_sizes_are_those_of_any_family(self, few: AnnData, files: list[Path], attention: Any) -> None:
        sizes = SCBERTConfig(n_tokens=1, pad_id=0, **SCBERT_SIZES, attention=attention)
        trained = sg.tl.pretrain(files[0].parent, sizes, **RUN)
        assert isinstance(trained, SCBERT)
        assert set(trained.vocab.tokens[-2:]) == {"<cls>", "<pad>"}
        assert trained.history["validation_loss"].notna().all()
        assert sg.tl.embed(few, trained, copy=True).obsm["X_scBERT"].shape == (90, 32)

    def test_it_is_saved(self, model: SCGPT, files: list[Path], tmp_path: Path) -> None:
        trained = sg.tl.pretrain(files, model, **RUN, save_dir=tmp_path / "model")
        assert differences(weights(sg.model.load(tmp_path / "model")), weights(trained)) == []

    def test_objective_is_chosen(self, model: SCGPT, files: list[Path]) -> None:
        trained = sg.tl.pretrain(files, model, objective="generative", mask_ratio=[0.25, 0.5], **RUN)
        assert trained.network.generates

    def test_genes_are_generated_again_from_the_cell_embedding(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path]
    ) -> None:
        run = {**RUN, "objective": "generative", "dropout": 0.0}
        once, twice = (
            sg.tl.pretrain(files, make_model(few.var_names), **run, from_cell_prompt=prompt) for prompt in (None, True)
        )
        assert "train_mse_from_prompt" not in once.history
        sg.tl.pretrain(files, make_model(few.var_names), **RUN, objective="masked", from_cell_prompt=False)
        parts = twice.history.filter(regex="^train_mse")
        assert "train_mse_from_prompt" in parts
        assert twice.history["train_loss"].to_numpy() == pytest.approx(parts.sum(axis=1).to_numpy(), rel=1e-5)
        assert differences(weights(once), weights(twice))


def test_what_files_are_like_is_said_once_where_they_make_the_vocabulary(
    few: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few.var_names = [few.var_names[1] + "-1", *few.var_names[1:]]
    few.write_h5ad(tmp_path / "cells.h5ad")
    with caplog.at_level(logging.INFO, logger="scgalore"):
        run = run_of(tmp_path, sg.model.scgpt_config(**SIZES))  # type: ignore[arg-type]
    assert run.training.n_matched > 100
    assert caplog.text.count("1 genes are numbered duplicates") == 1


class TestBudget:
    @pytest.mark.parametrize(
        ("budget", "steps"),
        [({"max_steps": 5}, 6), ({"max_cells": 33}, 6), ({"max_steps": 1}, 1), ({"max_cells": 64, "accumulate": 2}, 4)],
    )
    def test_steps_are_enough_for_it(self, model: SCGPT, files: list[Path], budget: dict[str, Any], steps: int) -> None:
        run = {**RUN, "max_steps": None, **budget}
        trained = sg.tl.pretrain(files, model, **{name: value for name, value in run.items() if value is not None})
        assert trained.result.steps == steps

    def test_cells_are_as_many_where_tokens_make_a_step(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path], caplog: pytest.LogCaptureFixture
    ) -> None:
        run = {name: value for name, value in RUN.items() if name != "max_steps"}
        with caplog.at_level(logging.INFO, logger="scgalore"):
            trained = sg.tl.pretrain(
                files, make_model(few.var_names), **run, max_cells=240, accumulate_tokens=1100, dropout=0.0
            )
        assert "so a step of 1,100 tokens has about" in caplog.text
        batches = trained.result.accumulate
        assert batches > 1
        # 30 batches of 8 cells, in epochs of two steps and some more.
        assert abs(trained.result.steps - 30 / batches) <= len(trained.history) + 1

    def test_hours_are_turned_into_steps_on_a_copy(
        self, model: SCGPT, files: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = weights(model)
        timed: list[float] = []
        measure = PretrainingRun.seconds_per_step

        def seconds(self: PretrainingRun) -> float:
            timed.append(measure(self))
            assert differences(before, weights(self.model)) == []
            return 0.5

        monkeypatch.setattr(PretrainingRun, "seconds_per_step", seconds)
        options = {name: value for name, value in RUN.items() if name != "max_steps"}
        with caplog.at_level(logging.INFO, logger="scgalore"):
            trained = sg.tl.pretrain(files, model, max_hours=2 / 3600, **options)
        assert trained.result.steps == 4
        assert len(timed) == 1
        assert timed[0] > 0
        assert "0.50 s per step on this machine: 4 steps in 2 s" in caplog.text

    def test_a_run_has_one(self, model: SCGPT, files: list[Path]) -> None:
        with pytest.raises(OptionError, match="max_steps=6 and max_cells=9: a run has exactly one budget"):
            sg.tl.pretrain(files, model, **RUN, max_cells=9)
        assert not model.is_trained


class TestValidation:
    def test_some_cells_are_held_out_and_never_trained_on(self, model: SCGPT, files: list[Path]) -> None:
        run = run_of(files, model, validation_cells=5)
        assert run.held is not None
        held, seen = ({int(cell) for batch in part for cell in batch.cells} for part in (run.held, run.training))
        assert len(held) == run.held.n_obs == 5
        assert not held & seen
        assert len(held | seen) == 90

    def test_or_cells_of_their_own(self, model: SCGPT, files: list[Path]) -> None:
        sg.tl.pretrain(files[0], model, validation=files[1], **RUN)
        assert model.history["validation_loss"].notna().all()

    def test_or_none(self, model: SCGPT, files: list[Path]) -> None:
        sg.tl.pretrain(files, model, validation_cells=0, **RUN)
        assert "validation_loss" not in model.history


class Killed(Exception):
    pass


@contextmanager
def interrupted_after(epoch: int) -> Iterator[None]:
    """End a run when it has noted an epoch, before it writes the checkpoint of it."""
    written = History.on_train_epoch_end

    def killed(self: Any, trainer: Any, pl_module: Any) -> None:
        written(self, trainer, pl_module)
        if trainer.current_epoch == epoch:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(History, "on_train_epoch_end", killed)
        yield


class TestResume:
    def test_inside_a_pass_to_the_same_bits(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path], tmp_path: Path
    ) -> None:
        options = {**RUN, "max_steps": 16}
        whole = sg.tl.pretrain(files, make_model(few.var_names), **options)

        with interrupted_after(2), pytest.raises(Killed):
            sg.tl.pretrain(files, make_model(few.var_names), **options, checkpoint_dir=tmp_path / "run")
        again = sg.tl.pretrain(
            files, make_model(few.var_names), **options, checkpoint_dir=tmp_path / "run", resume=True
        )
        assert differences(weights(again), weights(whole)) == []
        losses = ["train_loss", "validation_loss"]
        assert again.history[losses].to_numpy().tolist() == whole.history[losses].to_numpy().tolist()

    def test_after_steps_of_as_many_tokens(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path], tmp_path: Path
    ) -> None:
        options = {**RUN, "max_steps": 8, "accumulate_tokens": 1100}
        whole = sg.tl.pretrain(files, make_model(few.var_names), **options)
        with interrupted_after(2), pytest.raises(Killed):
            sg.tl.pretrain(files, make_model(few.var_names), **options, checkpoint_dir=tmp_path / "run")
        again = sg.tl.pretrain(
            files, make_model(few.var_names), **options, checkpoint_dir=tmp_path / "run", resume=True
        )
        assert differences(weights(again), weights(whole)) == []
        assert again.result.steps == whole.result.steps

    @pytest.mark.parametrize("interrupted", [False, True])
    def test_another_budget_is_another_run(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path], tmp_path: Path, *, interrupted: bool
    ) -> None:
        run = {**RUN, "checkpoint_dir": tmp_path / "run"}
        with interrupted_after(1) if interrupted else nullcontext(), suppress(Killed):
            sg.tl.pretrain(files, make_model(few.var_names), **run)
        others: list[tuple[dict[str, Any], str]] = [
            ({"max_steps": 8}, "max_steps was 6, now 8"),
            ({"max_steps": 4}, "max_steps was 6, now 4"),
            ({"max_steps": None, "max_cells": 48}, "max_cells was None, now 48; max_steps was 6, now None"),
            ({"max_steps": None, "max_hours": 1.0}, "max_hours was None, now 1.0; max_steps was 6, now None"),
            ({"steps_per_epoch": 3}, "steps_per_epoch asked for was 2, now 3"),
            ({"keep_best": 2}, "keep_best was None, now 2"),
        ]
        for options, match in others:
            model = make_model(few.var_names)
            with pytest.raises(OptionError, match=rf"belongs to another run: {match}\. To start a new run"):
                sg.tl.pretrain(files, model, **{**run, **options}, resume=True)
            assert not model.is_trained
        assert sg.tl.pretrain(files, make_model(few.var_names), **run, resume=True).result.steps == 6

    def test_files_that_have_changed_are_named(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path], tmp_path: Path
    ) -> None:
        run = {**RUN, "checkpoint_dir": tmp_path / "run"}
        sg.tl.pretrain(files, make_model(few.var_names), **run)
        third = tmp_path / "cells" / "third.h5ad"
        few[10:30].copy().write_h5ad(third)
        with pytest.raises(OptionError, match=r"another run: \S*third\.h5ad is new; number of cells was"):
            sg.tl.pretrain([*files, third], make_model(few.var_names), **run, resume=True)
        with pytest.raises(OptionError, match=r"another run: \S*second\.h5ad is missing; .* To start a new run"):
            sg.tl.pretrain(files[:1], make_model(few.var_names), **run, resume=True)
        with pytest.raises(OptionError, match="another run: its files or their order have changed"):
            sg.tl.pretrain(files[::-1], make_model(few.var_names), **run, resume=True)
        few[10:80, :140].copy().write_h5ad(files[0])
        with pytest.raises(OptionError, match=r"another run: \S*first\.h5ad has changed; "):
            sg.tl.pretrain(files, make_model(few.var_names), **run, resume=True)

    def test_files_that_were_moved_are_the_same(
        self, few: AnnData, make_model: Callable[..., SCGPT], files: list[Path], tmp_path: Path
    ) -> None:
        run = {**RUN, "checkpoint_dir": tmp_path / "run"}
        sg.tl.pretrain(files, make_model(few.var_names), **run)
        moved = [path.rename(path.with_name(f"moved_{path.name}")) for path in files]
        assert len(sg.tl.pretrain(moved, make_model(few.var_names), **run, resume=True).history) == 3


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shares": {"blood": 0.5}}, "needs sources with names"),
        ({"shares": {"blood": -1}}, "shares="),
        ({"weights": {"T": 2}}, "Pass it as weights_key="),
        ({"weights_key": "bulk_labels", "weights": {"T": -1}}, "weights="),
        ({"weights_key": "bulk_labels", "weights": {"Tea cell": 2}}, r"weights has 'Tea cell', which no cell has"),
        ({"validation_cells": 0, "keep_best": 2, "checkpoint_dir": "none"}, "validation_cells for pre-training"),
        ({"species": "rat"}, "species="),
        ({"from_cell_prompt": True}, "from_cell_prompt=True is for objective='generative'"),
        ({"objective": "next token"}, "objective="),
        ({"lr": -1}, "lr="),
        ({"curriculum": True}, "curriculum"),
        ({"steps_per_epoch": 0}, "steps_per_epoch="),
        ({"max_epochs": 3}, "max_epochs"),
        ({"accumulate_tokens": 50}, "accumulate_tokens=50: "),
        ({"accumulate_tokens": 5000, "accumulate": 2}, "accumulate=2 and accumulate_tokens=5000: "),
        ({"accumulate_tokens": 0}, "accumulate_tokens=0"),
        ({"labels": "x"}, "Unknown training option 'labels'"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(
    model: SCGPT, files: list[Path], options: dict[str, Any], match: str
) -> None:
    with pytest.raises(OptionError, match=match):
        sg.tl.pretrain(files, model, **{**RUN, **options})
    assert not model.is_trained


def test_a_folder_without_files_is_refused(model: SCGPT, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.h5ad file"):
        sg.tl.pretrain(tmp_path, model, **RUN)
    with pytest.raises(DataError, match="does not exist"):
        sg.tl.pretrain(tmp_path / "nowhere", model, **RUN)


def test_same_seed_same_weights(few: AnnData, make_model: Callable[..., SCGPT], files: list[Path]) -> None:
    found = [weights(sg.tl.pretrain(files, make_model(few.var_names), **RUN, rng=rng)) for rng in (0, 0, 1)]
    assert differences(found[0], found[1]) == []
    assert differences(found[0], found[2])
    assert all(np.isfinite(tensor.numpy()).all() for tensor in found[0].values())


def test_a_query_may_be_one_of_each_source(model: SCGPT, few: AnnData, files: list[Path]) -> None:
    named = {"a": [files[0]], "b": [files[1]]}
    labels = few.obs["bulk_labels"].astype(str)
    where = {"a": f"bulk_labels == {labels.iloc[0]!r}", "b": f"bulk_labels != {labels.iloc[0]!r}"}
    run = run_of(named, model, validation_cells=0, where=where)
    kept = (labels[:50] == labels.iloc[0]).sum() + (labels[50:] != labels.iloc[0]).sum()
    assert run.training.n_obs == kept


def test_values_are_drawn_as_often_as_their_weights_say(model: SCGPT, few: AnnData, files: list[Path]) -> None:
    labels = few.obs["bulk_labels"].astype(str)
    first, second, *others = labels.unique()
    run = run_of(files, model, weights_key="bulk_labels", weights={first: 3, second: 0}, validation_cells=5)
    cells = np.concatenate([batch.cells.numpy() for epoch in range(8) for batch in run.training.batches(epoch)])
    counts = labels.iloc[cells].value_counts()
    assert second not in counts
    target = pd.Series({first: 3.0, **dict.fromkeys(others, 1.0)})
    assert chisquare(counts[target.index], target / target.sum() * len(cells)).pvalue > 1e-3
    assert chisquare(counts[target.index], np.full(len(target), len(cells) / len(target))).pvalue < 1e-6


def test_files_that_are_trained_on_do_not_choose_the_weights(model: SCGPT, files: list[Path]) -> None:
    with pytest.raises(OptionError, match="which is also in the training data"):
        sg.tl.pretrain(files, model, validation=files[0], **RUN)
    assert not model.is_trained
