import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData

from scgalore.data.split import Split, random_split
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError, OptionError, WeightsError
from scgalore.model import SCGPT
from scgalore.nn import SCGPTConfig
from scgalore.objectives import Classification, MaskedExpression
from scgalore.tasks.registry import resolve_call

LABELS: dict[str, Any] = {"labels_key": "bulk_labels", "max_epochs": 2, "batch_size": 32, "lr": 2e-3}
SAMPLED = 24  # tokens of a cell in these tests; the cells express more


def weights(model: SCGPT) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# A cell's result hangs on the cell ---------------------------------------------------------------------------------


@pytest.fixture
def classifier(few: AnnData, model: SCGPT) -> SCGPT:
    model.train(few, **LABELS)
    return model


def results(model: SCGPT, adata: AnnData, **options: Any) -> np.ndarray:
    """Embedding and probabilities of each cell, side by side."""
    output = model.run(model.cells(adata, layer=options.pop("layer", None), max_length=SAMPLED), **options)
    return np.hstack([output.embedding, output.heads["classes"]])


class TestInvariance:
    """Embeddings and predictions of sampled cells, to 1e-6."""

    @pytest.fixture
    def expected(self, few: AnnData, classifier: SCGPT) -> np.ndarray:
        assert (np.diff(few.X.indptr) > SAMPLED).mean() > 0.5
        return results(classifier, few)

    @pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
    def test_batch_size(self, few: AnnData, classifier: SCGPT, expected: np.ndarray, batch_size: int) -> None:
        np.testing.assert_allclose(results(classifier, few, batch_size=batch_size), expected, atol=1e-6)

    def test_row_order_and_company(self, few: AnnData, classifier: SCGPT, expected: np.ndarray) -> None:
        order = np.random.default_rng(0).permutation(few.n_obs)
        np.testing.assert_allclose(results(classifier, few[order].copy()), expected[order], atol=1e-6)
        np.testing.assert_allclose(results(classifier, few[3:5].copy()), expected[3:5], atol=1e-6)

    def test_column_order_and_unknown_genes(self, few: AnnData, classifier: SCGPT, expected: np.ndarray) -> None:
        columns = np.random.default_rng(0).permutation(few.n_vars)
        unknown = AnnData(sp.random(few.n_obs, 30, density=0.5, format="csr"), obs=few.obs[[]])
        unknown.var_names = [f"unheard-of-{i}" for i in range(30)]
        wider = anndata.concat([unknown, few[:, columns]], axis=1)
        np.testing.assert_allclose(results(classifier, wider), expected, atol=1e-6)

    @pytest.mark.parametrize(
        "convert",
        [
            pytest.param(sp.csc_matrix, id="csc"),
            pytest.param(sp.csr_array, id="csr_array"),
            pytest.param(lambda x: x.toarray(), id="dense"),
            pytest.param(lambda x: np.asfortranarray(x.toarray()), id="dense_by_columns"),
            pytest.param(lambda x: x.astype(np.float64), id="float64"),
            pytest.param(lambda x: x.toarray().astype(np.float64), id="dense_float64"),
        ],
    )
    def test_container(
        self, few: AnnData, classifier: SCGPT, expected: np.ndarray, convert: Callable[[Any], Any]
    ) -> None:
        few.X = convert(few.X)
        np.testing.assert_allclose(results(classifier, few), expected, atol=1e-6)

    @pytest.mark.parametrize(
        "convert", [sp.csr_matrix, sp.csc_matrix, lambda x: x.toarray()], ids=["csr", "csc", "dense"]
    )
    def test_backed_file(
        self,
        few: AnnData,
        classifier: SCGPT,
        expected: np.ndarray,
        convert: Callable[[Any], Any],
        tmp_path: Path,
    ) -> None:
        few.X = convert(few.X)
        few.write_h5ad(tmp_path / "few.h5ad")
        backed = anndata.read_h5ad(tmp_path / "few.h5ad", backed="r")
        np.testing.assert_allclose(results(classifier, backed, batch_size=7), expected, atol=1e-6)
        np.testing.assert_allclose(results(classifier, backed[10:30]), expected[10:30], atol=1e-6)

    def test_view_and_layer(self, few: AnnData, classifier: SCGPT, expected: np.ndarray) -> None:
        rows = np.arange(few.n_obs)[::-2]
        np.testing.assert_allclose(results(classifier, few[rows]), expected[rows], atol=1e-6)
        few.layers["logged"], few.X = few.X, np.ones(few.shape)
        np.testing.assert_allclose(results(classifier, few, layer="logged"), expected, atol=1e-6)

    @pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.float32, np.float64])
    def test_type_of_counts(self, few: AnnData, classifier: SCGPT, dtype: type) -> None:
        few.X.data = np.ceil(few.X.data).astype(np.int64)
        expected = results(classifier, few)
        few.X = few.X.astype(dtype)
        np.testing.assert_allclose(results(classifier, few), expected, atol=1e-6)

    @pytest.mark.slow
    def test_second_process(self, few: AnnData, classifier: SCGPT, expected: np.ndarray, tmp_path: Path) -> None:
        few.write_h5ad(tmp_path / "few.h5ad")
        classifier.save(tmp_path / "model")
        code = f"""
import anndata, numpy as np
from scgalore.model import SCGPT
model = SCGPT.load({str(tmp_path / "model")!r})
adata = anndata.read_h5ad({str(tmp_path / "few.h5ad")!r})
output = model.run(model.cells(adata, max_length={SAMPLED}))
np.save({str(tmp_path / "results.npy")!r}, np.hstack([output.embedding, output.heads["classes"]]))
"""
        environment = {**os.environ, "PYTHONHASHSEED": "77"}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
        np.testing.assert_allclose(np.load(tmp_path / "results.npy"), expected, atol=1e-6)

    def test_rng_chooses_the_sample_and_nothing_else(self, few: AnnData, model: SCGPT) -> None:
        def embed(rng: int, max_length: int) -> np.ndarray:
            return model.get_latent_representation(few, rng=rng, max_length=max_length)

        assert np.abs(embed(0, SAMPLED) - embed(1, SAMPLED)).max() > 1e-3
        np.testing.assert_array_equal(embed(0, 1200), embed(1, 1200))


