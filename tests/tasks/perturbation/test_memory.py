import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from safetensors.numpy import save
from tests.trained_screens import counts, log_normalised, screen_of, trained, without_validation

from scgalore.errors import WeightsError
from scgalore.model import SCGPT
from scgalore.perturb.baselines.effects import PRIORS, Fitted
from scgalore.tasks.perturbation.effects import predict_effects
from scgalore.tasks.perturbation.memory import PerturbationMemory

CONTEXTS = {"context_key": "cell_line"}


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return without_validation(log_normalised(counts(contexts=("K562/a", "B"))))


@pytest.fixture(scope="module")
def model(adata: AnnData) -> SCGPT:
    return trained(adata, read=CONTEXTS, fit={"hold_out": False})


@pytest.fixture
def folder(model: SCGPT, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def memory_of(model: SCGPT) -> PerturbationMemory:
    assert model.memory is not None
    return model.memory


def same_effects(one: Fitted, other: Fitted) -> bool:
    plain = [(part.perturbed, part.measured, part.own, part.several) for part in (one, other)]
    rules = [[(rule.names, rule.average) for rule in part.rules] for part in (one, other)]
    arrays = [
        [part.weights, part.control, *(x for rule in part.rules for x in (rule.intercept, rule.unknown, rule.rows))]
        for part in (one, other)
    ]
    assert plain[0] == plain[1]
    assert rules[0] == rules[1]
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(*arrays, strict=True))


