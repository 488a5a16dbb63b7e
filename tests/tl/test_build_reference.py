from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.mapping import Reference
from scgalore.model import SCGPT
from scgalore.tl import _build_reference

LABELS = ["bulk_labels", "phase"]


@pytest.fixture
def built(few: AnnData, model: SCGPT) -> Reference:
    return sg.tl.build_reference(few, model, labels=LABELS)


def same(one: Reference, other: Reference) -> None:
    np.testing.assert_allclose(one.lists.directions, other.lists.directions, atol=2e-3)
    np.testing.assert_array_equal(one.lists.cells, other.lists.cells)
    np.testing.assert_array_equal(one.cells.names, other.cells.names)
    for name in one.labels:
        assert one.cells.labels[name].classes == other.cells.labels[name].classes
        np.testing.assert_array_equal(one.cells.labels[name].codes, other.cells.labels[name].codes)


def test_what_it_holds(few: AnnData, model: SCGPT, built: Reference) -> None:
    assert (built.n_obs, built.labels) == (90, ("bulk_labels", "phase"))
    assert built.names(np.arange(90)).tolist() == few.obs_names.tolist()
    column = built.cells.labels["bulk_labels"]
    assert column.classes == tuple(few.obs["bulk_labels"].cat.categories)
    assert [column.classes[code] for code in column.codes] == few.obs["bulk_labels"].tolist()
    directions, norms = built.space(model.get_latent_representation(few))
    np.testing.assert_allclose(built.lists.directions, directions[built.lists.cells], atol=1e-3)
    np.testing.assert_allclose(built.lists.norms, norms[built.lists.cells], rtol=1e-4)
    assert built.model is model


def test_atlas_stays_as_it_was(few: AnnData, model: SCGPT) -> None:
    before = few.copy()
    sg.tl.build_reference(few, model, labels=LABELS)
    assert list(few.obsm) == list(before.obsm)
    assert list(few.uns) == list(before.uns)
    assert few.obs.equals(before.obs)


