"""Antibody counts measured with the RNA of the same cells, from any slot, and their normalisation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from scgalore import _logging as logg
from scgalore._options import Kind, is_text
from scgalore._words import few
from scgalore.data.matrix import CellMatrix, canonical
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.genes.antibodies import antibody_gene, clean_antibodies, is_isotype_control

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["NAMES_KEY", "PROTEIN_KEY", "PROTEIN_KIND", "Proteins", "centred_log_ratio", "read_proteins"]

PROTEIN_KEY = "protein_expression"
"""Key in ``obsm`` used by totalVI and the readers of scvi-tools."""

NAMES_KEY = "protein_names"
"""Key in ``uns`` with the column names if ``obsm`` contains an array."""

PROTEIN_KIND = Kind(
    "it must be a key of adata.obsm, or an AnnData with antibody counts",
    lambda value: isinstance(value, AnnData) or is_text(value),
    record=lambda value: f"{value.n_obs} cells x {value.n_vars} proteins" if isinstance(value, AnnData) else value,
)


@dataclass(frozen=True)
class Proteins:
    """Antibody counts of cells, without isotype controls.

    Attributes
    ----------
    counts
        float32, in canonical form, ``(n_obs, n_proteins)``.
    names
        Names of the proteins in the data.
    cleaned
        Unique names without the additions of vendors and programs.
    genes
        Gene symbol of each protein; ``""`` if unknown.
    controls
        Names of the isotype controls, which are omitted.
    """

    counts: sp.csr_matrix = field(repr=False)
    names: tuple[str, ...]
    cleaned: tuple[str, ...]
    genes: tuple[str, ...]
    controls: tuple[str, ...]

    @property
    def abundance(self) -> NDArray[np.float32]:
        """:func:`centred_log_ratio` of the counts."""
        return centred_log_ratio(self.counts.toarray())


def centred_log_ratio(counts: NDArray[Any]) -> NDArray[np.float32]:
    """Centred log ratio: log(1 + count) minus its mean over the proteins of the cell, float32 ``(n_obs, n_proteins)``.

    It does not depend on the sequencing depth of a cell. Source: Stoeckius et al., Nature Methods 2017,
    doi:10.1038/nmeth.4380.

    Parameters
    ----------
    counts
        Counts, ``(n_obs, n_proteins)``.
    """
    logs = np.log1p(counts.astype(np.float64))
    return (logs - logs.mean(axis=1, keepdims=True)).astype(np.float32)


def read_proteins(adata: AnnData, protein: str | AnnData, layer: str | None = None) -> Proteins:
    """Read and check antibody counts.

    Parameters
    ----------
    adata
        The cells.
    protein
        Key of ``adata.obsm`` with a DataFrame, or with an array and column names in ``adata.uns["protein_names"]``. Or
        an AnnData with the same cells in any order.
    layer
        Layer of that AnnData; ``None`` is ``X``.

    Raises
    ------
    MissingKeyError
        If the key or layer does not exist.
    OptionError
        If ``layer`` is passed with a key of ``obsm``.
    DataError
        If cells have no proteins, or the values are not counts.
    """
    if layer is not None and not isinstance(protein, AnnData):
        msg = f"protein_layer={layer!r} applies to an AnnData with proteins only; adata.obsm[{protein!r}] has no layers. Omit it."
        raise OptionError(msg)
    if isinstance(protein, AnnData):
        matrix, names, where = _of_adata(adata, protein, layer)
    else:
        matrix, names, where = _of_obsm(adata, protein)
    names = [str(name) for name in names]
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        msg = f"{where} has several proteins with the same name ({few(repeated)}). Sum or rename them."
        raise DataError(msg)
    _check(adata, matrix, where)
    control = np.array([is_isotype_control(name) for name in names], dtype=bool)
    kept = [name for name, left_out in zip(names, control, strict=True) if not left_out]
    if len(kept) < 2:
        msg = f"{where} has {len(kept)} proteins besides isotype controls, expected at least 2, since counts are relative to the cell's mean."
        raise DataError(msg)
    counts = matrix[:, ~control]
    empty = np.flatnonzero(np.diff(counts.indptr) == 0)
    if len(empty):
        msg = (
            f"{len(empty):,} of {adata.n_obs:,} cells (for example {adata.obs_names[empty[:3]].tolist()}) have no protein counts in "
            f"{where}. Train on the other cells, and predict the proteins of these with sg.tl.predict_protein."
        )
        raise DataError(msg)
    genes = tuple(antibody_gene(name) or "" for name in kept)
    left_out = tuple(name for name in names if name not in set(kept))
    logg.info(
        f"    {len(kept)} proteins in {where}, {sum(map(bool, genes))} with a known gene"
        + (f"; omitted as isotype controls: {few(left_out)}" if left_out else "")
    )
    return Proteins(counts, tuple(kept), tuple(clean_antibodies(kept)), genes, left_out)


def _of_adata(adata: AnnData, protein: AnnData, layer: str | None) -> tuple[sp.csr_matrix, Sequence[str], str]:
    for cells, kind in ((adata, "RNA"), (protein, "proteins")):
        if not cells.obs_names.is_unique:
            msg = f"The AnnData with the {kind} has repeated obs_names, but cells are matched by name. Make them unique with obs_names_make_unique()."
            raise DataError(msg)
    place = protein.obs_names.get_indexer(adata.obs_names)
    if (place < 0).any():
        lacking = adata.obs_names[place < 0]
        msg = (
            f"{len(lacking):,} of {adata.n_obs:,} cells with RNA have no proteins (for example {lacking[:3].tolist()}; proteins were measured in "
            f"{protein.n_obs:,} cells). Keep the cells with both: mudata.MuData(...) and muon.pp.intersect_obs(mdata), or "
            "adata[adata.obs_names.isin(protein.obs_names)].copy(). For the other cells, call sg.tl.predict_protein."
        )
        raise DataError(msg)
    where = "the AnnData with the proteins" if layer is None else f"layer {layer!r} of the AnnData with the proteins"
    return CellMatrix.from_adata(protein, layer=layer).rows(place), list(protein.var_names), where


def _of_obsm(adata: AnnData, key: str) -> tuple[sp.csr_matrix, Sequence[str], str]:
    if key not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "none"
        msg = (
            f"adata.obsm has no {key!r} (it has: {found}). Pass the key of the antibody counts or an AnnData with them as protein=, "
            'or a MuData with mod=["rna", "prot"].'
        )
        raise MissingKeyError(msg)
    where, values = f"adata.obsm[{key!r}]", adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        return canonical(sp.csr_matrix(_numbers(values.to_numpy(), where))), list(values.columns), where
    names: Any = adata.uns.get(NAMES_KEY)
    if names is None or len(names) != values.shape[1]:
        msg = (
            f"{where} is an array of {values.shape[1]} columns without names in adata.uns[{NAMES_KEY!r}]. Name them: "
            f"adata.obsm[{key!r}] = pandas.DataFrame(adata.obsm[{key!r}], index=adata.obs_names, columns=names)."
        )
        raise DataError(msg)
    rows = values if sp.issparse(values) else _numbers(np.asarray(values), where)
    return canonical(sp.csr_matrix(rows)), list(names), where


def _numbers(values: NDArray[Any], where: str) -> NDArray[Any]:
    if values.dtype.kind in "iufb":
        return values
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{where} has dtype {values.dtype}, expected counts ({error})."
        raise DataError(msg) from error


def _check(adata: AnnData, matrix: sp.csr_matrix, where: str) -> None:
    lost = ~np.isfinite(matrix.data)
    if lost.any():
        cells = np.unique(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[lost])
        msg = (
            f"{where} contains {int(lost.sum()):,} NaN or infinite values in {len(cells):,} of {adata.n_obs:,} cells (for example "
            f"{adata.obs_names[cells[:3]].tolist()}). Train on cells or proteins without these values, and predict the others with "
            "sg.tl.predict_protein."
        )
        raise DataError(msg)
    odd = matrix.data[(matrix.data < 0) | (matrix.data % 1 != 0)]
    if len(odd):
        msg = (
            f"{where} contains {len(odd):,} values that are negative or not integers (such as {odd[0]:.3g}) and appear to be normalised; "
            "expected antibody counts. Pass another key or AnnData as protein=, or a layer as protein_layer=."
        )
        raise DataError(msg)
