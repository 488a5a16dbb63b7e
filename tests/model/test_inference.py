import numpy as np
import pytest
import torch
from anndata import AnnData

from scgalore import settings
from scgalore.errors import OptionError
from scgalore.model import SCGPT
from scgalore.model.inference import pick_device, run_network

CPU = torch.device("cpu")


class TestPickDevice:
    def test_cpu_is_always_there(self) -> None:
        assert pick_device("cpu") == CPU

    def test_auto_takes_what_is_there(self) -> None:
        assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")

    @pytest.mark.parametrize("accelerator", ["cup", "tpu", "", "cuda:9"])
    def test_unknown_word_is_refused(self, accelerator: str) -> None:
        with pytest.raises(OptionError, match=f"accelerator='{accelerator}' is not on this machine.*'auto', 'cpu'"):
            pick_device(accelerator)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_missing_gpu_is_refused(self, few: AnnData, model: SCGPT) -> None:
        with pytest.raises(OptionError, match="accelerator='gpu' is not on this machine"):
            model.train(few, labels_key="bulk_labels", accelerator="gpu")
        with settings.override(accelerator="gpu"), pytest.raises(OptionError, match="'gpu'"):
            model.get_latent_representation(few)


class TestRunNetwork:
    def test_rows_are_those_of_the_data(self, few: AnnData, model: SCGPT) -> None:
        cells = model.cells(few)
        output = run_network(model.network, cells, batch_size=7, device=CPU, label="")
        for row in (0, 40, 89):
            ragged = cells.tokenizer.encode(cells.matrix.rows([row]), [row])
            batch = cells.tokenizer.pad(ragged)
            with torch.no_grad():
                cell = model.network.encode(batch.genes, batch.values).cell[0]
            np.testing.assert_allclose(output.embedding[row], (cell / cell.norm()).numpy(), atol=1e-6)

    def test_norm_is_one_and_type_float32(self, few: AnnData, model: SCGPT) -> None:
        output = run_network(model.network, model.cells(few), batch_size=32, device=CPU, label="")
        assert output.embedding.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(output.embedding, axis=1), 1, atol=1e-6)
        assert output.probabilities is None

    def test_probabilities_sum_to_one(self, few: AnnData, model: SCGPT) -> None:
        model.network.set_classes(4)
        output = run_network(model.network, model.cells(few), batch_size=32, device=CPU, label="")
        assert output.probabilities is not None
        assert output.probabilities.shape == (90, 4)
        np.testing.assert_allclose(output.probabilities.sum(axis=1), 1, atol=1e-6)

    def test_network_can_be_trained_afterwards(self, few: AnnData, model: SCGPT) -> None:
        model.network.train()
        run_network(model.network, model.cells(few), batch_size=32, device=CPU, label="")
        assert not model.network.training
        assert not any(parameter.is_inference() for parameter in model.network.parameters())
        model.train(few, labels_key="bulk_labels", max_epochs=1)
