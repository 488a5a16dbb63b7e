"""Sources of a stream: files and AnnData objects, each opened when its cells are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
from anndata import AnnData
from anndata.abc import CSCDataset
from anndata.io import read_elem, sparse_dataset

from scgalore.data.fingerprint import Fingerprint, content_of, written
from scgalore.data.matrix import CellMatrix, layer_names
from scgalore.data.names import as_names, other_columns
from scgalore.data.readers import open_matrix
from scgalore.data.reading import AS_IT_IS
from scgalore.data.tables import Table
from scgalore.errors import DataError, MissingKeyError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    import numpy as np
    import scipy.sparse as sp
    from numpy.typing import NDArray

    from scgalore._typing import PathLike
    from scgalore.data.fingerprint import Written
    from scgalore.data.reading import Reading

__all__ = ["FORMATS", "RAW", "OpenSource", "OpenSources", "Place", "Source", "open_file"]

RAW = "raw"
"""Value of ``layer=`` for ``raw.X`` with the genes of ``raw.var``, unless a layer has this name."""


class Place(ABC):
    """An AnnData or an open file.

    Attributes
    ----------
    name
        Name in messages.
    layers
        Names of the layers.
    has_x, has_raw
        Whether ``X`` and ``raw.X`` exist.
    """

    name: str
    layers: tuple[str, ...]
    has_x: bool
    has_raw: bool

    @property
    @abstractmethod
    def obs(self) -> Table:
        """Table of the cells."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and genes (those of ``X`` if it exists)."""

    @abstractmethod
    def matrix(self, layer: str | None) -> CellMatrix:
        """Open a matrix, which must exist, without reading it."""

    @abstractmethod
    def var(self, layer: str | None) -> Table:
        """Table of the genes of a matrix."""

    @abstractmethod
    def records(self) -> Mapping[str, Any]:
        """Record of logarithms in ``uns``."""

    def written(self, layer: str | None) -> Written | None:
        """Size and modification time of the file of a matrix."""
        return None

    def close(self) -> None:  # noqa: B027 (an object needs no closing)
        """Close the file."""

    def require(self, layer: str | None) -> None:
        """Raise :class:`~scgalore.errors.MissingKeyError` unless a matrix exists."""
        if self.has_x if layer is None else layer in self.layers or layer == RAW and self.has_raw:
            return
        what = "X" if layer is None else f"layer {layer!r}"
        raw = " and raw.X (layer='raw')" if self.has_raw else " and no raw.X"
        msg = (
            f"{self.name} has no {what}; it has the layers {sorted(self.layers)}{raw}. "
            "Pass one of them as layer=, or None for X."
        )
        raise MissingKeyError(msg)

    def called(self, layer: str | None) -> str:
        """Name of a matrix in messages."""
        return "X" if layer is None else f"layer {layer!r}" if layer in self.layers else "raw.X"

    def refuse_columns(self, layer: str | None) -> None:
        """Reject a matrix that is stored by columns."""
        msg = (
            f"{self.name} stores {self.called(layer)} by columns (CSC), which cannot be streamed by rows. Convert it "
            "once: adata = sc.read_h5ad(path); adata.X = adata.X.tocsr(); adata.write_h5ad(path)."
        )
        raise DataError(msg)


class _Object(Place):
    """An AnnData."""

    def __init__(self, adata: AnnData, name: str) -> None:
        self._adata, self.name = adata, name
        self.layers = layer_names(adata)
        # A view of a backed one would load its matrix to answer.
        self.has_x = adata.isbacked or adata.X is not None
        self.has_raw = adata.raw is not None

    @property
    def obs(self) -> Table:
        return Table.of_frame(self._adata.obs, "obs", self.name)

    @property
    def shape(self) -> tuple[int, int]:
        return self._adata.shape

    def matrix(self, layer: str | None) -> CellMatrix:
        self.require(layer)
        adata = self._adata
        if layer == RAW and RAW not in self.layers:
            if isinstance(adata.raw.X, CSCDataset):
                self.refuse_columns(layer)
            return CellMatrix.from_raw(adata)
        if layer is None and adata.isbacked and not adata.is_view and isinstance(adata.X, CSCDataset):
            self.refuse_columns(layer)
        return CellMatrix.from_adata(adata, layer=layer)

    def var(self, layer: str | None) -> Table:
        raw = layer == RAW and RAW not in self.layers
        return Table.of_frame((self._adata.raw if raw else self._adata).var, "raw.var" if raw else "var", self.name)

    def records(self) -> Mapping[str, Any]:
        return {key: self._adata.uns[key] for key in self._adata.uns if key == "log1p"}


