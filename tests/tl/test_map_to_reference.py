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

MAPPED = "scgpt_mapped"
KEYS = {
    "obs": {f"{MAPPED}_{end}" for end in ("bulk_labels", "bulk_labels_score", "phase", "phase_score", "novelty")},
    "obsm": {"X_scGPT"}
    | {
        f"{MAPPED}_{end}"
        for end in ("neighbors", "distances", "umap", "bulk_labels_probabilities", "phase_probabilities")
    },
    "uns": {"map_to_reference", f"{MAPPED}_bulk_labels_colors"},
}


@pytest.fixture
def atlas(few: AnnData) -> AnnData:
    few.obsm["X_umap"] = np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    return few[:70].copy()


@pytest.fixture
def query(few: AnnData) -> AnnData:
    new = few[60:, ::-1].copy()
    del new.obsm, new.uns
    return new


@pytest.fixture
def index(atlas: AnnData, model: SCGPT) -> Reference:
    return sg.tl.build_reference(atlas, model, labels=["bulk_labels", "phase"], basis="X_umap", n_neighbors=7)


def test_keys(query: AnnData, index: Reference, tmp_path: Path) -> None:
    before = {slot: set(getattr(query, slot)) for slot in ("obs", "var", "obsm", "uns")}
    assert sg.tl.map_to_reference(query, index) is None
    added = {slot: set(getattr(query, slot)) - names for slot, names in before.items()}
    assert {slot: names for slot, names in added.items() if names} == KEYS
    found = query.uns["map_to_reference"]
    assert (found["reference"]["n_obs"], found["reference"]["n_neighbors"], found["genes"]["matched"]) == (70, 7, 150)
    query.write_h5ad(tmp_path / "query.h5ad")
    again = ad.read_h5ad(tmp_path / "query.h5ad")
    assert again.uns["map_to_reference"]["labels"]["phase"]["n_left_out"] == 70
    assert again.obs[f"{MAPPED}_phase"].tolist() == query.obs[f"{MAPPED}_phase"].tolist()


def test_cells_of_the_reference_find_themselves(query: AnnData, index: Reference) -> None:
    sg.tl.map_to_reference(query, index)
    neighbors, distances = query.obsm[f"{MAPPED}_neighbors"], query.obsm[f"{MAPPED}_distances"]
    assert neighbors[:10, 0].tolist() == list(range(60, 70))
    assert index.names(neighbors[:10, 0]).tolist() == query.obs_names[:10].tolist()
    np.testing.assert_allclose(distances[:10, 0], 0, atol=2e-3)
    assert (np.diff(distances, axis=1) >= -1e-3).all()


def test_neighbours_are_those_of_all_products(query: AnnData, index: Reference, model: SCGPT, atlas: AnnData) -> None:
    sg.tl.map_to_reference(query, index)
    reference, new = (index.space(model.get_latent_representation(cells))[0] for cells in (atlas, query))
    distances = np.linalg.norm(new[:, None] - reference[None], axis=2)
    np.testing.assert_allclose(query.obsm[f"{MAPPED}_distances"], np.sort(distances, axis=1)[:, :7], atol=2e-3)


def test_labels_are_the_votes(query: AnnData, index: Reference) -> None:
    sg.tl.map_to_reference(query, index, label_far=True)
    column = index.cells.labels["bulk_labels"]
    distances = query.obsm[f"{MAPPED}_distances"]
    weights = np.exp(-2 * (distances / distances[:, -1:]) ** 2)
    codes = column.codes[query.obsm[f"{MAPPED}_neighbors"]]
    votes = np.stack([(weights * (codes == code)).sum(axis=1) for code in range(len(column.classes))], axis=1)
    labels = query.obs[f"{MAPPED}_bulk_labels"]
    assert labels.tolist() == [column.classes[code] for code in votes.argmax(axis=1)]
    probabilities = query.obsm[f"{MAPPED}_bulk_labels_probabilities"]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.max(axis=1), query.obs[f"{MAPPED}_bulk_labels_score"])
    coordinates = index.cells.coordinates
    assert coordinates is not None
    share = (weights / weights.sum(axis=1, keepdims=True))[..., None]
    placed = (share * coordinates[query.obsm[f"{MAPPED}_neighbors"]]).sum(axis=1)
    np.testing.assert_allclose(query.obsm[f"{MAPPED}_umap"], placed, atol=1e-4)


def test_far_cells_are_unknown(query: AnnData, index: Reference) -> None:
    sg.tl.map_to_reference(query, index)
    threshold = query.uns["map_to_reference"]["reference"]["novelty_threshold"]
    far = query.obs[f"{MAPPED}_novelty"] > threshold
    query.obs["noise"] = 0
    noise = query.copy()
    noise.X = np.random.default_rng(0).permutation(noise.X.toarray().T).T
    sg.tl.map_to_reference(noise, index)
    assert noise.uns["map_to_reference"]["n_far"] > far.sum()
    for labels in ("bulk_labels", "phase"):
        np.testing.assert_array_equal(query.obs[f"{MAPPED}_{labels}"] == "unknown", far)
    sg.tl.map_to_reference(noise, index, label_far=True)
    assert not (noise.obs[f"{MAPPED}_phase"] == "unknown").any()


