"""Convert public perturbation data from different sources to one format."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from scgalore import _logging as logg
from scgalore._uns import to_uns
from scgalore.data.matrix import CellMatrix
from scgalore.data.scale import scale_of
from scgalore.datasets.registry import SOURCES
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.genes import ensembl_id, standardise
from scgalore.perturb.labels.conditions import Conditions
from scgalore.perturb.labels.control import CONTROL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from anndata import AnnData

    from scgalore.datasets.registry import Source

__all__ = ["UNS_KEY", "make_canonical", "to_canonical"]

UNS_KEY = "dataset"
"""Key of the provenance in ``uns``."""


@dataclass(frozen=True)
class _Layout:
    """Columns used by a source; of several candidates, the first one present is used."""

    label: str
    separator: str
    cell_types: tuple[str, ...] = ("cell_type",)
    batches: tuple[str, ...] = ("batch",)
    ids: tuple[str, ...] = ("ensembl_id",)
    symbols: str | None = None  # None: var_names
    cell_type: str | None = None  # of all cells, if there is no column
    outdated_uns: tuple[str, ...] = ()
    outdated_obs: tuple[str, ...] = ()


_LAYOUTS: dict[Source, _Layout] = {
    "gears": _Layout(
        "condition",
        "+",
        symbols="gene_name",
        # Keyed by names that start with the cell type, and contains Ensembl ids and positions.
        outdated_uns=(
            "rank_genes_groups_cov_all",
            "top_non_dropout_de_20",
            "top_non_zero_de_20",
            "non_dropout_gene_idx",
            "non_zeros_gene_idx",
        ),
        outdated_obs=("condition_name",),
    ),
    # The cell line is more informative than its origin ("lymphoblasts"). One file spells the column of ids differently.
    "scperturb": _Layout(
        "perturbation",
        "_",
        cell_types=("cell_line", "celltype"),
        batches=("batch", "gem_group", "gemgroup"),
        ids=("ensembl_id", "ensemble_id"),
    ),
    "perturbench": _Layout("perturbation", "+"),
    "vcc": _Layout("target_gene", "+", ids=("ensembl_id", "gene_id"), cell_type="H1"),
}

_UNKNOWN = frozenset({"*", "", "nan", "None"})
"""Labels in scPerturb's files for cells without a known guide, besides missing values."""

# A guide vector of Adamson et al. 2016 after its target, such as CREB1_pDS269 or 3x_neg_ctrl_pMJ144-1.
_VECTOR = re.compile(r"_p(?:DS|BA|MJ)\d+(?:-\d+)?$")
# That study names two genes after their proteins.
_PROTEINS = {"PERK": "EIF2AK3", "IRE1": "ERN1"}

_BARCODE = re.compile(r"[ACGT]{8,}-(\d+)")


