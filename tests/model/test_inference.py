from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

from scgalore import settings
from scgalore.data import stream
from scgalore.errors import OptionError
from scgalore.model import SCGPT, inference
from scgalore.model.inference import pick_dtype, run_network
from scgalore.nn import CellEncoder
from scgalore.nn.device import pick_device
from scgalore.tasks.classes import ClassesMemory

CPU = torch.device("cpu")


class TestPickDevice:
    def test_cpu_is_always_there(self) -> None:
        assert pick_device("cpu") == CPU

    def test_auto_takes_what_is_there(self) -> None:
        assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize("accelerator", ["cup", "tpu", "", "cuda:9"])
    def test_unknown_word_is_refused(self, accelerator: str) -> None:
        with pytest.raises(
            OptionError, match=f"accelerator='{accelerator}' is not available on this machine.*'auto', 'cpu'"
        ):
            pick_device(accelerator)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_missing_gpu_is_refused(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="accelerator='gpu' is not available on this machine"):
            model.train(few, labels_key="bulk_labels", accelerator="gpu")
        with settings.override(accelerator="gpu"), pytest.raises(OptionError, match="'gpu'"):
            model.get_latent_representation(few)


class TestRunNetwork:
    def test_rows_are_those_of_the_data(self, few: AnnData, model: SCGPT) -> None:
        cells = model.cells(few)
        output = run_network(model.network, cells, batch_size=7, encoder=CellEncoder, device=CPU, label="")
        for row in (0, 40, 89):
            ragged = cells.tokenizer.encode(cells.matrix.rows([row]), [row])
            batch = cells.tokenizer.pad(ragged)
            with torch.no_grad():
                cell = model.network.encode(batch.genes, batch.values).cell[0]
            np.testing.assert_allclose(output.embedding[row], (cell / cell.norm()).numpy(), atol=1e-6)

    def test_norm_is_one_and_type_float32(self, few: AnnData, model: SCGPT) -> None:
        output = run_network(model.network, model.cells(few), batch_size=32, encoder=CellEncoder, device=CPU, label="")
        assert output.embedding.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(output.embedding, axis=1), 1, atol=1e-6)
        assert output.heads == {}

    def test_probabilities_sum_to_one(self, few: AnnData, model: SCGPT) -> None:
        model.network.put_heads(model.network.fresh_heads({"classes": 4}))
        output = run_network(model.network, model.cells(few), batch_size=32, encoder=CellEncoder, device=CPU, label="")
        probabilities = ClassesMemory(("a", "b", "c", "d")).probabilities(output)
        assert probabilities.shape == (90, 4)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)

    def test_network_can_be_trained_afterwards(self, few: AnnData, model: SCGPT) -> None:
        model.network.train()
        run_network(model.network, model.cells(few), batch_size=32, encoder=CellEncoder, device=CPU, label="")
        assert not model.network.training
        assert not any(parameter.is_inference() for parameter in model.network.parameters())
        model.train(few, labels_key="bulk_labels", max_epochs=1)


class TestStreams:
    @pytest.fixture
    def files(self, few: AnnData, tmp_path: Path) -> list[Path]:
        """The cells in two files, the genes of the second in another order."""
        paths = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
        few[:50].copy().write_h5ad(paths[0])
        few[50:, ::-1].copy().write_h5ad(paths[1])
        return paths

    def test_many_files_are_embedded_as_one(self, few: AnnData, model: SCGPT, files: list[Path]) -> None:
        model.network.put_heads(model.network.fresh_heads({"classes": 4}))
        expected = model.run(model.cells(few))
        config = model.tokenizer_config()
        ours = model.run(stream(files, model.vocab, config=config, batch_size=8, buffer_size=32, shuffle=False))
        np.testing.assert_allclose(ours.embedding, expected.embedding, atol=1e-6)
        np.testing.assert_allclose(ours.heads["classes"], expected.heads["classes"], atol=1e-6)
        by_name = model.get_latent_representation(stream(files, model.vocab, config=config, shuffle=False))
        np.testing.assert_allclose(by_name, expected.embedding, atol=1e-6)

    def test_shuffled_cells_are_refused(self, model: SCGPT, files: list[Path]) -> None:
        with pytest.raises(OptionError, match="shuffle=False"):
            model.run(stream(files, model.vocab))