def test_uncertain_cells_are_unknown_if_asked(query: AnnData, index: Reference) -> None:
    sg.tl.map_to_reference(query, index, unknown=0.3, label_far=True)
    found = query.uns["map_to_reference"]["labels"]["phase"]
    uncertain = query.obs[f"{MAPPED}_phase_score"] < found["threshold"]
    np.testing.assert_array_equal(query.obs[f"{MAPPED}_phase"] == "unknown", uncertain)
    assert found["n_uncertain"] == uncertain.sum()


def test_model_is_found_again(query: AnnData, atlas: AnnData, model: SCGPT, tmp_path: Path) -> None:
    """By the name of its folder, and as an argument wherever that folder is."""
    model.save(tmp_path / "model")
    path = tmp_path / "atlas.h5"
    sg.tl.build_reference(atlas, tmp_path / "model", labels="phase", path=path)
    sg.tl.map_to_reference(query, path)
    expected = query.obsm[f"{MAPPED}_neighbors"]
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(OptionError, match="Pass that model as model="):
        sg.tl.map_to_reference(query, path)
    for one in (tmp_path / "elsewhere", model):
        sg.tl.map_to_reference(query, path, one)
        np.testing.assert_array_equal(query.obsm[f"{MAPPED}_neighbors"], expected)