def to_canonical(adata: AnnData, *, source: Source, cell_type: str | None = None) -> AnnData:
    """Convert a public perturbation data set to the format that scgalore's functions expect.

    Parameters
    ----------
    adata
        Cells by genes, as read from the file.
    source
        Source of the file: ``"gears"`` (``obs["condition"]``, Ensembl ids), ``"scperturb"``
        (``obs["perturbation"]`` with genes joined by ``_``), ``"perturbench"`` (genes joined by ``+``), or ``"vcc"``
        for the Virtual Cell Challenge (``obs["target_gene"]``).
    cell_type
        Type of all cells, if it is missing or wrong in the file. GEARS' file of Norman 2019 is labelled A549,
        although its cells are K562.

    Returns
    -------
    A copy with unchanged matrices.

    - ``obs["perturbation"]``: categorical of genes joined by ``+``, and ``"control"``; missing if the guide is unknown.
      One label per set of genes, in order of first occurrence in the file, since GEARS' splits depend on it.
      ``obs["perturbation_original"]``: the label in the file.
    - ``obs["cell_type"]``, and ``obs["batch"]`` if the file has batches, or barcodes that end in a lane number.
    - ``var_names``: symbols as in the study. Of genes that share a symbol, all but the current owner of the symbol
      become ``SYMBOL_ENSG...``. ``var["ensembl_id"]`` if ids are known.
    - ``uns["dataset"]``: ``source``, ``expression`` (content of ``X``: ``"counts"``, ``"log-normalised"`` or
      ``"other"``) and ``notes`` on corrected or derived entries.

    Other entries of ``obs``, ``var`` and ``uns`` are kept, except GEARS' tables of differential expression, which use
    the old names.

    Raises
    ------
    OptionError
        If the source is not one of the four.
    MissingKeyError
        If the file lacks a column that the source's files have.
    DataError
        If a label cannot be parsed or there is no control.

    See Also
    --------
    scgalore.datasets.load_dataset : Read a data set by its name.
    scgalore.pp.split_perturbations : Split perturbations into training, validation and test.
    scgalore.pp.collapse_guides : Map guides to the genes they target.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scgalore as sg
    >>> from anndata import AnnData
    >>> obs = pd.DataFrame({"perturbation": ["control", "KLF1", "MAP2K6_KLF1"]}, index=list("abc"))
    >>> adata = AnnData(np.ones((3, 2), "float32"), obs=obs, var=pd.DataFrame(index=["KLF1", "MAP2K6"]))
    >>> sg.datasets.to_canonical(adata, source="scperturb", cell_type="K562").obs["perturbation"].to_list()
    ['control', 'KLF1', 'MAP2K6+KLF1']
    """
    if source not in SOURCES:
        msg = f"source={source!r}: expected one of {', '.join(SOURCES)}."
        raise OptionError(msg)
    result = adata.to_memory() if adata.isbacked else adata.copy()
    make_canonical(result, source=source, cell_type=cell_type)
    return result


def make_canonical(adata: AnnData, *, source: Source, cell_type: str | None = None) -> None:
    """Like :func:`to_canonical`, in place; on failure the object is unchanged."""
    layout = _LAYOUTS[source]
    if layout.label not in adata.obs:
        msg = f"obs has no column {layout.label!r}, where {source} stores the perturbation; it has {_names(adata.obs.columns)}."
        raise MissingKeyError(msg)
    labels = adata.obs[layout.label].astype(object)
    known = labels.map(_known_label) if source == "scperturb" else labels
    conditions = Conditions.from_labels(known.to_numpy(), separator=layout.separator)
    notes: list[str] = []
    types = _cell_types(adata, layout, cell_type, source, notes)
    batches = _batches(adata, layout, notes)
    names, ids = _gene_names(adata, layout, source)
    expression = _expression(adata)

    outdated = [key for key in layout.outdated_uns if key in adata.uns]
    if outdated:
        notes.append(f"removed, since they use the old names: {', '.join(outdated)}")
    obs = adata.obs.drop(columns=list(layout.outdated_obs), errors="ignore")
    obs["perturbation"] = pd.Categorical.from_codes(conditions.codes, pd.Index(_as_written(conditions), dtype=object))
    obs["perturbation_original"] = pd.Categorical(labels)
    obs["cell_type"] = types
    if batches is not None:
        obs["batch"] = batches
    var = adata.var.set_axis(pd.Index(names, dtype=object), axis=0)
    if ids is not None:
        var["ensembl_id"] = ids
    adata.obs, adata.var = obs, var
    for key in outdated:
        del adata.uns[key]
    adata.uns[UNS_KEY] = to_uns({"source": source, "expression": expression, "notes": notes})
    for note in notes:
        logg.info(f"    {note}")


def _expression(adata: AnnData) -> str:
    """Content of ``X``: counts, log-normalised or other."""
    matrix = CellMatrix.from_adata(adata)
    try:
        matrix.check()
        return {"counts": "counts", "log1p": "log-normalised"}[scale_of(matrix, uns=adata.uns).kind]
    except DataError:
        return "other"


def _as_written(conditions: Conditions) -> list[str]:
    """Label of each condition, with genes in the order of its first occurrence."""
    written = dict(zip(conditions.labels, conditions.written, strict=True))
    return ["+".join(written[spellings[0]]) or CONTROL if spellings else CONTROL for spellings in conditions.spellings]


