"""What a stream reads cells from: files and AnnData objects, each opened when its cells are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py
import pandas as pd
from anndata import AnnData
from anndata.abc import CSCDataset
from anndata.io import read_elem, sparse_dataset

from scgalore.data.cells import gene_names
from scgalore.data.columns import read_column
from scgalore.data.matrix import CellMatrix
from scgalore.data.names import as_names, other_columns
from scgalore.data.readers import open_matrix
from scgalore.data.reading import AS_IT_IS
from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from scgalore._typing import PathLike
    from scgalore.data.reading import Reading

__all__ = ["OpenSource", "OpenSources", "Source", "open_file"]


@dataclass(frozen=True)
class OpenSource:
    """Cells that can be read now.

    Attributes
    ----------
    matrix
        Rows of expression.
    genes
        Reads the name of each column.
    columns
        Reads the names that stand elsewhere, for advice.
    labels
        Label of each cell, or ``None``.
    close
        Ends the reading.
    """

    matrix: CellMatrix
    genes: Callable[[], list[str]]
    columns: Callable[[], dict[str | None, list[str]]]
    labels: pd.Series | None
    close: Callable[[], None]


@dataclass(frozen=True)
class Source:
    """One file or AnnData. A file is named only, so that its source pickles.

    Attributes
    ----------
    what
        Path, or the object.
    name
        What to call it in messages.
    reading
        Which matrix and names of genes to read.
    labels_key
        Column of ``obs`` to read; nothing when ``None``.
    """

    what: Path | AnnData
    name: str
    reading: Reading = AS_IT_IS
    labels_key: str | None = None

    @classmethod
    def of(cls, what: PathLike | AnnData, number: int, **options: Any) -> Self:
        """Name a source.

        Parameters
        ----------
        what
            Path of an ``.h5ad`` file or a ``.zarr`` folder, or an AnnData.
        number
            Its position among the sources, which names an AnnData.
        options
            Attributes of the source.
        """
        if isinstance(what, AnnData):
            return cls(what, f"AnnData number {number}", **options)
        path = Path(what)
        _check_file(path)
        return cls(path, str(path), **options)

    def open(self) -> OpenSource:
        """Find the matrix, the names of its genes and the labels; the matrix is not read.

        Raises
        ------
        DataError
            If the file cannot be read, has no such layer, or holds its matrix by columns.
        MissingKeyError
            If a column does not exist.
        """
        if isinstance(self.what, AnnData):
            return self._of_adata(self.what)
        root = open_file(self.what)
        close = getattr(root, "close", lambda: None)
        try:
            return self._of_file(root, close)
        except BaseException:
            close()
            raise

    def _of_adata(self, adata: AnnData) -> OpenSource:
        matrix = CellMatrix.from_adata(adata, layer=self.reading.layer)
        if adata.isbacked and not adata.is_view and self.reading.layer is None and isinstance(adata.X, CSCDataset):
            raise DataError(self._by_columns())
        labels = None
        if self.labels_key is not None:
            labels = read_column(adata.obs, self.labels_key, slot=f"obs of {self.name}")
        used = self.reading.gene_symbols
        names, columns = partial(gene_names, adata, used), partial(other_columns, adata.var, used)
        return OpenSource(matrix, names, columns, labels, lambda: None)

    def _of_file(self, root: Any, close: Callable[[], None]) -> OpenSource:
        slot, what = (
            ("X", "X")
            if self.reading.layer is None
            else (f"layers/{self.reading.layer}", f"layer {self.reading.layer!r}")
        )
        if slot not in root or root[slot].attrs.get("encoding-type") == "null":
            found = sorted(root["layers"]) if "layers" in root else []
            msg = f"{self.name} has no {what}; it has the layers {found}. Pass one of them as layer=, or None for X."
            raise MissingKeyError(msg)
        x, name = root[slot], f"{what} of {self.name}"
        if not hasattr(x, "dtype"):  # a group, which is how sparse matrices are kept
            x = sparse_dataset(x)
        if isinstance(x, CSCDataset):
            raise DataError(self._by_columns())
        matrix = CellMatrix(open_matrix(x, name), x.shape, name=name)
        labels = None if self.labels_key is None else self._column(root["obs"], "obs", self.labels_key)
        used = self.reading.gene_symbols

        def names() -> list[str]:
            return as_names(self._column(root["var"], "var", used))

        return OpenSource(matrix, names, lambda: other_columns(read_elem(root["var"]), used), labels, close)

    def _column(self, frame: Any, slot: str, key: str | None) -> pd.Series:
        """Read one column of ``obs`` or ``var``, or its index, without the others."""
        if frame.attrs.get("encoding-version") != "0.2.0":  # older files keep categories elsewhere
            table = read_elem(frame)
            columns, read = list(table.columns), table.__getitem__
            if key is None:
                return pd.Series(table.index)
        else:
            columns, read = list(frame.attrs["column-order"]), lambda name: read_elem(frame[name])
            if key is None:
                return pd.Series(read(frame.attrs["_index"]))
        if key not in columns:
            msg = f"{self.name} has no column {key!r} in {slot}; it has {columns}."
            raise MissingKeyError(msg)
        return pd.Series(read(key), name=key)

    def _by_columns(self) -> str:
        return (
            f"{self.name} holds its matrix by columns (CSC), which cannot be streamed by rows. Convert it once: "
            "adata = sc.read_h5ad(path); adata.X = adata.X.tocsr(); adata.write_h5ad(path)."
        )


def open_file(path: Path) -> Any:
    """Open a file of cells for reading: an :class:`h5py.File`, or a Zarr group.

    Parameters
    ----------
    path
        An ``.h5ad`` file or a ``.zarr`` folder.

    Raises
    ------
    DataError
        If it is neither, does not exist, or cannot be read.
    """
    _check_file(path)
    try:
        return _FORMATS[path.suffix](path)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path} cannot be opened: {error}"
        raise DataError(msg) from error


def _check_file(path: Path) -> None:
    if path.suffix not in _FORMATS:
        msg = f"{path} is neither an .h5ad file nor a .zarr folder. Write it with adata.write_h5ad or write_zarr."
        raise DataError(msg)
    if not path.exists():
        msg = f"{path} does not exist."
        raise DataError(msg)


class OpenSources:
    """The source that was read last stays open, and no other: each open file takes memory. Leaving the context closes it.

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
        """Close what is open."""
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
    # Each dataset has a cache of this size for as long as its file is open, 8 MB unless told otherwise.
    return h5py.File(path, "r", rdcc_nbytes=2**20)


def _open_zarr(path: Path) -> Any:
    import zarr  # slow to import, and most users have no such folder

    return zarr.open_group(str(path), mode="r")


_FORMATS: dict[str, Callable[[Path], Any]] = {".h5ad": _open_h5ad, ".zarr": _open_zarr}
