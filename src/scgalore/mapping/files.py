"""Reference files: HDF5 with plain arrays, which are memory-mapped during search."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from scgalore._files import whole_file
from scgalore._folders import writing
from scgalore.errors import DataError
from scgalore.mapping.lists import Lists
from scgalore.mapping.reference import Cells, Column, Reference
from scgalore.mapping.space import Space
from scgalore.tasks.calibration import Calibration

if TYPE_CHECKING:
    from scgalore._typing import PathLike

__all__ = ["read_reference", "write_reference"]

FORMAT = "scgalore reference 2"
MAX_BYTES = 1 << 24
"""Maximum size of the JSON part."""
IN_MEMORY = 1 << 20
"""Arrays up to this number of bytes are read instead of mapped."""


def write_reference(reference: Reference, path: PathLike) -> Reference:
    """Write a reference to one file, completely or not at all.

    Parameters
    ----------
    reference
        The reference.
    path
        Path of the file; an existing file is replaced.

    Returns
    -------
    The reference, read from the file.

    Raises
    ------
    DiskError
        If the disk is full.
    """
    target = Path(path).expanduser().absolute()
    cells, lists, space = reference.cells, reference.lists, reference.space
    arrays: dict[str, Any] = {
        "space/mean": space.mean,
        "space/axes": space.axes,
        "lists/centers": lists.centers,
        "lists/offsets": lists.offsets,
        "lists/directions": lists.directions,
        "lists/norms": lists.norms,
        "lists/cells": lists.cells,
        "cells/names": cells.names,
        **{f"labels/{number}": column.codes for number, column in enumerate(cells.labels.values())},
        **{f"genes/{number}": genes for number, genes in enumerate(cells.genes)},
    }
    if cells.batches is not None:
        arrays["cells/batches"] = cells.batches.codes
    if cells.coordinates is not None:
        arrays["cells/coordinates"] = cells.coordinates
    about = {
        "n_probe": lists.n_probe,
        "recall": lists.recall,
        "n_neighbors": reference.n_neighbors,
        "gap": reference.gap,
        "gap_threshold": reference.gap_threshold,
        "labels": [
            {
                "name": name,
                "classes": column.classes,
                "colors": column.colors,
                "accuracy": reference.accuracies[name],
                "calibration": reference.calibrations[name].to_config(),
            }
            for name, column in cells.labels.items()
        ],
        "batches": None if cells.batches is None else cells.batches.classes,
        "n_sets_of_genes": len(cells.genes),
        "made": reference.made,
    }
    with whole_file(target) as draft, writing(target, OSError), h5py.File(draft, "w") as file:
        file.attrs["format"] = FORMAT
        file["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    return replace(read_reference(target), model=reference.model)


def read_reference(path: PathLike) -> Reference:
    """Open a reference file; its large arrays are read when they are used.

    Parameters
    ----------
    path
        Path of the file. It may be replaced, but not modified, while the reference is in use.

    Raises
    ------
    DataError
        If the file does not exist, is not a reference, or is damaged.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        msg = f"The file {path} does not exist. Write a reference with sg.tl.build_reference(atlas, model, labels=[...], path=...)."
        raise DataError(msg)
    try:
        with h5py.File(path, "r") as file:
            found = str(file.attrs.get("format"))[:60]
            if found.startswith(FORMAT[:-1]) and found != FORMAT:
                msg = f"it was written by another version of scgalore as {found!r}, but this version reads {FORMAT!r}"
                raise ValueError(msg)
            if found != FORMAT:
                msg = f"its format is {found!r}, expected {FORMAT!r}"
                raise ValueError(msg)
            return _read(file, path)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        msg = f"{path} is not a reference written by scgalore, or is damaged: {error}. Build it again with sg.tl.build_reference."
        raise DataError(msg) from error


def _read(file: h5py.File, path: Path) -> Reference:
    about = json.loads(_array(file, path, "about", np.uint8, (None,), most=MAX_BYTES).tobytes())
    d, c, n, n_lists = None, None, None, None
    axes = _array(file, path, "space/axes", np.float32, (d, c))
    d, c = axes.shape
    space = Space(_array(file, path, "space/mean", np.float32, (d,)), axes)
    centers = _array(file, path, "lists/centers", np.float32, (n_lists, c))
    directions = _array(file, path, "lists/directions", np.float16, (n, c))
    n = len(directions)
    lists = Lists(
        centers,
        _array(file, path, "lists/offsets", np.int64, (len(centers) + 1,)),
        directions,
        _array(file, path, "lists/norms", np.float32, (n,)),
        _array(file, path, "lists/cells", np.int64, (n,)),
        int(about["n_probe"]),
        float(about["recall"]),
    )
    if lists.offsets[0] != 0 or lists.offsets[-1] != n or (np.diff(lists.offsets) < 0).any():
        msg = "its lists do not contain its cells"
        raise ValueError(msg)
    if n == 0 or not 0 <= int(lists.cells.min()) <= int(lists.cells.max()) < n:
        msg = "it has indices of cells that it does not contain"
        raise ValueError(msg)
    labels, calibrations, accuracies = {}, {}, {}
    for number, one in enumerate(about["labels"]):
        codes = _array(file, path, f"labels/{number}", np.int32, (n,))
        labels[one["name"]] = _column(codes, one["classes"], one["colors"])
        accuracies[one["name"]] = float(one["accuracy"])
        calibrations[one["name"]] = Calibration.from_config(one["calibration"])
    batches = about["batches"]
    if batches is not None:
        batches = _column(_array(file, path, "cells/batches", np.int32, (n,)), batches)
    at = _array(file, path, "cells/coordinates", np.float32, (n, 2)) if "cells/coordinates" in file else None
    genes = tuple(_array(file, path, f"genes/{i}", np.int32, (None,)) for i in range(int(about["n_sets_of_genes"])))
    cells = Cells(_array(file, path, "cells/names", None, (n,)), labels, batches, at, genes)
    gap, threshold, k = float(about["gap"]), about["gap_threshold"], int(about["n_neighbors"])
    if not (gap > 0 and k > 0 and lists.n_probe > 0):
        msg = "its numbers are out of range"
        raise ValueError(msg)
    threshold = None if threshold is None else float(threshold)
    return Reference(space, lists, cells, calibrations, accuracies, gap, threshold, k, about["made"], path)


def _column(codes: Any, classes: list[str], colors: list[str] | None = None) -> Column:
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(classes):
        msg = "it has labels of undefined classes"
        raise ValueError(msg)
    return Column(tuple(classes), codes, None if colors is None else tuple(colors))


def _array(file: h5py.File, path: Path, name: str, dtype: Any, shape: tuple[int | None, ...], *, most: int = 0) -> Any:
    """Read an array of the file, or map it if it is large, after checking its size against that of the file."""
    found = file[name]
    is_kind = found.dtype.kind == "S" if dtype is None else found.dtype == dtype
    fits = found.ndim == len(shape) and all(a is None or a == b for a, b in zip(shape, found.shape, strict=False))
    n_bytes = found.size * found.dtype.itemsize
    if not (is_kind and fits) or found.id.get_storage_size() != n_bytes or (most and n_bytes > most):
        msg = f"{name} is an array {found.shape} of {found.dtype} in {found.id.get_storage_size():,} bytes"
        raise ValueError(msg)
    if n_bytes <= IN_MEMORY:
        return found[()]
    if (offset := found.id.get_offset()) is None:
        msg = f"{name} is not stored in one piece"
        raise ValueError(msg)
    return np.memmap(path, mode="r", dtype=found.dtype, shape=found.shape, offset=offset)