def test_model_is_found_from_another_folder(
    query: AnnData, atlas: AnnData, model: SCGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save("model")
    sg.tl.build_reference(atlas, "model", labels="phase", path="atlas.h5")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sg.tl.map_to_reference(query, tmp_path / "atlas.h5")
    assert "scgpt_mapped_phase" in query.obs


def test_model_in_memory_is_not_found_in_a_file(
    query: AnnData, atlas: AnnData, model: SCGPT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.save(tmp_path / "model")
    path = tmp_path / "atlas.h5"
    for one in ("scgpt-mini", tmp_path / "model"):
        sg.tl.build_reference(atlas, one, labels="phase", path=tmp_path / f"{Path(one).name}.h5", min_matched=0)
    sg.tl.build_reference(atlas, model, labels="phase")
    assert "only in memory" not in caplog.text
    sg.tl.build_reference(atlas, model, labels="phase", path=path)
    assert "'random' exists only in memory" in caplog.text
    with pytest.raises(OptionError, match="was only in memory.*Pass it as model="):
        sg.tl.map_to_reference(query, path)
    sg.tl.map_to_reference(query, path, tmp_path / "model")


def test_another_model_is_refused(query: AnnData, index: Reference, make_model: Callable[..., SCGPT]) -> None:
    before = query.copy()
    for other in (make_model(query.var_names, rng=1), make_model(query.var_names)):
        with pytest.raises(OptionError, match="cannot be compared"):
            sg.tl.map_to_reference(query, index, other)
    assert query.obs.equals(before.obs)
    assert not query.obsm


def test_a_head_makes_no_other_model(query: AnnData, index: Reference, model: SCGPT) -> None:
    model.put_heads({"classes": 3}, seed=0)
    sg.tl.map_to_reference(query, index, model)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_reference_by_a_model_that_takes_batches_out(
    few: AnnData, model: SCGPT, make_model: Callable[..., SCGPT], tmp_path: Path, batch_norm: bool
) -> None:
    few.obs["batch"] = np.array(["a", "b", "c"])[np.arange(few.n_obs) % 3]
    few.obs["lane"] = few.obs["batch"]
    atlas, query = few[few.obs["batch"] != "c"].copy(), few[few.obs["batch"] == "c"].copy()
    how: dict[str, Any] = {"task": "integration", "batch_key": "batch", "max_epochs": 1, "accelerator": "cpu"}
    fitted = sg.tl.finetune(atlas, model, batch_norm=batch_norm, **how)
    path = tmp_path / "atlas.h5"
    sg.tl.build_reference(atlas, fitted, labels="phase", batch_key="lane", path=path)
    sg.tl.map_to_reference(query, path, fitted)
    expected = sg.tl.embed(query, fitted, copy=True).obsm["X_scGPT"]
    np.testing.assert_array_equal(query.obsm["X_scGPT"], expected)
    del query.obs["batch"]
    with pytest.raises(MissingKeyError, match="batch_key"):
        sg.tl.map_to_reference(query, path, fitted)
    sg.tl.map_to_reference(query, path, fitted, batch_key="lane")
    np.testing.assert_array_equal(query.obsm["X_scGPT"], expected)

    query.obs["batch"] = query.obs["lane"]
    sg.tl.finetune(query, fitted, adapter="lora", **how)  # the reference stays as it is
    sg.tl.map_to_reference(query, path, fitted)
    fitted.save(tmp_path / "model")
    sg.tl.map_to_reference(query, path, tmp_path / "model")
    other = sg.tl.finetune(atlas, make_model(few.var_names), labels_key="phase", **how)
    with pytest.raises(OptionError, match="cannot be compared"):
        sg.tl.map_to_reference(query, path, other)


def test_other_genes(query: AnnData, index: Reference, caplog: pytest.LogCaptureFixture) -> None:
    sg.tl.map_to_reference(query, index)
    assert "in the model's vocabulary" not in caplog.text
    fewer = query[:, :100].copy()
    sg.tl.map_to_reference(fewer, index)
    assert fewer.uns["map_to_reference"]["genes"]["matched"] == 100
    assert "has 100 of the 150 genes of the reference that are in the model's vocabulary, and 0 others" in caplog.text


def test_as_many_genes_that_are_others(
    query: AnnData, atlas: AnnData, model: SCGPT, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, last = slice(None, 80), slice(70, None)
    path = tmp_path / "atlas.h5"
    sg.tl.build_reference(atlas[:50, first].copy(), model, labels="phase", min_matched=0, path=path)
    query = query[:, ::-1].copy()
    sg.tl.map_to_reference(query[:, last].copy(), path, model, min_matched=0)
    assert "has 10 of the 80 genes of the reference that are in the model's vocabulary, and 70 others" in caplog.text
    caplog.clear()
    sg.tl.map_to_reference(query[:, first].copy(), path, model, min_matched=0)
    # Cells with other genes are a part of the reference that queries may be like.
    sg.tl.build_reference(atlas[50:, last].copy(), model, extend=path, min_matched=0)
    sg.tl.map_to_reference(query[:, last].copy(), path, model, min_matched=0)
    assert "in the model's vocabulary" not in caplog.text


def test_many_more_genes(query: AnnData, atlas: AnnData, model: SCGPT, caplog: pytest.LogCaptureFixture) -> None:
    few = sg.tl.build_reference(atlas[:, :70].copy(), model, labels=["phase"], min_matched=0)
    sg.tl.map_to_reference(query, few)
    assert "has 70 of the 70 genes of the reference that are in the model's vocabulary, and 80 others" in caplog.text


@pytest.mark.parametrize("as_mudata", [False, True])
def test_copy_and_mudata(query: AnnData, index: Reference, as_mudata: bool) -> None:
    data: Any = MuData({"rna": query}) if as_mudata else query
    copy: Any = sg.tl.map_to_reference(data, index, key_added="mine", copy=True)
    made = copy.mod["rna"] if as_mudata else copy
    assert {"mine_phase", "mine_novelty"} <= set(made.obs)
    assert "mine" in made.obsm
    assert "mine" in made.uns
    assert not query.obsm
    if as_mudata:
        assert "rna:mine_phase" in copy.obs


def test_colours_follow(query: AnnData, atlas: AnnData, model: SCGPT) -> None:
    atlas.uns["phase_colors"] = ["#ff0000", "#00ff00", "#0000ff"][: atlas.obs["phase"].nunique()]
    sg.tl.map_to_reference(query, sg.tl.build_reference(atlas, model, labels="phase"))
    colors = query.uns[f"{MAPPED}_phase_colors"]
    assert colors[:-1].tolist() == atlas.uns["phase_colors"]
    assert len(colors) == len(query.obs[f"{MAPPED}_phase"].cat.categories)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda q: q[:0].copy(), {}, DataError, "cell"),
        (lambda q: AnnData(q.X, var=q.var.set_axis([f"?{i}" for i in range(150)])), {}, DataError, "gene"),
        (None, {"unknown": 0}, OptionError, "unknown=0"),
        (None, {"unknown": 1.5}, OptionError, "unknown=1.5"),
        (None, {"index": "none.h5"}, DataError, "does not exist"),
        (None, {"index": 3}, OptionError, "index is a int"),
        (None, {"batch_size": 0}, OptionError, "batch_size"),
        (None, {"key_added": "a/b"}, OptionError, "key_added"),
    ],
)
def test_bad_input_comes_before_any_work(
    query: AnnData,
    index: Reference,
    monkeypatch: pytest.MonkeyPatch,
    in_empty_folder: Callable[[], None],
    change: Callable[[AnnData], AnnData] | None,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    data = query if change is None else change(query)
    before = data.copy()
    monkeypatch.setattr(SCGPT, "run", lambda *_, **__: pytest.fail("cells were embedded"))
    with pytest.raises(error, match=words):
        sg.tl.map_to_reference(data, options.pop("index", index), **options)
    in_empty_folder()
    assert data.obs.equals(before.obs)
    assert not data.obsm
    assert not data.uns
