import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anndata import AnnData
from tests.bitwise import differences
from tests.launching import torchrun
from tests.tiny_plugin import tiny_model
from torch._subclasses.fake_tensor import FakeTensor

from scgalore.data import TokenStream, stream
from scgalore.data.split import Split
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT
from scgalore.objectives import MaskedExpression
from scgalore.tasks.registry import resolve_call
from scgalore.train import TrainConfig, fit


@pytest.fixture
def files(few: AnnData, tmp_path: Path) -> list[Path]:
    """60 cells in two files; the genes of the second are others and in another order."""
    paths = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    few[:35, :140].copy().write_h5ad(paths[0])
    few[35:60, 20:][:, ::-1].copy().write_h5ad(paths[1])
    return paths


@pytest.fixture
def streamed(files: list[Path], model: SCGPT) -> Callable[..., TokenStream]:
    """Make a stream of the files for the model."""

    def make(**options: Any) -> TokenStream:
        sizes = {"batch_size": 8, "block_size": 5, "buffer_size": 32}
        return stream(files, model.vocab, config=model.tokenizer_config(), **{**sizes, **options})

    return make


def weights(model: SCGPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def test_masked_expression_is_learnt_from_many_files(model: SCGPT, streamed: Callable[..., TokenStream]) -> None:
    model.train(streamed(), max_epochs=6, lr=3e-3, optimizer="adamw", rng=0)
    losses = model.history["train_loss"]
    assert len(losses) == 6
    assert losses.iloc[-1] < losses.iloc[0]
    assert model.is_trained
    assert model.split is None


def test_a_line_an_epoch_tells_how_fast_a_stream_is_trained_on(
    model: SCGPT, streamed: Callable[..., TokenStream], caplog: pytest.LogCaptureFixture
) -> None:
    batches = streamed()
    with caplog.at_level(logging.INFO, logger="scgalore"):
        model.train(batches, max_epochs=2, rng=0)
    history = model.history
    seconds = batches.n_obs / history["cells_per_second"]
    assert (seconds < history["seconds"]).all()
    mean_length = history["tokens_per_second"] / history["cells_per_second"]
    assert mean_length.between(1, model.network.config.max_length).all()
    assert history["waited"].between(0, 1).all()
    lines = [record.getMessage() for record in caplog.records if "cells/s" in record.getMessage()]
    assert [line.split(":")[0].strip() for line in lines] == ["epoch 0 (1 of 2), step 8", "epoch 1 (2 of 2), step 16"]
    assert lines[-1].endswith("0 s left")


def test_cells_in_memory_need_no_such_line(model: SCGPT, few: AnnData) -> None:
    model.train(few, max_epochs=1)
    assert "cells_per_second" not in model.history


def test_classes_are_learnt_and_validated(few: AnnData, model: SCGPT, streamed: Callable[..., TokenStream]) -> None:
    held = few[60:].copy()
    batches = streamed(labels_key="bulk_labels")
    model.train(batches, validation=held, labels_key="bulk_labels", max_epochs=3, patience=2, rng=0)
    assert model.classes == batches.classes == tuple(few.obs["bulk_labels"].cat.categories)
    assert model.history["validation_accuracy"].between(0, 1).all()
    assert model.predict(held).shape == (30, 3)


def fit_watched(
    model: SCGPT, batches: TokenStream, validation: TokenStream, objective: "Watched", **options: Any
) -> None:
    task, call = resolve_call(options, task="expression", seed=0, function=model.train, validation=validation)
    model.fit(replace(task.prepare(task.read(batches, call), model, call), objective=objective))


class TestValidationOnAStream:
    @pytest.fixture
    def held(self, few: AnnData, model: SCGPT) -> Callable[..., TokenStream]:
        def make(**options: Any) -> TokenStream:
            cells = few[60:].copy()
            config = model.tokenizer_config()
            return stream(cells, model.vocab, config=config, **{"batch_size": 4, "buffer_size": 8, **options})

        return make

    def test_is_the_same_every_epoch(
        self, model: SCGPT, streamed: Callable[..., TokenStream], held: Callable[..., TokenStream]
    ) -> None:
        watched = Watched(MaskedExpression())
        fit_watched(model, streamed(), held(), watched, max_epochs=3, patience=3)
        validated = [cells for training, cells in watched.seen if not training]
        assert len(validated) == 3 * 8
        assert validated[:8] == validated[8:16] == validated[16:]
        assert sorted(cell for cells in validated[:8] for cell in cells) == list(range(30))

    def test_its_loss_is_that_of_the_same_cells_in_memory(
        self,
        few: AnnData,
        make_model: Callable[..., SCGPT],
        streamed: Callable[..., TokenStream],
        held: Callable[..., TokenStream],
    ) -> None:
        histories = []
        labels: dict[str, Any] = {"labels_key": "bulk_labels"}
        same = {**labels, "classes": tuple(few.obs["bulk_labels"].cat.categories)}
        for validation in (held(**same), held(**same, shuffle=False), few[60:].copy()):
            one = make_model(few.var_names)
            one.train(streamed(**labels), validation=validation, **labels, max_epochs=2, rng=0)
            histories.append(one.history)
        for other in histories[1:]:
            np.testing.assert_array_equal(other["train_loss"], histories[0]["train_loss"])
            np.testing.assert_allclose(other["validation_loss"], histories[0]["validation_loss"], rtol=1e-5)

    def test_may_be_the_stream_that_is_trained_on(
        self, model: SCGPT, streamed: Callable[..., TokenStream], held: Callable[..., TokenStream]
    ) -> None:
        batches, watched = streamed(), Watched(MaskedExpression())
        fit_watched(model, batches, batches, watched, max_epochs=2)
        trained = [cells for training, cells in watched.seen if training]
        validated = [cells for training, cells in watched.seen if not training]
        assert validated[:8] == validated[8:] == trained[:8] != trained[8:]

    def test_validates_cells_of_an_anndata(self, few: AnnData, model: SCGPT, held: Callable[..., TokenStream]) -> None:
        cells = model.cells(few[:60].copy())
        split = Split(np.arange(60), np.empty(0, np.int64), np.empty(0, np.int64))
        result = fit(model.network, cells, split, MaskedExpression(), TrainConfig(max_epochs=2), validation=held())
        assert np.isfinite(result.history["validation_loss"]).all()
        assert result.split is split

    def test_classes_must_be_the_same(
        self, model: SCGPT, streamed: Callable[..., TokenStream], held: Callable[..., TokenStream]
    ) -> None:
        batches = streamed(labels_key="bulk_labels")
        for other in (held(), held(labels_key="bulk_labels", classes=batches.classes[::-1])):
            with pytest.raises(OptionError, match="the classes= of the training stream"):
                model.train(batches, validation=other)
        same = held(labels_key="bulk_labels", classes=batches.classes)
        model.train(batches, validation=same, max_epochs=1)
        assert model.history["validation_accuracy"].between(0, 1).all()

    def test_another_one_is_another_run(
        self,
        few: AnnData,
        make_model: Callable[..., SCGPT],
        streamed: Callable[..., TokenStream],
        held: Callable[..., TokenStream],
        tmp_path: Path,
    ) -> None:
        run: dict[str, Any] = {"max_epochs": 1, "rng": 0, "checkpoint_dir": tmp_path / "run"}
        make_model(few.var_names).train(streamed(), validation=held(), **run)
        with pytest.raises(OptionError, match="validation: batch_size was 4, now 2"):
            make_model(few.var_names).train(streamed(), validation=held(batch_size=2), **run, resume=True)


class Watched:
    """An objective that remembers the cells of every batch, validation or not."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.seen: list[tuple[bool, list[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def __call__(self, network: Any, batch: Any) -> Any:
        if not isinstance(batch.values, FakeTensor):  # of the estimate of the memory
            self.seen.append((network.training, batch.cells.tolist()))
        return self.objective(network, batch)


def test_the_same_seeds_give_the_same_weights(
    few: AnnData, make_model: Callable[..., SCGPT], streamed: Callable[..., TokenStream]
) -> None:
    trained = []
    for order in (0, 0, 1):
        model = make_model(few.var_names)
        model.train(streamed(rng=order), max_epochs=2, rng=0)
        trained.append(weights(model))
    assert not differences(trained[0], trained[1])
    assert differences(trained[0], trained[2])


def test_an_interrupted_run_goes_on_bit_for_bit(
    few: AnnData, make_model: Callable[..., SCGPT], streamed: Callable[..., TokenStream], tmp_path: Path
) -> None:
    whole = make_model(few.var_names)
    whole.train(streamed(), max_epochs=4, rng=0)

    class Stopped(Exception):
        pass

    class Interrupted(TokenStream):
        def batches(self, epoch, start=0):
            if epoch == 2:
                raise Stopped
            yield from super().batches(epoch, start)

    Interrupted.__name__ = TokenStream.__name__  # the same run, but for where it ends
    batches = streamed()
    batches.__class__ = Interrupted
    part = make_model(few.var_names)
    with pytest.raises(Stopped):
        part.train(batches, max_epochs=4, rng=0, checkpoint_dir=tmp_path / "run")
    part = make_model(few.var_names)
    part.train(streamed(), max_epochs=4, rng=0, checkpoint_dir=tmp_path / "run", resume=True)
    assert not differences(weights(whole), weights(part))
    other = make_model(few.var_names)
    with pytest.raises(OptionError, match="another run"):
        other.train(streamed(batch_size=4), max_epochs=4, rng=0, checkpoint_dir=tmp_path / "run", resume=True)


def test_workers_change_nothing_that_an_epoch_reads(
    few: AnnData, make_model: Callable[..., SCGPT], streamed: Callable[..., TokenStream]
) -> None:
    losses = []
    for num_workers in (0, 2):
        model = make_model(few.var_names)
        for part in model.network.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        # With steps too small to matter, the mean loss of an epoch says which cells were seen, and with which masks.
        model.train(streamed(), max_epochs=2, lr=1e-12, num_workers=num_workers, rng=0)
        losses.append(model.history["train_loss"].to_numpy())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][0] != losses[0][1]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"batch_size": 4}, OptionError, "batch_size= cannot be used with a stream"),
        ({"curriculum": [20]}, OptionError, "needs cells in one AnnData"),
        (
            {"split": Split(*[np.arange(3)] * 3)},
            OptionError,
            "A stream trains on all of its cells. Omit the split",
        ),
        ({"batch_tokens": 400}, OptionError, "batch_tokens=400: a stream makes its own batches"),
        ({"max_length": 9}, OptionError, "max_length=9: a stream"),
        ({"labels_key": "bulk_labels"}, OptionError, "the stream reads no labels"),
        ({"patience": 2}, OptionError, "patience requires validation cells"),
        ({"values_key": "score"}, OptionError, "task='regression' cannot train on a stream"),
        ({"pert_key": "perturbation"}, OptionError, "needs a single AnnData"),
    ],
)
def test_what_a_stream_decides_is_refused(
    model: SCGPT,
    streamed: Callable[..., TokenStream],
    options: dict[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    before = weights(model)
    with pytest.raises(error, match=says):
        model.train(streamed(), max_epochs=1, **options)
    assert not differences(before, weights(model))


def test_labels_to_validate_on_must_be_the_streams(
    few: AnnData, model: SCGPT, streamed: Callable[..., TokenStream]
) -> None:
    held = few[60:].copy()
    batches = streamed(labels_key="bulk_labels")
    with pytest.raises(MissingKeyError, match=r"No column 'bulk_labels' in validation\.obs"):
        model.train(batches, validation=AnnData(held.X, var=held.var))
    with pytest.raises(MissingKeyError, match=r"No column 'cell_type' in validation\.obs"):
        model.train(batches, validation=held, labels_key="cell_type")
    held.obs["bulk_labels"] = "something else"
    with pytest.raises(DataError, match="something else"):
        model.train(batches, validation=held, labels_key="bulk_labels")
    with pytest.raises(OptionError, match="validation= is for streams"):
        model.train(few, validation=held, labels_key="bulk_labels")


@pytest.mark.slow
def test_two_processes_read_their_own_cells_and_learn_the_same(few: AnnData, files: list[Path]) -> None:
    folder = files[0].parent
    (folder / "genes.txt").write_text(" ".join(few.var_names))
    done = torchrun("tests.model.stream_process", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert not differences(first["weights"], second["weights"])
    assert first["losses"] == second["losses"]
    assert first["n_cells"] == second["n_cells"] == 30
    alone = tiny_model(few.var_names)
    alone.network.load_state_dict(first["weights"])
    expected = alone.run(stream(files, alone.vocab, config=alone.tokenizer_config(), shuffle=False)).embedding
    for part in (first, second):
        np.testing.assert_allclose(part["embedding"].numpy(), expected, atol=1e-6)


class TestEpochsOfSomeSteps:
    def train(self, model: SCGPT, batches: TokenStream, held: AnnData, epochs: int, **options: Any) -> SCGPT:
        constant: dict[str, Any] = {"lr_schedule": "constant", "warmup": 0.0, "steps_per_epoch": 3}
        model.train(batches, validation=held, max_epochs=epochs, rng=0, **constant, **options)
        return model

    def test_together_they_are_passes_over_all_cells(
        self, few: AnnData, model: SCGPT, streamed: Callable[..., TokenStream]
    ) -> None:
        watched = Watched(MaskedExpression())
        fit_watched(model, streamed(), streamed(), watched, max_epochs=5, steps_per_epoch=3)
        trained = [cells for training, cells in watched.seen if training]
        first, second = trained[:8], trained[8:]
        assert len(second) == 7
        assert sorted(cell for cells in first for cell in cells) == list(range(60))
        assert len({cell for cells in second for cell in cells}) == sum(map(len, second))
        assert model.result is not None
        assert (len(model.history), model.result.steps) == (5, 15)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_run_that_ended_inside_a_pass_goes_on_there(
        self,
        few: AnnData,
        make_model: Callable[..., SCGPT],
        streamed: Callable[..., TokenStream],
        tmp_path: Path,
        workers: int,
    ) -> None:
        held = few[60:].copy()
        options: dict[str, Any] = {"num_workers": workers}
        whole = self.train(make_model(few.var_names), streamed(buffer_size=16), held, 5, **options)
        begun: dict[str, Any] = {**options, "checkpoint_dir": tmp_path}
        self.train(make_model(few.var_names), streamed(buffer_size=16), held, 2, **begun)
        again = self.train(make_model(few.var_names), streamed(buffer_size=16), held, 5, **begun, resume=True)
        assert differences(weights(again), weights(whole)) == []
        assert again.history["validation_loss"].tolist() == whole.history["validation_loss"].tolist()

    def test_cells_in_memory_have_none(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="steps_per_epoch=3: an epoch of an AnnData is a pass"):
            model.train(few, max_epochs=1, steps_per_epoch=3)
