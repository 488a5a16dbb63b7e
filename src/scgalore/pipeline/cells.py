"""Cells of a run: a file whose matrix stays on disk until the rows to read are chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset

from scgalore._files import file_digest
from scgalore._options import UNS_OR_OBSM
from scgalore.data.expression import LogExpression
from scgalore.data.matrix import CellMatrix
from scgalore.data.readers import open_matrix
from scgalore.data.reading import AS_IT_IS
from scgalore.data.scale import to_log1p
from scgalore.data.sources import open_file
from scgalore.data.texts import texts_of
from scgalore.errors import DataError, MissingKeyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from scgalore.data.reading import Reading

__all__ = ["CellFile", "data_digest", "draw_rows", "on_selected_genes"]


@dataclass(frozen=True)
class CellFile:
    """Content of a file except its matrix.

    Attributes
    ----------
    path
        ``.h5ad`` file or ``.zarr`` folder.
    obs, var
        Its tables.
    layers, obsm
        Names of its layers and of its entries in ``obsm``.
    """

    path: Path
    obs: pd.DataFrame = field(repr=False)
    var: pd.DataFrame = field(repr=False)
    layers: tuple[str, ...]
    obsm: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Self:
        """Read the tables of a file.

        Raises
        ------
        DataError
            If the file has another format, or no tables.
        """
        root = open_file(path)
        try:
            if "obs" not in root or "var" not in root:
                msg = f"{path} has no obs and var. Expected a file written by anndata."
                raise DataError(msg)
            names = (tuple(root.get(slot, ())) for slot in ("layers", "obsm"))
            return cls(path, read_elem(root["obs"]), read_elem(root["var"]), *names)
        finally:
            _close(root)

    @property
    def uns(self) -> Mapping[str, Any]:
        """Entries of ``uns``, read on access."""
        return _Records(self.path)

    def require(self, slot: str, name: str, key: str | None) -> None:
        """Raise :class:`~scgalore.errors.MissingKeyError` unless a column, layer or record exists.

        Parameters
        ----------
        slot
            ``"obs"``, ``"var"``, ``"layers"``, ``"obsm"`` or :data:`~scgalore._options.UNS_OR_OBSM`.
        name
            Option with the key.
        key
            Key to look up; ``None`` is not checked.
        """
        entries = (*self.uns, *self.obsm) if slot == UNS_OR_OBSM else getattr(self, slot)
        found = entries if isinstance(entries, tuple) else tuple(map(str, entries.columns))
        if key is not None and key not in found:
            msg = f"{name}={key!r}: {self.path} has no such entry in {slot}, which has {list(found)}."
            raise MissingKeyError(msg)

    def genes(self, gene_symbols: str | None) -> list[str]:
        """Names of the genes: the index of ``var``, or a column of it."""
        return (self.var.index if gene_symbols is None else self.var[gene_symbols]).astype(str).tolist()

    def read(
        self, rows: NDArray[np.int64], layer: str | None, *, uns: Sequence[str] = (), obsm: Sequence[str] = ()
    ) -> AnnData:
        """Read some cells, with all genes, as a sparse float32 matrix.

        Parameters
        ----------
        rows
            Increasing row numbers.
        layer
            Layer to read instead of ``X``; ``None`` reads ``X``.
        uns
            Entries of ``uns`` to read, if present.
        obsm
            Entries of ``obsm`` to read, if present.
        """
        root = open_file(self.path)
        try:
            slot = "X" if layer is None else f"layers/{layer}"
            if slot not in root or root[slot].attrs.get("encoding-type") == "null":
                msg = f"{self.path} has no {slot}. Pass layer= with one of {list(self.layers)}."
                raise MissingKeyError(msg)
            x: Any = root[slot] if hasattr(root[slot], "dtype") else sparse_dataset(root[slot])
            name = f"{slot} of {self.path}"
            matrix = CellMatrix(open_matrix(x, name), x.shape, name=name).rows(rows)
            kept = {key: read_elem(root["uns"][key]) for key in uns if key in root.get("uns", ())}
            tables = {key: _rows_of(read_elem(root["obsm"][key]), rows) for key in obsm if key in self.obsm}
        finally:
            _close(root)
        return AnnData(matrix, obs=self.obs.iloc[rows].copy(), var=self.var.copy(), uns=kept, obsm=tables)


def _rows_of(table: Any, rows: NDArray[np.int64]) -> Any:
    return table.iloc[rows] if isinstance(table, pd.DataFrame) else table[rows]


class _Records(Mapping[str, Any]):
    """``uns`` of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getitem__(self, key: str) -> Any:
        root = open_file(self.path)
        try:
            return read_elem(root["uns"][key])
        finally:
            _close(root)

    def __iter__(self) -> Iterator[str]:
        root = open_file(self.path)
        try:
            return iter(list(root.get("uns", ())))
        finally:
            _close(root)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, key: object) -> bool:
        return key in list(self)


