"""Parameters and tables in a form that survives ``write_h5ad`` and ``read_h5ad`` in ``adata.uns``."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, time, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["table_in", "to_uns"]

_INT64 = np.iinfo(np.int64)
# anndata keeps the index of a table under this name.
_RESERVED_COLUMN = "_index"
# Key suffix for the names of a table's columns that are not valid names in HDF5.
_TRUE_NAMES = "{}_columns"
# Nullable types that anndata writes; it refuses nullable floats and Arrow's types.
_MASKED = {"boolean", *(f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))}


def to_uns(obj: Any) -> Any:
    """Convert an object to types that ``adata.uns`` can store.

    The result consists of ``None``, booleans, integers, floats, strings, lists of one of these, NumPy arrays, tables
    and dictionaries with string keys. Names that HDF5 would split into groups have ``/`` replaced by ``_``; a
    dictionary with a table of such columns gets their original names, as a list under the table's key plus
    ``_columns``, from which :func:`table_in` restores them. A list of mixed or nested items, which anndata would refuse
    or silently turn into strings, becomes a dictionary keyed by position. The function is idempotent.

    Parameters
    ----------
    obj
        Parameters, results or history: any nesting of mappings, sequences, sets, dataclasses, enumerations, paths,
        NumPy scalars and arrays, tables and tensors. Other objects are described by a string.

    Returns
    -------
    The object, converted; the original is not changed.
    """
    if isinstance(obj, Enum):  # before str and int, which an enumeration may also be
        return to_uns(obj.value)
    if obj is None or isinstance(obj, bool | int | float | str | np.generic):
        return _scalar(obj)
    if isinstance(obj, pd.DataFrame):
        return _table(obj)
    if isinstance(obj, pd.Series):
        return _table(obj.to_frame(name=obj.name if obj.name is not None else "value"))
    if hasattr(obj, "detach") and hasattr(obj, "numpy"):  # a tensor, without importing torch to find out
        return _array(obj.detach().cpu().numpy())
    if isinstance(obj, pd.Index | pd.api.extensions.ExtensionArray):
        return _array(np.asarray(obj))
    if isinstance(obj, np.ndarray):
        return _array(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return _mapping({field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)})
    if isinstance(obj, tuple) and hasattr(obj, "_asdict"):
        return _mapping(obj._asdict())
    if isinstance(obj, Mapping):
        return _mapping(obj)
    if isinstance(obj, AbstractSet):
        return _items(sorted(obj, key=lambda item: (type(item).__name__, str(item))))
    if isinstance(obj, Sequence) and not isinstance(obj, bytes | bytearray | memoryview):
        return _items(obj)
    return _described(obj)


def _described(obj: object) -> Any:
    if isinstance(obj, PurePath | timedelta):
        return _text(str(obj))
    if isinstance(obj, date | time):  # a datetime is a date
        return obj.isoformat()
    if type(obj).__module__.startswith("scipy.sparse"):
        return obj
    return _text(getattr(obj, "__qualname__", None) or str(obj))


def _text(text: str) -> str:
    # HDF5 strings are UTF-8 without NUL; file names may contain other bytes.
    return str(text).encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _scalar(value: Any) -> Any:
    if isinstance(value, np.datetime64 | np.timedelta64):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if _INT64.min <= value <= _INT64.max else str(value)
    return float(value) if isinstance(value, float) else str(value)


def _items(values: Iterable[Any]) -> Any:
    items = [to_uns(value) for value in values]
    kinds = {type(item) for item in items}
    if kinds == {int, float}:
        return [float(item) for item in items]
    if len(kinds) <= 1 and kinds <= {bool, int, float, str}:
        return items
    return {str(position): item for position, item in enumerate(items)}


def _array(array: np.ndarray) -> Any:
    if array.ndim == 0:
        return to_uns(array[()])
    if array.dtype.kind in "mM":
        return array.astype(str).astype(object)
    if array.dtype.kind in "OSU":
        items = _items(array.ravel().tolist())
        if isinstance(items, list):
            kind = object if items and isinstance(items[0], str) else None
            return np.asarray(items, dtype=kind).reshape(array.shape)
        return _items(array.tolist())
    return array


def _mapping(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in zip(_names(mapping.keys()), mapping.values(), strict=True):
        result[name] = to_uns(value)
        if isinstance(value, pd.DataFrame):
            written = [_plain_name(column) for column in value.columns]
            if written != list(result[name].columns):
                result[_TRUE_NAMES.format(name)] = written
    return result


def table_in(record: Mapping[str, Any], key: str) -> pd.DataFrame:
    """Return a table from a dictionary made by :func:`to_uns`, with the original names of its columns.

    Parameters
    ----------
    record
        From ``adata.uns``, in memory or read from a file.
    key
        Key of the table.
    """
    names = record.get(_TRUE_NAMES.format(key))
    return record[key] if names is None else record[key].set_axis(list(map(str, names)), axis=1)


def _names(keys: Iterable[Any]) -> list[str]:
    """Valid HDF5 names, all different and in the order of the keys."""
    names: list[str] = []
    taken: set[str] = set()
    for key in keys:
        base = _plain_name(key).replace("/", "_")
        if base in ("", ".", "..", _RESERVED_COLUMN):
            base = f"{base.replace('.', '_')}_"
        name, repeat = base, 1
        while name in taken:
            repeat += 1
            name = f"{base}_{repeat}"
        taken.add(name)
        names.append(name)
    return names


def _plain_name(key: Any) -> str:
    """Name as text, before any character is replaced."""
    if isinstance(key, tuple) and not hasattr(key, "_asdict"):
        return "_".join(map(str, key))
    plain = to_uns(key)
    return plain if isinstance(plain, str) else str(plain)


def _table(table: pd.DataFrame) -> pd.DataFrame:
    columns = _names(table.columns)
    index = table.index.to_flat_index() if isinstance(table.index, pd.MultiIndex) else table.index
    if not pd.api.types.is_numeric_dtype(index):
        index = pd.Index(
            [_text("_".join(map(str, i)) if isinstance(i, tuple) else str(i)) for i in index], dtype=object
        )
    name = None if table.index.name is None else _names([table.index.name])[0]
    # anndata refuses an index that shares its name with a column.
    index = index.rename(None if name in columns else name)
    data = {name: _column(table.iloc[:, i]).set_axis(index) for i, name in enumerate(columns)}
    return pd.DataFrame(data, index=index, columns=pd.Index(columns, dtype=object))


def _column(column: pd.Series) -> pd.Series:
    """Convert a column to a type that anndata can write."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        categories = column.cat.categories
        if all(isinstance(category, str) for category in categories):
            return column.cat.rename_categories([_text(category) for category in categories])
        column = column.astype(object)
    if pd.api.types.is_bool_dtype(column) or pd.api.types.is_numeric_dtype(column):
        written = isinstance(column.dtype, np.dtype) or str(column.dtype) in _MASKED
        return column if written else pd.Series(column.to_numpy(float, na_value=np.nan), index=column.index)
    missing = column.isna()
    items = [None if gone else to_uns(value) for value, gone in zip(column, missing, strict=True)]
    kinds = {type(item) for item in items} - {type(None)}
    if kinds <= {int, float} and missing.size:
        return pd.Series([np.nan if item is None else item for item in items], index=column.index)
    texts = pd.Series([None if item is None else _text(str(item)) for item in items], index=column.index, dtype=object)
    # anndata writes categories with missing values, but not strings with missing values.
    return texts.astype("category") if missing.any() else texts