class TestPrecision:
    def test_bfloat16_is_close_and_says_so(self, few: AnnData, model: SCGPT) -> None:
        cells = model.cells(few)
        exact, rough = model.run(cells), model.run(cells, precision="bf16-true")
        assert (exact.precision, rough.precision) == ("32-true", "bf16-true")
        distances = 1 - (exact.embedding * rough.embedding).sum(axis=1)
        assert 0 < np.abs(distances).max() < 1e-2

    def test_the_setting_counts_where_nothing_is_said(self, few: AnnData, model: SCGPT) -> None:
        with settings.override(precision="bf16-true"):
            assert model.run(model.cells(few)).precision == "bf16-true"
            assert model.run(model.cells(few), precision="32-true").precision == "32-true"

    def test_a_cpu_computes_in_float32_unless_told_otherwise(self) -> None:
        assert pick_dtype("auto", CPU) == torch.float32

    @pytest.mark.parametrize(
        ("wanted", "gain", "dtype"),
        [(True, 2.0, torch.bfloat16), (True, 1.05, torch.float32), (False, 2.0, torch.float32)],
    )
    def test_a_cpu_takes_bfloat16_where_it_is_wanted_and_faster(
        self, monkeypatch: pytest.MonkeyPatch, wanted: bool, gain: float, dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(inference, "gain_of_bfloat16", lambda: gain)
        with settings.override(cpu_bfloat16=wanted):
            assert pick_dtype("auto", CPU) == dtype
            assert pick_dtype("32-true", CPU) == torch.float32

    @pytest.mark.parametrize(("gain", "warnings"), [(0.6, 1), (1.0, 0)])
    def test_bfloat16_that_is_slower_is_warned_of_once(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gain: float, warnings: int
    ) -> None:
        monkeypatch.setattr(inference, "gain_of_bfloat16", lambda: gain)
        inference._warn_of_bfloat16.cache_clear()
        with settings.override(verbosity=1):
            assert [pick_dtype("bf16-true", CPU) for _ in range(2)] == [torch.bfloat16] * 2
        found = [message for message in caplog.messages if "slower than float32" in message]
        assert len(found) == warnings
        assert all("0.60 times" in message for message in found)

    def test_results_say_whose_kernels_computed_them(self, few: AnnData, model: SCGPT) -> None:
        cells = model.cells(few)
        with settings.override(cpu_kernels="torch"):
            assert model.run(cells).arithmetic == {"precision": "32-true", "cpu_kernels": "torch"}
        with settings.override(cpu_kernels="onednn"):
            assert model.run(cells).arithmetic["cpu_kernels"].startswith("onednn: small product; ")

    def test_unknown_word_is_refused(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="precision='half'.*'auto', '32-true', 'bf16-true'"):
            model.run(model.cells(few), precision="half")


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize(("batch_size", "batch_tokens"), [(None, 1), (None, 500), (3, 10_000)])
def test_caps_change_nothing(few: AnnData, model: SCGPT, batch_size: int | None, batch_tokens: int) -> None:
    cells = model.cells(few)
    capped = model.run(cells, batch_size=batch_size, batch_tokens=batch_tokens)
    np.testing.assert_allclose(capped.embedding, model.run(cells).embedding, atol=1e-6)


def test_some_rows_are_those_among_all(few: AnnData, model: SCGPT) -> None:
    cells = model.cells(few)
    rows = np.array([70, 3, 4, 5, 89])
    some = run_network(model.network, cells, rows=rows, encoder=CellEncoder, device=CPU, label="")
    np.testing.assert_allclose(some.embedding, model.run(cells).embedding[rows], atol=1e-6)
    none = run_network(model.network, cells, rows=rows[:0], encoder=CellEncoder, device=CPU, label="")
    assert none.embedding.shape == (0, model.network.config.d_model)
