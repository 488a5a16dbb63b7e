"""Folders that version 0.5.0 wrote are read, and give the numbers that it gave."""

from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from tests.trained_screens import counts

import scgalore as sg

FOLDER = Path(__file__).parent / "data" / "v0.5.0"


@pytest.fixture(scope="module")
def expected() -> dict[str, NDArray[np.float32]]:
    with np.load(FOLDER / "expected.npz") as arrays:
        return dict(arrays)


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_classes(few: AnnData, expected: dict[str, NDArray[np.float32]]) -> None:
    model = sg.model.load(FOLDER / "classes")
    assert type(model) is sg.model.SCGPT
    assert model.classes == tuple(few.obs["bulk_labels"].cat.categories)
    assert (model.memory.task, len(model.history) > 0) == ("classes", True)
    assert_close(model.get_latent_representation(few), expected["embedding"])
    assert_close(model.predict(few).to_numpy(), expected["probabilities"])


@pytest.mark.parametrize("name", ["screen", "screen_with_prior"])
def test_screen(name: str, expected: dict[str, NDArray[np.float32]]) -> None:
    model = sg.model.load(FOLDER / name)
    assert model.memory.task == "perturbation"
    assert (model.memory.prior is None) == (name == "screen")
    adata = counts()
    sg.tl.predict_perturbation(adata, ["G05", "G01+G04", "X2"], model=model)
    effects = adata.uns["predict_perturbation"]["effects"]
    assert_close(effects.to_numpy(), expected[name])


@pytest.mark.parametrize("name", ["classes", "screen_with_prior"])
def test_saved_again_it_is_the_same_model(name: str, tmp_path: Path) -> None:
    before = sg.model.load(FOLDER / name)
    before.save(tmp_path / "again")
    after = sg.model.load(tmp_path / "again")
    assert after.memory.task == before.memory.task
    assert after.classes == before.classes
    tensors, same = after.network.state_dict(), before.network.state_dict()
    assert tensors.keys() == same.keys()
    assert all(tensors[key].equal(same[key]) for key in same)
