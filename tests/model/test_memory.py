import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anndata import AnnData

from scgalore.errors import OptionError
from scgalore.model import SCGPT, savings
from scgalore.model.memory import estimate_memory
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import MaskedExpression
from scgalore.train import MemoryEstimate, TrainConfig, estimate_training

WHOLE = SCGPTConfig(n_tokens=60697, pad_id=60694)
FEW_LAYERS = WHOLE.replace(n_layers=2)


def on_gpu(model: Any = FEW_LAYERS, **options: Any) -> MemoryEstimate:
    return estimate_memory(model, **{"genes_per_cell": 1200, "batch_size": 4, "accelerator": "cuda", **options})


class TestModels:
    def test_a_registered_name_is_known_without_its_files(self) -> None:
        assert on_gpu("scgpt") == on_gpu(WHOLE.replace(generative=True))
        # Its files hold no head that predicts expression from the cell embedding.
        assert on_gpu("scgpt-continual") == on_gpu(WHOLE.replace(mvc=False))

    def test_a_model_a_folder_and_a_config_are_the_same(self, model: SCGPT, tmp_path: Path) -> None:
        model.save(tmp_path / "saved")
        assert on_gpu(model, genes_per_cell=50) == on_gpu(model.network.config, genes_per_cell=50)
        assert on_gpu(tmp_path / "saved", genes_per_cell=50) == on_gpu(model, genes_per_cell=50)

    def test_the_bundled_weights_are_read(self) -> None:
        config = SCGPT.from_pretrained("scgpt-mini").network.config
        assert on_gpu("scgpt-mini", genes_per_cell=500) == on_gpu(config, genes_per_cell=500)

    def test_sizes_that_nobody_has_published_are_asked_for(self) -> None:
        with pytest.raises(OptionError, match="'scgpt-brain' are unknown before its files are downloaded. "):
            on_gpu("scgpt-brain")

    def test_what_is_neither_is_refused(self) -> None:
        with pytest.raises(OptionError, match="neither an existing folder nor the name"):
            on_gpu("no-such-model")


class TestOptions:
    def test_names_of_the_call_become_those_of_a_run(self) -> None:
        config = TrainConfig(gradient_checkpointing=True, precision="bf16-mixed", optimizer="adamw", accelerator="cuda")
        with torch.device("meta"):
            network = SCGPTNetwork(FEW_LAYERS)
        said = estimate_training(network, MaskedExpression(), config, n_cells=4, n_tokens=1201, n_rows=1202)
        assert on_gpu(gradient_checkpointing=True, precision="bf16-mixed", optimizer="adamw") == said

    def test_a_cap_on_length_or_on_tokens_counts(self) -> None:
        assert on_gpu(max_length=601).activations == on_gpu(genes_per_cell=600).activations
        assert on_gpu(batch_tokens=2500).activations == on_gpu(batch_size=2).activations
        assert on_gpu(batch_tokens=10).activations == on_gpu(batch_size=1).activations

    def test_genes_of_the_data_are_the_rows_that_are_trained(self) -> None:
        more = on_gpu(n_vars=3000)
        assert more.parameters - on_gpu().parameters == 4 * 512 * 1800
        assert on_gpu(embedding="full").parameters > more.parameters

    def test_the_task_is_that_of_the_call(self) -> None:
        expression, classes, perturbation = on_gpu(), on_gpu(n_classes=7), on_gpu(task="perturbation")
        assert classes.activations < expression.activations < perturbation.activations
        assert on_gpu(task="classes") != expression

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"genes_per_cell": 0}, "genes_per_cell=0: it must be a whole number, at least 1"),
            ({"genes_per_cell": 1.5}, "genes_per_cell=1.5"),
            ({"n_vars": -1}, "n_vars=-1"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"batch_size": "auto"}, "batch_size='auto'"),
            ({"n_classes": 0, "task": "classes"}, "n_classes=0: it must be a whole number, at least 1"),
            ({"task": "sorting"}, "task='sorting': choose one of 'classes', 'regression', 'expression'"),
            ({"task": "perturbation", "n_classes": 3}, "n_classes=3 is for task='classes'"),
            ({"optimizer": "galor"}, "Did you mean 'galore'"),
            ({"precision": "fp16"}, "precision='fp16'"),
            ({"gradient_checkpoint": True}, "Unknown training option 'gradient_checkpoint'"),
        ],
    )
    def test_what_cannot_be_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(OptionError, match=message):
            on_gpu(**options)


def test_a_run_takes_the_state_that_was_estimated(model: SCGPT, few: AnnData) -> None:
    cells = model.cells(few)
    said = estimate_memory(model, genes_per_cell=int(cells.lengths.max()) - 1, n_vars=few.n_vars, n_classes=3)
    model.train(few, labels_key="bulk_labels", max_epochs=1)
    assert said.optimizer_state == model.result.optimizer_bytes


class TestSavings:
    def test_each_setting_takes_no_more_than_the_one_before(self) -> None:
        table = savings(FEW_LAYERS, genes_per_cell=3000, batch_size=8, accelerator="cuda")
        assert (table["peak"].diff().dropna() <= 0).all()
        assert table.drop(columns="peak").sum(axis=1).equals(table["peak"])
        assert table.index[-1] == "1,500 genes per cell"

    def test_the_ends_are_what_the_settings_say(self) -> None:
        table = savings(FEW_LAYERS, genes_per_cell=2000, batch_size=2, fewer_genes=700, accelerator="cuda", n_vars=5000)
        start = on_gpu(genes_per_cell=2000, batch_size=2, n_vars=5000, optimizer="adamw", embedding="full")
        end = on_gpu(
            genes_per_cell=700,
            batch_size=2,
            n_vars=5000,
            precision="bf16-mixed",
            gradient_checkpointing=True,
            per_layer_update=True,
            clip_norm=math.inf,
        )
        assert table["peak"].iloc[0] == start.peak
        assert table["peak"].iloc[-1] == end.peak

    def test_kept_maps_grow_with_the_square_of_the_length(self) -> None:
        def of_maps(genes_per_cell: int) -> float:
            table = savings(FEW_LAYERS, genes_per_cell=genes_per_cell, batch_size=1, naive=True, accelerator="cuda")
            assert "formula" in table.index[0]
            return float(table["activations"].iloc[0] - table["activations"].iloc[1])

        assert of_maps(4000) == 2 * 4 * 8 * 4001**2
        assert isinstance(savings(FEW_LAYERS, genes_per_cell=100, accelerator="cuda"), pd.DataFrame)
