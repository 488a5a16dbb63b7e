"""Counts of antibodies measured with the RNA of the same cells, wherever they are kept, and the scale they are compared on."""

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
"""Key in ``obsm`` that totalVI and the readers of scvi-tools use."""

NAMES_KEY = "protein_names"
"""Key in ``uns`` with the names of the columns, where ``obsm`` holds an array."""

PROTEIN_KIND = Kind(
    "it must be a key of adata.obsm, or an AnnData with the counts of the antibodies",
    lambda value: isinstance(value, AnnData) or is_text(value),
    record=lambda value: f"{value.n_obs} cells x {value.n_vars} proteins" if isinstance(value, AnnData) else value,
)


@dataclass(frozen=True)
class Proteins:
    """Antibodies of some cells, without isotype controls.

    Attributes
    ----------
    counts
        float32, in canonical form, ``(n_obs, n_proteins)``.
    names
        What they are called in the data.
    cleaned
        The same without what vendors and programs add; each once.
    genes
        Symbol of a gene of each protein; ``""`` where the name does not tell.
    controls
        Names of the isotype controls, which are left out.
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
    """Logarithms of counts plus 1 relative to their mean over the proteins of the cell, float32 ``(n_obs, n_proteins)``.

    How many molecules of a cell were sequenced cancels. Source: Stoeckius et al., Nature Methods 2017,
    doi:10.1038/nmeth.4380.

    Parameters
    ----------
    counts
        Of each cell and protein, ``(n_obs, n_proteins)``.
    """
    logs = np.log1p(counts.astype(np.float64))
    return (logs - logs.mean(axis=1, keepdims=True)).astype(np.float32)


def read_proteins(adata: AnnData, protein: str | AnnData, layer: str | None = None) -> Proteins:
    """Read and check the antibodies of some cells.

    Parameters
    ----------
    adata
        The cells.
    protein
        Key of ``adata.obsm``: a table, or an array whose columns ``adata.uns["protein_names"]`` names. Or an AnnData that holds the same
        cells, in any order.
    layer
        Layer of that AnnData to read; ``X`` when left out.

    Raises
    ------
    MissingKeyError
        If there is no such key or layer.
    OptionError
        If a layer is named of a key of ``obsm``.
    DataError
        If cells have no proteins, or the values are not counts.
    """
    if layer is not None and not isinstance(protein, AnnData):
        msg = f"protein_layer={layer!r} is for an AnnData with the proteins, and adata.obsm[{protein!r}] has no layers. Leave it out."
        raise OptionError(msg)
    if isinstance(protein, AnnData):
        matrix, names, where = _of_adata(adata, protein, layer)
    else:
        matrix, names, where = _of_obsm(adata, protein)
    names = [str(name) for name in names]
    if repeated := [name for name, n in Counter(names).items() if n > 1]:
        msg = f"{where} has several proteins of one name ({few(repeated)}). Sum or rename them."
        raise DataError(msg)
    _check(adata, matrix, where)
    control = np.array([is_isotype_control(name) for name in names], dtype=bool)
    kept = [name for name, left_out in zip(names, control, strict=True) if not left_out]
    if len(kept) < 2:
        msg = f"{where} has {len(kept)} proteins that are no isotype controls; at least 2 are needed, since they are compared with each other."
        raise DataError(msg)
    counts = matrix[:, ~control]
    empty = np.flatnonzero(np.diff(counts.indptr) == 0)
    if len(empty):
        msg = (
            f"{len(empty):,} of {adata.n_obs:,} cells (for example {adata.obs_names[empty[:3]].tolist()}) have no count of any protein in "
            f"{where}. Train on the others, and predict the proteins of these with sg.tl.predict_protein."
        )
        raise DataError(msg)
    genes = tuple(antibody_gene(name) or "" for name in kept)
    left_out = tuple(name for name in names if name not in set(kept))
    logg.info(
        f"    {len(kept)} proteins in {where}, {sum(map(bool, genes))} of which have a gene"
        + (f"; left out as isotype controls: {few(left_out)}" if left_out else "")
    )
    return Proteins(counts, tuple(kept), tuple(clean_antibodies(kept)), genes, left_out)


def _of_adata(adata: AnnData, protein: AnnData, layer: str | None) -> tuple[sp.csr_matrix, Sequence[str], str]:
    for cells, kind in ((adata, "RNA"), (protein, "proteins")):
        if not cells.obs_names.is_unique:
            msg = f"The AnnData with the {kind} has repeated obs_names, by which cells are found: cells of one name would get the same proteins. Make them unique."
            raise DataError(msg)
    place = protein.obs_names.get_indexer(adata.obs_names)
    if (place < 0).any():
        lacking = adata.obs_names[place < 0]
        msg = (
            f"{len(lacking):,} of {adata.n_obs:,} cells with RNA have no proteins (for example {lacking[:3].tolist()}; the proteins are of "
            f"{protein.n_obs:,} cells). Take the cells that have both: mudata.MuData(...) and muon.pp.intersect_obs(mdata), or "
            "adata[adata.obs_names.isin(protein.obs_names)].copy(). Proteins of the others: sg.tl.predict_protein."
        )
        raise DataError(msg)
    where = "the AnnData of the proteins" if layer is None else f"layer {layer!r} of the AnnData of the proteins"
    return CellMatrix.from_adata(protein, layer=layer).rows(place), list(protein.var_names), where


def _of_obsm(adata: AnnData, key: str) -> tuple[sp.csr_matrix, Sequence[str], str]:
    if key not in adata.obsm:
        found = ", ".join(map(repr, adata.obsm)) or "none"
        msg = (
            f"adata.obsm has no {key!r} (it has: {found}). Pass protein= with the key of the counts of antibodies or an AnnData that holds "
            'them, or a MuData with mod=["rna", "prot"].'
        )
        raise MissingKeyError(msg)
    where, values = f"adata.obsm[{key!r}]", adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        return canonical(sp.csr_matrix(_numbers(values.to_numpy(), where))), list(values.columns), where
    names: Any = adata.uns.get(NAMES_KEY)
    if names is None or len(names) != values.shape[1]:
        msg = (
            f"{where} is an array of {values.shape[1]} columns, which adata.uns[{NAMES_KEY!r}] does not name. Name them: "
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
        msg = f"{where} holds {values.dtype}, expected counts ({error})."
        raise DataError(msg) from error


def _check(adata: AnnData, matrix: sp.csr_matrix, where: str) -> None:
    lost = ~np.isfinite(matrix.data)
    if lost.any():
        cells = np.unique(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[lost])
        msg = (
            f"{where} holds {int(lost.sum()):,} NaN or infinite values, in {len(cells):,} of {adata.n_obs:,} cells (for example "
            f"{adata.obs_names[cells[:3]].tolist()}). Train on cells or proteins without, and predict the others with "
            "sg.tl.predict_protein."
        )
        raise DataError(msg)
    odd = matrix.data[(matrix.data < 0) | (matrix.data % 1 != 0)]
    if len(odd):
        msg = (
            f"{where} holds {len(odd):,} values that are negative or no whole numbers (such as {odd[0]:.3g}), so it looks normalised; "
            "expected counts of antibodies. Pass those: protein= names another key or AnnData, and protein_layer= a layer of it."
        )
        raise DataError(msg)