class _File(Place):
    """An open file, written by any version of anndata."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self.name = path, name
        self._root = root = open_file(path)
        try:
            lacking = [slot for slot in ("obs", "var") if slot not in root]
            if lacking:
                msg = f"{name} has no {' and no '.join(lacking)}: it is not an AnnData file."
                raise DataError(msg)
            self.layers = tuple(root["layers"]) if "layers" in root else ()
            self.has_x = self._holds("X")
            # Files of anndata before 0.7 have no group "raw".
            self._raw = "raw/" if "raw/X" in root else "raw."
            self.has_raw = self._holds(f"{self._raw}X")
        except BaseException:
            self.close()
            raise

    @property
    def obs(self) -> Table:
        return self._table("obs")

    def _holds(self, slot: str) -> bool:
        return slot in self._root and self._root[slot].attrs.get("encoding-type") != "null"

    def _table(self, slot: str) -> Table:
        return Table.of_file(self._root[slot], slot.replace("/", "."), self.name, self._root.get("uns", {}))

    @property
    def shape(self) -> tuple[int, int]:
        layer = None if self.has_x else RAW if self.has_raw else next(iter(self.layers), None)
        self.require(layer)
        n_obs, n_vars = self._values(layer).shape
        return n_obs, n_vars

    def _values(self, layer: str | None) -> Any:
        x = self._root[self._slot(layer)]
        return x if hasattr(x, "dtype") else sparse_dataset(x)  # sparse matrices are stored as groups

    def _slot(self, layer: str | None) -> str:
        return "X" if layer is None else f"layers/{layer}" if layer in self.layers else f"{self._raw}X"

    def matrix(self, layer: str | None) -> CellMatrix:
        self.require(layer)
        x, name = self._values(layer), f"{self.called(layer)} of {self.name}"
        if isinstance(x, CSCDataset):
            self.refuse_columns(layer)
        return CellMatrix(open_matrix(x, name), x.shape, name=name)

    def var(self, layer: str | None) -> Table:
        return self._table(f"{self._raw}var" if layer == RAW and RAW not in self.layers else "var")

    def records(self) -> Mapping[str, Any]:
        uns = self._root.get("uns", {})
        return {key: read_elem(uns[key]) for key in ("log1p",) if key in uns}

    def written(self, layer: str | None) -> Written:
        try:
            return written(self._path, self._slot(layer))
        except OSError as error:
            msg = f"{self.name} is missing: {error}. {_START_ANEW}"
            raise DataError(msg) from error

    def close(self) -> None:
        getattr(self._root, "close", lambda: None)()


_START_ANEW = (
    "Files must not change while a stream is used. Restore the file, or create the stream again and resume from the last "
    "checkpoint."
)


class OpenSource:
    """An open source whose cells can be read.

    Parameters
    ----------
    place
        The AnnData or open file.
    reading
        Matrix and gene names to read.
    first
        Fingerprint of the source when the stream was created; ``None`` computes it.

    Attributes
    ----------
    matrix
        Expression matrix.
    name
        Name of the source in messages.
    """

    def __init__(self, place: Place, reading: Reading, first: Fingerprint | None = None) -> None:
        self.name = place.name
        self._place, self._reading = place, reading
        with self._reported():
            self.matrix = place.matrix(reading.layer)
        self._first = first
        if first is not None and not self._is_as(first):
            self._refuse_changed()

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return self.matrix.n_obs

    @property
    def obs(self) -> Table:
        """Table of the cells."""
        return self._place.obs

    @property
    def var(self) -> Table:
        """Table of the genes."""
        return self._place.var(self._reading.layer)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the source."""
        written = self._place.written(self._reading.layer)
        with self._reported():
            return Fingerprint((self.matrix.n_obs, self.matrix.n_vars), content_of(self.matrix), written)

    def _is_as(self, first: Fingerprint) -> bool:
        found = self._place.written(self._reading.layer)
        if found != first.written or (self.matrix.n_obs, self.matrix.n_vars) != first.shape:
            return False
        # Size and modification time identify the content of a file, but not of a folder.
        return found is not None and found.size > 0 or self.fingerprint.content == first.content

    def genes(self) -> list[str]:
        """Name of each column."""
        key = self._reading.gene_symbols
        return as_names(self.var.index() if key is None else self.var.column(key))

    def columns(self) -> dict[str | None, list[str]]:
        """Gene names in other columns, for advice in messages."""
        return other_columns(self.var.frame(), self._reading.gene_symbols)

    def rows(self, rows: NDArray[np.integer[Any]]) -> sp.csr_matrix:
        """Read rows in the given order.

        Raises
        ------
        DataError
            If the file can no longer be read, or has changed.
        """
        with self._reported():
            found = self.matrix.rows(rows)
        # Checked after reading, so that rows of a file that changed meanwhile are not used.
        if self._first is not None and self._place.written(self._reading.layer) != self._first.written:
            self._refuse_changed()
        return found

    def close(self) -> None:
        """Close the source."""
        self._place.close()

    def _refuse_changed(self) -> None:
        msg = f"{self.name} has changed since the stream was created. {_START_ANEW}"
        raise DataError(msg)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # HDF5, Zarr and their filters raise many types
            if isinstance(error, DataError | MissingKeyError | OptionError | MemoryError):
                raise
            msg = f"{self.name} cannot be read: {error}. It may be truncated or damaged. {_START_ANEW}"
            raise DataError(msg) from error