def draw_rows(obs: pd.DataFrame, keys: Sequence[str], *, most: int | None, seed: int) -> NDArray[np.int64]:
    """Sample cells at random in proportion to the size of each group, with at least one per group.

    Parameters
    ----------
    obs
        Cells to sample from.
    keys
        Columns that define the groups; cells without a value in the first are excluded.
    most
        Approximate number of cells; ``None`` uses all.
    seed
        Random seed.

    Returns
    -------
    Increasing row numbers.
    """
    takes_part = obs[keys[0]].notna().to_numpy() if keys else np.ones(len(obs), dtype=bool)
    all_rows = np.flatnonzero(takes_part).astype(np.int64)
    if most is None or len(all_rows) <= most:
        return all_rows
    rows = all_rows[np.random.default_rng(seed).permutation(len(all_rows))]
    groups: NDArray[Any] = np.zeros(len(rows), dtype=np.int64)
    if keys:
        values = pd.DataFrame({place: texts_of(obs[key])[rows] for place, key in enumerate(keys)})
        groups = values.groupby(list(values), dropna=False, sort=False).ngroup().to_numpy()
    by_group = rows[np.argsort(groups, kind="stable")]
    sizes = np.bincount(groups)
    # Largest remainders: proportional numbers of cells, rounded to integers.
    exact = sizes * (most / len(rows))
    taken = np.maximum(np.floor(exact), 1).astype(np.int64)
    remainders = np.where(exact >= 1, exact - np.floor(exact), -1)  # smaller groups already have more than proportional
    order = np.argsort(-remainders, kind="stable")
    taken[order[: max(0, most - int(taken.sum()))]] += 1
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_group[np.arange(len(rows)) - first < np.repeat(np.minimum(taken, sizes), sizes)])


def on_selected_genes(adata: AnnData, selected: NDArray[np.bool_], reading: Reading = AS_IT_IS) -> tuple[AnnData, int]:
    """Log-normalise cells over all their genes, then keep the selected ones.

    Parameters
    ----------
    adata
        Cells with all genes, counts or log-normalised.
    selected
        Genes to keep, shape ``(n_vars,)``.
    reading
        Content of the matrix.

    Returns
    -------
    New AnnData with the cells that express at least one of these, and the number of other cells.
    """
    expression = LogExpression.from_adata(adata, reading)
    uns = {**adata.uns, "log1p": to_log1p(expression.log_base)}
    columns = np.flatnonzero(selected)
    x = sp.vstack([chunk[:, columns] for _, chunk in expression.chunks()], format="csr")
    expressed = np.diff(x.indptr) > 0
    if not expressed.any():
        msg = f"No cell expresses any of the {len(columns):,} selected genes. Select more genes with n_genes=."
        raise DataError(msg)
    obs, var = adata.obs[expressed].copy(), adata.var[selected].copy()
    tables = {key: _rows_of(table, np.flatnonzero(expressed)) for key, table in adata.obsm.items()}
    kept = AnnData(x[expressed], obs=obs, var=var, uns=uns, obsm=tables)
    return kept, int((~expressed).sum())


def data_digest(path: Path) -> str:
    """Hash a file, or the names and contents of all files in a folder."""
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def _close(root: Any) -> None:
    getattr(root, "close", lambda: None)()