# Training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels_key", ["bulk_labels", None])
class TestSeed:
    def train(self, few: AnnData, make: Callable[..., SCGPT], labels_key: str | None, rng: Any) -> SCGPT:
        model = make(few.var_names)
        model.train(few, **{**LABELS, "labels_key": labels_key}, rng=rng, max_length=SAMPLED)
        return model

    def test_same_seed_gives_the_same_weights(
        self, few: AnnData, make_model: Callable[..., SCGPT], labels_key: str | None
    ) -> None:
        torch.manual_seed(1)
        first = self.train(few, make_model, labels_key, 5)
        torch.manual_seed(2)
        second = self.train(few, make_model, labels_key, np.int64(5))
        assert same(weights(first), weights(second))
        pd.testing.assert_frame_equal(
            first.history.drop(columns="seconds"), second.history.drop(columns="seconds"), check_exact=True
        )

    def test_other_seed_gives_others(
        self, few: AnnData, make_model: Callable[..., SCGPT], labels_key: str | None
    ) -> None:
        first, second, third = (self.train(few, make_model, labels_key, rng) for rng in (5, 6, None))
        assert not same(weights(first), weights(second))
        assert not same(weights(first), weights(third))

    def test_generator_gives_another_run_each_time(
        self, few: AnnData, make_model: Callable[..., SCGPT], labels_key: str | None
    ) -> None:
        rng = np.random.default_rng(0)
        first = self.train(few, make_model, labels_key, rng)
        second = self.train(few, make_model, labels_key, rng)
        again = self.train(few, make_model, labels_key, np.random.default_rng(0))
        assert not same(weights(first), weights(second))
        assert same(weights(first), weights(again))


