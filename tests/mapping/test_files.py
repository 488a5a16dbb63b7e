from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scgalore.errors import DataError
from scgalore.mapping import Reference, files, read_reference, write_reference
from scgalore.mapping.reference import Cells, Column

MADE = {"model": {"name": "a model", "identity": "0"}, "tokens": {"rng": 0}, "keys": {"labels": ["type"]}}

GENES = (np.array([1, 2, 3], np.int32), np.array([2, 5], np.int32))


def cells(n: int = 120, **slots: Any) -> Cells:
    codes = (np.arange(n) % 3).astype(np.int32)
    names = np.array([f"cell {i} \N{GREEK SMALL LETTER ALPHA}".encode() for i in range(n)])
    return Cells(names, {"type": Column(("a", "b/c", "d"), codes, ("#000000", "#111111", "#222222"))}, **slots)


def embedding(n: int = 120, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(3, 6))[np.arange(n) % 3] + 0.3 * rng.normal(size=(n, 6))).astype(np.float32)


@pytest.fixture
def reference() -> Reference:
    batches = Column(("x", "y"), (np.arange(120) % 2).astype(np.int32))
    at = np.random.default_rng(1).normal(size=(120, 2)).astype(np.float32)
    slots: dict[str, Any] = {"batches": batches, "coordinates": at, "genes": GENES}
    return Reference.of_embedding(embedding(), cells(**slots), n_neighbors=5, made=MADE)


@pytest.fixture(params=[False, True], ids=["read", "mapped"])
def mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(files, "IN_MEMORY", 0)
    return request.param


def test_a_file_holds_all_of_it(reference: Reference, tmp_path: Path, mapped: bool) -> None:
    again = write_reference(reference, tmp_path / "atlas.h5")
    assert again.path == tmp_path / "atlas.h5"
    assert isinstance(again.lists.directions, np.memmap) == mapped
    queries = embedding(40, seed=2)
    for one in (again, read_reference(tmp_path / "atlas.h5")):
        assert one.made == MADE
        assert [genes.tolist() for genes in one.cells.genes] == [[1, 2, 3], [2, 5]]
        assert one.labels == ("type",)
        assert one.cells.labels["type"].classes == ("a", "b/c", "d")
        assert one.cells.labels["type"].colors == ("#000000", "#111111", "#222222")
        assert one.names(np.array([[3], [0]])).tolist() == [["cell 3 α"], ["cell 0 α"]]
        assert (one.gap, one.gap_threshold) == (reference.gap, reference.gap_threshold)
        assert one.calibrations == reference.calibrations
        assert one.accuracies == reference.accuracies
        mine, theirs = one.find(queries), reference.find(queries)
        np.testing.assert_array_equal(mine.rows, theirs.rows)
        np.testing.assert_array_equal(mine.gap, theirs.gap)
        np.testing.assert_array_equal(one.probabilities(mine, "type"), reference.probabilities(theirs, "type"))
        np.testing.assert_array_equal(one.placed(mine), reference.placed(theirs))


def test_extended_from_a_file(reference: Reference, tmp_path: Path, mapped: bool) -> None:
    stored = write_reference(reference, tmp_path / "atlas.h5")
    more = cells(60, batches=Column(("z",), np.zeros(60, np.int32)), coordinates=np.zeros((60, 2), np.float32))
    larger = write_reference(stored.extended(embedding(60, seed=3), more), stored.path)  # type: ignore[arg-type]
    assert larger.n_obs == 180
    assert stored.n_obs == 120, "what was open stays what it was"
    assert larger.cells.batches is not None
    assert larger.cells.batches.classes == ("x", "y", "z")
    found = larger.find(embedding(60, seed=3))
    assert larger.lists.cells[found.rows[:, 0]].tolist() == list(range(120, 180))


def test_failed_writing_leaves_what_was_there(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "atlas.h5"
    write_reference(reference, path)
    before = path.read_bytes()
    monkeypatch.setattr(files.h5py.Group, "create_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_reference(reference, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _without_labels(file: h5py.File) -> None:
    del file["labels/0"]


def _class_out_of_range(file: h5py.File) -> None:
    file["labels/0"][5] = 3


def _other_shape(file: h5py.File) -> None:
    norms = file["lists/norms"][:-1]
    del file["lists/norms"]
    file["lists/norms"] = norms


def _promised_bytes(file: h5py.File) -> None:
    del file["lists/directions"]
    file.create_dataset("lists/directions", shape=(10**9, 6), dtype=np.float16, chunks=(1024, 6))


def _lists_too_long(file: h5py.File) -> None:
    file["lists/offsets"][-1] = 121


def _cell_out_of_range(file: h5py.File) -> None:
    file["lists/cells"][0] = 120


def _other_format(file: h5py.File) -> None:
    file.attrs["format"] = "another"


def _no_json(file: h5py.File) -> None:
    file["about"][0] = 0


@pytest.mark.parametrize(
    "damage",
    [
        _without_labels,
        _class_out_of_range,
        _other_shape,
        _promised_bytes,
        _lists_too_long,
        _cell_out_of_range,
        _other_format,
        _no_json,
    ],
    ids=lambda damage: damage.__name__,
)
def test_damaged_files_are_refused(reference: Reference, tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "atlas.h5"
    write_reference(reference, path)
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match="Build it again"):
        read_reference(path)


def test_files_of_other_versions_say_so(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5"
    write_reference(reference, path)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = "scgalore reference 1"
    with pytest.raises(DataError, match="another version of scgalore.*Build it again"):
        read_reference(path)


def test_other_files_are_refused(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "atlas.h5"
    with pytest.raises(DataError, match="does not exist"):
        read_reference(path)
    write_reference(reference, path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="Build it again"):
        read_reference(path)
    path.write_text("no HDF5")
    with pytest.raises(DataError, match="Build it again"):
        read_reference(path)
