"""Tables of cells or genes in memory or in a file, with access to single columns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import pandas as pd
from anndata.io import read_elem

from scgalore.data.columns import read_column
from scgalore.errors import MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """``obs`` or ``var`` of a source.

    Attributes
    ----------
    slot
        ``"obs"`` or ``"var"``.
    of
        Name of the source in messages.
    columns
        Names of the columns.
    index
        Reads the index.
    frame
        Reads the whole table.
    """

    slot: str
    of: str
    columns: tuple[str, ...]
    index: Callable[[], pd.Series]
    frame: Callable[[], pd.DataFrame]
    _read: Callable[[str], Any]

    @classmethod
    def of_frame(cls, frame: pd.DataFrame, slot: str, of: str) -> Table:
        """Create from a table in memory."""
        return cls(
            slot,
            of,
            tuple(map(str, frame.columns)),
            lambda: pd.Series(frame.index),
            lambda: frame,
            lambda key: read_column(frame, key, slot=f"{slot} of {of}"),
        )

    @classmethod
    def of_file(cls, place: Any, slot: str, of: str, uns: Mapping[str, Any]) -> Table:
        """Create from a table in an open file, written by any version of anndata.

        Parameters
        ----------
        place
            Group or dataset of the table.
        slot, of
            Names of the table and its source in messages.
        uns
            Group in which the oldest files store the categories.
        """
        if isinstance(place, h5py.Dataset):  # anndata before 0.7
            return cls._of_records(place, slot, of, uns)
        # Before version 0.8, anndata stored categories separately from the columns.
        if place.attrs.get("encoding-version") != "0.2.0":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # no warnings about the old file format
                return cls.of_frame(read_elem(place), slot, of)
        return cls(
            slot,
            of,
            tuple(map(str, place.attrs["column-order"])),
            lambda: pd.Series(read_elem(place[place.attrs["_index"]])),
            lambda: read_elem(place),
            lambda key: read_elem(place[key]),
        )

    @classmethod
    def _of_records(cls, place: h5py.Dataset, slot: str, of: str, uns: Mapping[str, Any]) -> Table:
        """Structured array whose first field is the index; categories are codes, with their names in ``uns``."""
        index, *columns = place.dtype.names

        def read(key: str) -> pd.Series:
            values = place[key]
            if f"{key}_categories" in uns and values.dtype.kind in "iu":
                names = _texts(uns[f"{key}_categories"][()])
                return pd.Series(pd.Categorical.from_codes(values.astype(int), pd.Index(names).unique()))
            return pd.Series(_texts(values))

        def frame() -> pd.DataFrame:
            return pd.DataFrame({key: read(key) for key in columns}).set_axis(read(index).to_numpy())

        return cls(slot, of, tuple(columns), lambda: read(index), frame, read)

    def column(self, key: str) -> pd.Series:
        """Read one column without the others.

        Raises
        ------
        MissingKeyError
            If the column does not exist.
        """
        if key not in self.columns:
            msg = f"{self.of} has no column {key!r} in {self.slot}; it has {list(self.columns)}."
            raise MissingKeyError(msg)
        return pd.Series(self._read(key), name=key)


def _texts(values: Any) -> Any:
    return (
        [value.decode() if isinstance(value, bytes) else value for value in values.tolist()]
        if values.dtype.kind in "SO"
        else values
    )