class TestRoundTrip:
    @pytest.mark.parametrize("prior", ["chosen", *PRIORS, "none"])
    @pytest.mark.parametrize("contexts", [True, False])
    def test_memory_comes_back_to_the_bit(self, adata: AnnData, prior: str, contexts: bool, tmp_path: Path) -> None:
        one_line = adata[adata.obs["cell_line"] == "B"].copy()
        data, read = (adata, CONTEXTS) if contexts else (one_line, {})
        written = trained(data, read=read, fit={"prior": prior}, max_epochs=1)
        written.save(tmp_path / "model")
        ours, theirs = memory_of(written), memory_of(SCGPT.load(tmp_path / "model"))
        for name in ("genes", "perturbations", "params", "stats"):
            assert getattr(theirs, name) == getattr(ours, name)
        if ours.prior is None or theirs.prior is None:
            assert prior == "none"
            assert ours.prior is theirs.prior
            return
        assert theirs.prior.name == prior
        assert theirs.prior.genes == ours.prior.genes
        assert (theirs.choice is None) == (ours.choice is None) == (prior != "chosen")
        if ours.choice is not None and theirs.choice is not None:
            pd.testing.assert_frame_equal(theirs.choice, ours.choice, check_dtype=False)
        assert same_effects(theirs.prior.pooled, ours.prior.pooled)
        assert list(theirs.prior.by_context) == list(ours.prior.by_context) == (["B", "K562/a"] if contexts else [""])
        for context, part in ours.prior.by_context.items():
            assert same_effects(theirs.prior.by_context[context], part)

    def test_network_and_new_tokens_come_back(self, model: SCGPT, folder: Path) -> None:
        loaded = SCGPT.load(folder)
        assert loaded.vocab == model.vocab
        assert "X1" in loaded.vocab
        assert loaded.network.config == model.network.config
        own, theirs = model.network.state_dict(), loaded.network.state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in own)

    def test_second_saving_writes_the_same_files(self, folder: Path, tmp_path: Path) -> None:
        SCGPT.load(folder).save(tmp_path / "again")
        for name in ("screen.json", "screen.safetensors", "training_stats.json", "model.safetensors", "vocab.json"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()

    def test_other_models_have_no_such_files(self, make_model: Callable[..., SCGPT], tmp_path: Path) -> None:
        make_model(["A", "B"]).save(tmp_path / "model")
        assert not {"screen.json", "training_stats.json"} & {p.name for p in (tmp_path / "model").iterdir()}
        assert SCGPT.load(tmp_path / "model").memory is None


PREDICT = """
import sys
import anndata, numpy as np, torch
from scgalore.model import SCGPT
from scgalore.tasks.perturbation.effects import predict_effects
from scgalore.perturb.labels.screen import Screen

torch.set_num_threads(1)
adata = anndata.read_h5ad(sys.argv[2])
screen = Screen.from_adata(adata, pert_key="perturbation", context_key="cell_line")
wanted = [(context, genes) for context in (0, 1) for genes in (("G05",), ("G00", "G01"), ("X1", "X2"))]
effects = predict_effects(SCGPT.load(sys.argv[1]), screen, wanted, screen.profiles(), device=torch.device("cpu"))
np.save(sys.argv[3], effects)
"""


@pytest.mark.slow
def test_new_process_predicts_the_same_to_the_bit(adata: AnnData, model: SCGPT, folder: Path, tmp_path: Path) -> None:
    """On one thread: several add up in an order of their own."""
    adata.write_h5ad(tmp_path / "screen.h5ad")
    command = [sys.executable, "-c", PREDICT, str(folder), str(tmp_path / "screen.h5ad"), str(tmp_path / "effects.npy")]
    subprocess.run(command, check=True)
    screen = screen_of(adata, **CONTEXTS)
    names: list[tuple[str, ...]] = [("G05",), ("G00", "G01"), ("X1", "X2")]
    wanted = [(context, genes) for context in (0, 1) for genes in names]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = predict_effects(model, screen, wanted, screen.profiles(), device=torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(np.load(tmp_path / "effects.npy"), ours)


class TestStatistics:
    def test_file_says_what_the_training_took(self, model: SCGPT, folder: Path) -> None:
        stats = json.loads((folder / "training_stats.json").read_text())
        assert stats == memory_of(model).stats
        assert stats["wall_clock_seconds"] > 0
        n = stats["training_cells"]
        expected = {
            "stopped_because": "max_epochs reached",
            "epochs": 2,
            "best_epoch": 1,
            "cells_seen": 2 * n,
            "gradient_steps": 2 * -(-n // 32),
            "training_perturbations": 16,
            "validation_perturbations": 0,
        }
        assert stats.items() >= expected.items()
        assert n == 2 * 8 * 12

    def test_card_tells_the_same(self, model: SCGPT, folder: Path) -> None:
        card = (folder / "README.md").read_text(encoding="utf-8")
        for name, value in memory_of(model).stats.items():
            if not isinstance(value, dict):
                shown = f"{value:,}" if isinstance(value, int) else value
                assert f"| {name.replace('_', ' ')} | {shown} |" in card
        assert "There were no validation perturbations." in card


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without(path: Path, name: str) -> None:
    content = json.loads(path.read_text())
    del content[name]
    path.write_text(json.dumps(content))


def _changed(path: Path, name: str, value: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "text cut off": lambda folder: _cut(folder / "screen.json"),
    "no text": lambda folder: (folder / "screen.json").write_bytes(b""),
    "no UTF-8": lambda folder: (folder / "screen.json").write_bytes(b"\xff\xfe"),
    "another JSON": lambda folder: (folder / "screen.json").write_text("[]"),
    "without genes": lambda folder: _without(folder / "screen.json", "genes"),
    "without effects": lambda folder: _without(folder / "screen.json", "effects"),
    "effects of another form": lambda folder: _changed(folder / "screen.json", "effects", ["mixed"]),
    "fewer genes": lambda folder: _changed(folder / "screen.json", "genes", ["G00"]),
    "arrays cut off": lambda folder: _cut(folder / "screen.safetensors"),
    "arrays missing": lambda folder: (folder / "screen.safetensors").unlink(),
    "other arrays": lambda folder: (folder / "screen.safetensors").write_bytes(save({"0.rows": np.zeros((1, 1))})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_named(damage: str, folder: Path) -> None:
    DAMAGES[damage](folder)
    with pytest.raises(WeightsError, match=r"screen\.json.*screen\.safetensors.*Save the model again"):
        SCGPT.load(folder)