def test_files_objects_and_lists_of_them(
    few: AnnData, model: SCGPT, built: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few[:40].copy().write_h5ad(tmp_path / "a.h5ad")
    few[40:].copy().write_h5ad(tmp_path / "b.h5ad")
    few.write_h5ad(tmp_path / "all.h5ad")
    monkeypatch.setattr(_build_reference, "N_EMBEDDED", 17)
    for sources in (
        tmp_path / "all.h5ad",
        [str(tmp_path / "a.h5ad"), tmp_path / "b.h5ad"],
        [few[:40].copy(), ad.read_h5ad(tmp_path / "b.h5ad", backed="r")],
        MuData({"rna": few.copy()}),
    ):
        same(sg.tl.build_reference(sources, model, labels=LABELS), built)


def test_parts_may_have_other_genes_and_classes(few: AnnData, model: SCGPT) -> None:
    one, other = few[:40, :120].copy(), few[40:, 30:].copy()
    other.obs["bulk_labels"] = "another"
    found = sg.tl.build_reference([one, other], model, labels="bulk_labels")
    column = found.cells.labels["bulk_labels"]
    assert set(column.classes) == {"another", *one.obs["bulk_labels"]}
    assert [column.classes[code] for code in column.codes] == [*one.obs["bulk_labels"], *["another"] * 50]


def test_in_a_file_as_in_memory(few: AnnData, model: SCGPT, built: Reference, tmp_path: Path) -> None:
    stored = sg.tl.build_reference(few, model, labels=LABELS, path=tmp_path / "atlas.h5")
    same(stored, built)
    assert stored.path == tmp_path / "atlas.h5"
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.h5"]
    same(sg.mapping.read_reference(tmp_path / "atlas.h5"), built)


def test_extended(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5"
    first = sg.tl.build_reference(few[:60].copy(), model, labels=LABELS, path=path)
    model.save(tmp_path / "model")
    larger = sg.tl.build_reference(few[60:].copy(), tmp_path / "model", extend=path)
    assert (first.n_obs, larger.n_obs, larger.path) == (60, 90, path)
    assert larger.names(np.arange(90)).tolist() == few.obs_names.tolist()
    np.testing.assert_array_equal(larger.space.axes, first.space.axes)
    assert sg.mapping.read_reference(path).n_obs == 90
    in_memory = sg.tl.build_reference(few[:60].copy(), model, labels=LABELS)
    same(sg.tl.build_reference(few[60:].copy(), extend=in_memory), larger)
    assert in_memory.n_obs == 60


def test_cells_cannot_be_added_twice(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5"
    sg.tl.build_reference(few, model, labels=LABELS, path=path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="30 cells would be in the reference twice"):
        sg.tl.build_reference(few[60:].copy(), model, extend=path)
    assert path.read_bytes() == before
    with pytest.raises(DataError, match="90 cells would be in the reference twice"):
        sg.tl.build_reference([few, few], model, labels=LABELS)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (None, {"labels": ["no_such"]}, MissingKeyError, "no_such"),
        (None, {"labels": []}, OptionError, "labels="),
        (None, {}, OptionError, "labels="),
        (None, {"labels": ["phase", "phase"]}, OptionError, "Rename"),
        (None, {"labels": "phase", "batch_key": "no_such"}, MissingKeyError, "no_such"),
        (None, {"labels": "phase", "basis": "X_none"}, MissingKeyError, "X_none"),
        (None, {"labels": "phase", "n_neighbors": 0}, OptionError, "n_neighbors=0"),
        (None, {"labels": "phase", "n_components": 2.5}, OptionError, "n_components=2.5"),
        (None, {"labels": "phase", "path": "no/such/folder.h5"}, OptionError, "does not exist"),
        (None, {"labels": "phase", "species": "cat"}, OptionError, "species"),
        (lambda a: a.obs.__setitem__("phase", np.nan), {"labels": "phase"}, DataError, "90 of 90 cells have no label"),
        (lambda a: a.obs.__setitem__("phase", ["nan", *"x" * 89]), {"labels": "phase"}, DataError, "1 of 90 cells"),
        (lambda a: a.obs.__setitem__("one", "x"), {"labels": "phase", "batch_key": "one"}, DataError, "one batch"),
        (
            lambda a: setattr(a, "var_names", [f"?{i}" for i in range(150)]),
            {"labels": "phase"},
            DataError,
            "matches|gene",
        ),
    ],
)
def test_bad_input_comes_before_any_work(
    few: AnnData,
    model: SCGPT,
    monkeypatch: pytest.MonkeyPatch,
    in_empty_folder: Callable[[], None],
    change: Callable[[AnnData], None] | None,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    if change is not None:
        change(few)
    before = few.copy()
    monkeypatch.setattr(SCGPT, "run", lambda *_, **__: pytest.fail("cells were embedded"))
    with pytest.raises(error, match=words):
        sg.tl.build_reference(few, model, **{"path": "atlas.h5", **options})
    in_empty_folder()
    assert few.obs.equals(before.obs)
    assert list(few.uns) == list(before.uns)


def test_no_cells_and_no_model(few: AnnData, model: SCGPT) -> None:
    with pytest.raises(OptionError, match="No cells"):
        sg.tl.build_reference([], model, labels="phase")
    with pytest.raises(OptionError, match="model= is missing"):
        sg.tl.build_reference(few, labels="phase")
    with pytest.raises(DataError, match="file not found"):
        sg.tl.build_reference("none.h5ad", model, labels="phase")


def test_a_file_is_not_overwritten(few: AnnData, model: SCGPT, tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5"
    path.write_text("mine")
    with pytest.raises(OptionError, match="already exists"):
        sg.tl.build_reference(few, model, labels=LABELS, path=path)
    assert path.read_text() == "mine"


def test_another_model_or_other_keys_cannot_extend(
    few: AnnData, built: Reference, make_model: Callable[..., SCGPT]
) -> None:
    with pytest.raises(OptionError, match="cannot be compared"):
        sg.tl.build_reference(few, make_model(few.var_names, rng=1), extend=built)
    with pytest.raises(OptionError, match="labels="):
        sg.tl.build_reference(few, extend=built, labels="phase")
    with pytest.raises(OptionError, match="extend is a int"):
        sg.tl.build_reference(few, extend=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prior", "warns"), [("linear", True), ("none", False)])
def test_warns_of_a_network_that_corrects_a_linear_model(
    few: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture, prior: str, warns: bool
) -> None:
    # Without validation cells the network of the last epoch is kept.
    model.train(few, labels_key="bulk_labels", prior=prior, validation_size=0, max_epochs=1, batch_size=32)
    sg.tl.build_reference(few, model, labels="bulk_labels")
    assert ("correct a linear model" in caplog.text) == warns