def _known_label(label: object) -> object:
    """Genes of an scPerturb label; ``None`` if the guide is unknown."""
    if not isinstance(label, str) or label in _UNKNOWN:
        return None
    target = _VECTOR.sub("", label)
    if target == label:
        return label
    if target.endswith("(mod)") or target.endswith("neg_ctrl"):
        return CONTROL
    return "_".join(_PROTEINS.get(part, part) for part in target.removesuffix("_only").split("_"))


def _cell_types(
    adata: AnnData, layout: _Layout, cell_type: str | None, source: Source, notes: list[str]
) -> pd.Categorical[Any]:
    column = next((key for key in layout.cell_types if key in adata.obs), None)
    stated = None if column is None else pd.Categorical(adata.obs[column].astype(object))
    if cell_type is None and stated is not None:
        if source == "gears" and list(stated.categories) == ["A549"]:
            logg.warning(
                'The cells are labelled A549. In GEARS\' file of Norman 2019 they are K562: pass cell_type="K562".'
            )
        return stated
    named = cell_type or layout.cell_type
    if named is None:
        msg = f"obs has none of the columns {_names(layout.cell_types)}, so the cell type is unknown. Pass cell_type=."
        raise MissingKeyError(msg)
    if stated is not None and list(stated.categories) != [named]:
        notes.append(f"cell type set to {named}; the file has {', '.join(map(str, stated.categories))}")
    return pd.Categorical([named] * adata.n_obs)


def _batches(adata: AnnData, layout: _Layout, notes: list[str]) -> pd.Categorical[Any] | None:
    column = next((key for key in layout.batches if key in adata.obs), None)
    if column is not None:
        return pd.Categorical(adata.obs[column].astype(object).map(lambda b: b if pd.isna(b) else str(b)))
    # Cell Ranger appends lane numbers to barcodes.
    lanes = [found[1] if (found := _BARCODE.fullmatch(name)) else "" for name in adata.obs_names]
    if not all(lanes) or len(set(lanes)) < 2:
        return None
    notes.append("batch read from the lane number in the barcodes")
    return pd.Categorical(lanes)


def _gene_names(adata: AnnData, layout: _Layout, source: Source) -> tuple[list[str], list[str] | None]:
    """Unique symbols, and Ensembl ids (``""`` if unknown) or ``None`` if no id is known."""
    column = next((key for key in layout.ids if key in adata.var), None)
    written = adata.var_names if column is None else adata.var[column]
    ids = [(ensembl_id(str(name)) or "") for name in written]
    symbols = list(map(str, adata.var_names))
    if layout.symbols is not None:
        if layout.symbols not in adata.var:
            msg = f"var has no column {layout.symbols!r}, where {source} stores the symbols; it has {_names(adata.var.columns)}."
            raise MissingKeyError(msg)
        found = adata.var[layout.symbols].astype(object)
        symbols = [str(s) if pd.notna(s) and s != "" else name for s, name in zip(found, adata.var_names, strict=True)]
    return _unique(symbols, ids), ids if any(ids) else None


def _unique(symbols: list[str], ids: list[str]) -> list[str]:
    """Make duplicate symbols unique, in CELLxGENE's format if they have ids."""
    shared = [symbol for symbol, n in Counter(symbols).items() if n > 1]
    names = list(symbols)
    for symbol in shared:
        places = [place for place, other in enumerate(symbols) if other == symbol]
        today = standardise(ids[place] for place in places)
        keeper = places[today.index(symbol)] if symbol in today else places[0]
        for place in places:
            if place != keeper and ids[place]:
                names[place] = f"{symbol}_{ids[place]}"
    # Symbols without an id are numbered, as in AnnData.
    taken = set(names)
    seen: set[str] = set()
    for place, name in enumerate(names):
        number = 0
        while names[place] in seen:
            number += 1
            if (numbered := f"{name}-{number}") not in taken:
                names[place] = numbered
        seen.add(names[place])
    return names


def _names(keys: Sequence[str] | pd.Index) -> str:
    return ", ".join(map(repr, keys)) or "no columns"