@dataclass(frozen=True)
class Source:
    """A file or an AnnData. For a file, only the path is stored, so that the source can be pickled.

    Attributes
    ----------
    what
        Path or object.
    name
        Name in messages.
    reading
        Matrix and gene names to read.
    fingerprint
        Expected fingerprint; a source with another one is rejected. ``None`` if not yet known.
    """

    what: Path | AnnData
    name: str
    reading: Reading = AS_IT_IS
    fingerprint: Fingerprint | None = None

    @classmethod
    def of(cls, what: PathLike | AnnData, number: int, **options: Any) -> Self:
        """Create a source from a path or an AnnData.

        Parameters
        ----------
        what
            Path of an ``.h5ad`` file or a ``.zarr`` folder, or an AnnData.
        number
            Position among the sources, used to name an AnnData.
        options
            Further attributes of the source.
        """
        if isinstance(what, AnnData):
            return cls(what, f"AnnData number {number}", **options)
        path = Path(what)
        _check_file(path)
        return cls(path, str(path), **options)

    def place(self) -> Place:
        """Open the file without reading anything.

        Raises
        ------
        DataError
            If the file cannot be read.
        """
        return _Object(self.what, self.name) if isinstance(self.what, AnnData) else _File(self.what, self.name)

    def open(self) -> OpenSource:
        """Open the file and its matrix, without reading it.

        Raises
        ------
        DataError
            If the file cannot be read, has changed, or stores its matrix by columns.
        MissingKeyError
            If the layer does not exist.
        """
        place = self.place()
        try:
            return OpenSource(place, self.reading, self.fingerprint)
        except BaseException:
            place.close()
            raise


def open_file(path: Path) -> Any:
    """Open an ``.h5ad`` file or ``.zarr`` folder for reading, as an :class:`h5py.File` or a Zarr group.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder.

    Raises
    ------
    DataError
        If it is neither, does not exist or cannot be read.
    """
    _check_file(path)
    try:
        return FORMATS[path.suffix](path)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path} cannot be opened: {error}"
        raise DataError(msg) from error


def _check_file(path: Path) -> None:
    if path.suffix not in ("", *FORMATS) or (path.exists() and path.suffix not in FORMATS):
        msg = f"{path} is neither an .h5ad file nor a .zarr folder. Write it with adata.write_h5ad or adata.write_zarr."
        raise DataError(msg)
    if not path.exists():
        msg = f"{path} does not exist."
        raise DataError(msg)


class OpenSources:
    """Keeps only the last used source open, since each open file takes memory. Leaving the context closes it.

    Parameters
    ----------
    sources
        All sources.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._last: tuple[int, OpenSource] | None = None

    def __getitem__(self, number: int) -> OpenSource:
        if self._last is None or self._last[0] != number:
            self.close()
            self._last = number, self._sources[number].open()
        return self._last[1]

    def close(self) -> None:
        """Close the open source."""
        if self._last is not None:
            self._last[1].close()
            self._last = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_h5ad(path: Path) -> h5py.File:
    # Cache of each dataset while the file is open; the default is 8 MB.
    return h5py.File(path, "r", rdcc_nbytes=2**20)


def _open_zarr(path: Path) -> Any:
    import zarr  # slow to import and rarely needed

    return zarr.open_group(str(path), mode="r")


FORMATS: dict[str, Callable[[Path], Any]] = {".h5ad": _open_h5ad, ".zarr": _open_zarr}
"""Functions that open a file, by suffix."""