class TestTrain:
    def test_learns_what_can_be_learnt(self, few: AnnData, make_model: Callable[..., SCGPT]) -> None:
        model = make_model(few.var_names, dropout=0.0)
        options = {**LABELS, "max_epochs": 25, "batch_size": 16, "lr": 5e-3, "validation_size": 0.0, "prior": "none"}
        model.train(few, **options, optimizer="galore")
        first, last = model.history["train_loss"].iloc[[0, -1]]
        assert last < 0.5 * first
        predicted = model.predict(few).idxmax(axis=1)
        assert (predicted == few.obs["bulk_labels"].astype(str)).mean() > 0.8

    def test_classes_are_the_labels_by_name(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, **LABELS)
        assert model.classes == tuple(sorted(few.obs["bulk_labels"].unique()))
        assert model.predict(few).columns.tolist() == list(model.classes)
        assert model.predict(few).index.equals(few.obs_names)

    def test_other_labels_get_a_fresh_head_and_the_same_ones_keep_theirs(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, **LABELS, prior="none")
        head = model.network.cls_decoder
        model.train(few, **LABELS, prior="none")
        assert model.network.cls_decoder is head
        model.train(few, **{**LABELS, "labels_key": "phase"})
        assert model.network.cls_decoder is not head
        assert model.classes == ("G1", "G2M", "S")

    def test_masked_expression_keeps_the_classes(self, few: AnnData, model: SCGPT) -> None:
        model.train(few, **LABELS)
        before = weights(model)
        model.train(few, max_epochs=1)
        assert len(model.classes) == 3
        changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
        assert changed
        assert not any(name.startswith("cls_decoder.") for name in changed)

    def test_own_split_and_objective(self, few: AnnData, model: SCGPT) -> None:
        split = random_split(few.n_obs, validation_size=0.2, test_size=0.5, seed=9)
        task, call = resolve_call(LABELS, task=None, seed=0, function=model.train, split=split)
        prepared = task.prepare(task.read(few, call), model, call)
        model.fit(replace(prepared, objective=Classification(3, class_weights=(1.0, 2.0, 3.0))))
        assert model.split is split
        assert len(model.classes) == 3

    @pytest.mark.parametrize(
        "rows",
        [
            pytest.param(np.arange(89), id="cell_missing"),
            pytest.param(np.arange(91), id="cell_too_many"),
            pytest.param(np.append(np.arange(89), 0), id="cell_twice"),
        ],
    )
    def test_split_of_other_cells_is_refused(self, few: AnnData, model: SCGPT, rows: np.ndarray) -> None:
        with pytest.raises(DataError, match=r"each cell must be in exactly one part"):
            model.train(few, **LABELS, split=Split(rows[:50], rows[50:60], rows[60:]))

    def test_failing_training_leaves_the_model_as_it_was(
        self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model.train(few, **LABELS)
        before, history, classes, split = weights(model), model.history, model.classes, model.split
        result, calls = model.result, []
        loss = Classification.__call__

        def failing(self: Classification, network: Any, batch: Any) -> Any:
            calls.append(1)
            return loss(self, network, batch) if len(calls) < 5 else 1 / 0

        monkeypatch.setattr(Classification, "__call__", failing)
        state = torch.random.get_rng_state()
        with pytest.raises(ZeroDivisionError):
            model.train(few, **{**LABELS, "labels_key": "phase"})
        assert same(weights(model), before)
        assert model.history is history
        assert (model.classes, model.split) == (classes, split)
        assert model.result is result
        assert model.network.config.heads == {"classes": 3}
        assert not model.network.training
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_data_is_left_as_it_was(self, few: AnnData, model: SCGPT) -> None:
        before = few.copy()
        model.train(few, **LABELS)
        model.predict(few)
        assert (few.X != before.X).nnz == 0
        pd.testing.assert_frame_equal(few.obs, before.obs)
        assert set(few.uns) == set(before.uns)
        assert set(few.obsm) == set(before.obsm)

    def test_vocabulary_is_all_that_limits_the_genes(self, few: AnnData, make_model: Callable[..., SCGPT]) -> None:
        wide = make_model([*few.var_names[::-1], "NOTHERE1", "NOTHERE2"])
        wide.train(few, **LABELS)
        narrow = make_model(few.var_names[:40])
        narrow.train(few, max_epochs=1)
        assert narrow.get_latent_representation(few).shape == (90, 16)


# Making a model ----------------------------------------------------------------------------------------------------


class TestMaking:
    def test_seed_of_the_weights(self, make_model: Callable[..., SCGPT]) -> None:
        state = torch.random.get_rng_state()
        first, again, other = (make_model(["CD3E", "CD8A"], rng=rng) for rng in (0, 0, 1))
        assert same(weights(first), weights(again))
        assert not same(weights(first), weights(other))
        assert torch.equal(torch.random.get_rng_state(), state)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            pytest.param({"n_tokens": 4, "pad_id": 2}, "vocabulary has 5 tokens but the network has 4", id="short"),
            pytest.param({"n_tokens": 5, "pad_id": 0}, "<pad> is token 2", id="pad_elsewhere"),
            pytest.param(
                {"n_tokens": 5, "pad_id": 2, "heads": {"classes": 3}},
                "heads are added by training",
                id="unnamed_classes",
            ),
        ],
    )
    def test_parts_must_fit(self, fields: dict[str, Any], message: str) -> None:
        vocab = GeneVocab.from_genes(["CD3E", "CD8A"])
        with pytest.raises(WeightsError, match=message):
            SCGPT.from_config(SCGPTConfig(d_model=8, n_heads=2, d_hid=8, n_layers=1, **fields), vocab)

    def test_repr_says_what_it_is(self, few: AnnData, model: SCGPT) -> None:
        assert repr(model) == "SCGPT random: 16 dimensions, 153 tokens, 0.0 M parameters"
        model.train(few, **{**LABELS, "max_epochs": 1})
        assert repr(model).endswith("parameters, trained for classes")

    def test_fresh_model_has_no_history(self, model: SCGPT) -> None:
        assert model.history.empty
        assert not model.is_trained
        assert model.split is None

    def test_classes_must_be_learnt_first(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="'random' was not trained to predict labels or values.*labels_key="):
            model.predict(few)

    @pytest.mark.parametrize("batch_size", [0, -3])
    def test_batch_size_is_positive(self, few: AnnData, model: SCGPT, batch_size: int) -> None:
        with pytest.raises(OptionError, match=f"batch_size={batch_size}: it must be at least 1"):
            model.get_latent_representation(few, batch_size=batch_size)

    def test_token_conventions_are_those_of_the_weights(self, few: AnnData, make_model: Callable[..., SCGPT]) -> None:
        model = make_model(few.var_names, n_bins=11, max_length=33, mask_value=-9.0, pad_value=-7.0)
        cells = model.cells(few)
        assert (cells.tokenizer.config.n_bins, cells.tokenizer.config.max_length) == (11, 33)
        batch = cells.tokenizer.pad(cells.tokenizer.encode(cells.matrix.rows([0, 1]), [0, 1]))
        assert batch.values[:, 0].tolist() == [-7, -7]
        assert batch.values[:, 1:][~batch.padding[:, 1:]].max() <= 10
        assert cells.lengths.max() == 33


def test_masked_expression_uses_the_mask_value_of_the_weights(
    few: AnnData, make_model: Callable[..., SCGPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    corrupt = MaskedExpression.corrupt

    def watched(self: MaskedExpression, *args: Any, **options: Any) -> Any:
        seen.append(self.mask_value)
        return corrupt(self, *args, **options)

    monkeypatch.setattr(MaskedExpression, "corrupt", watched)
    make_model(few.var_names, mask_value=-9.0).train(few, max_epochs=1)
    assert set(seen) == {-9.0}


def test_unsorted_ids_of_a_vocabulary(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    expected = model.get_latent_representation(few)
    model.export_scgpt(tmp_path / "model")
    path = tmp_path / "model" / "vocab.json"
    items = list(json.loads(path.read_text()).items())
    np.random.default_rng(0).shuffle(items)
    path.write_text(json.dumps({token: int(i) for token, i in items}))
    loaded = SCGPT.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.get_latent_representation(few), expected)
