"""Submissions to the Virtual Cell Challenge."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from scgalore import _logging as logg
from scgalore._files import whole_file
from scgalore.data.columns import read_column
from scgalore.data.matrix import CellMatrix
from scgalore.errors import DataError, OptionError
from scgalore.perturb.labels.conditions import Conditions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import Control

__all__ = ["write_vcc"]

# Format of a submission, as in cell-eval prep and the challenge's data.
LABEL, CONTROL_LABEL = "target_gene", "non-targeting"
N_GENES, MAX_CELLS = 18_080, 200_000
MAX_LOGGED = 15
MEMBERS = {"pred.h5ad.zst", "watermark.txt"}


def write_vcc(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    genes: Sequence[str] | str | os.PathLike[str] | None = None,
    pert_key: str = "perturbation",
    control: Control = None,
    layer: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write predicted cells as a submission to the Virtual Cell Challenge.

    Everything is checked before the file is written, completely or not at all. It is packed by
    ``cell-eval prep`` (extra ``eval``), which needs the programs ``zstd`` and ``tar``.

    Parameters
    ----------
    adata
        Predicted cells and control cells, log-normalised, or counts, which ``cell-eval`` normalises to the median
        depth and log-transforms. At most 200,000 cells.
    path
        File to write, ending in ``.vcc``.
    genes
        The challenge's genes in its order, or the path of its ``gene_names.csv`` (no header, names in the first
        column). ``adata`` must have exactly these genes, in any order. ``None`` uses ``adata.var_names``.
    pert_key
        Column of ``adata.obs`` with the perturbed gene of each cell. It is written as ``obs["target_gene"]``, and
        control as ``"non-targeting"``.
    control
        Label of control in that column, or several; ``None`` detects it.
    layer
        Layer to write; ``None`` is ``adata.X``.
    overwrite
        Whether an existing file at ``path`` may be replaced.

    Raises
    ------
    OptionError
        If the path exists or does not end in ``.vcc``, or if ``cell-eval``, ``zstd`` or ``tar`` is missing.
    MissingKeyError
        If ``adata.obs`` does not have the column.
    DataError
        If labels, genes or values are invalid for a submission, or packing fails.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.perturb.write_vcc(cells, "prediction.vcc", genes="gene_names.csv")  # doctest: +SKIP
    """
    target = Path(path).expanduser().absolute()
    _check_target(target, overwrite=overwrite)
    labels = _labels(adata, pert_key, control)
    names = _gene_list(genes) if genes is not None else list(map(str, adata.var_names))
    order = _gene_order(list(map(str, adata.var_names)), names)
    matrix = _checked_matrix(adata, layer)
    _check_programs()
    with logg.step(f"packing {adata.n_obs:,} cells for the Virtual Cell Challenge"), TemporaryDirectory() as folder:
        _write_input(Path(folder), matrix, order, names, labels)
        with whole_file(target) as draft:
            _pack(Path(folder), draft, len(names))


def _check_target(target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".vcc":
        msg = f"path={str(target)!r}: expected a file name that ends in .vcc."
        raise OptionError(msg)
    if target.is_dir():
        msg = f"{target} is a folder; pass the path of a file."
        raise OptionError(msg)
    if target.parent.exists() and not target.parent.is_dir():
        msg = f"{target.parent} is a file, not a folder. Pass another path."
        raise OptionError(msg)
    if target.exists() and not overwrite:
        msg = f"{target} already exists. Pass overwrite=True to replace it, or another path."
        raise OptionError(msg)


def _check_programs() -> None:
    cures = {
        'pip install "scgalore[eval]"': ["cell-eval"] if find_spec("cell_eval") is None else [],
        "your system's package manager (apt install zstd tar, brew install zstd, conda install zstd tar)": [
            program for program in ("zstd", "tar") if shutil.which(program) is None
        ],
    }
    missing = {cure: names for cure, names in cures.items() if names}
    if missing:
        what = "; ".join(f"{' and '.join(names)}, install with {cure}" for cure, names in missing.items())
        msg = f"Packing a submission needs programs that were not found: {what}."
        raise OptionError(msg)


def _labels(adata: AnnData, pert_key: str, control: Control) -> NDArray[np.object_]:
    labels = read_column(adata.obs, pert_key, hint="Pass the column of perturbed genes as pert_key=.")
    if adata.n_obs > MAX_CELLS:
        msg = f"{adata.n_obs:,} cells; a submission has at most {MAX_CELLS:,}. Sample fewer cells per perturbation."
        raise DataError(msg)
    conditions = Conditions.from_labels(labels, control=control)
    if n_missing := int((conditions.codes < 0).sum()):
        left_out = f" ({', '.join(map(repr, conditions.left_out))})" if conditions.left_out else ""
        msg = f"{n_missing:,} cells have no perturbation or control label in obs[{pert_key!r}]{left_out}. Remove them."
        raise DataError(msg)
    several = [name for name, genes in zip(conditions.names, conditions.genes, strict=True) if len(genes) > 1]
    if several:
        msg = f"Expected one perturbed gene per cell, as in the challenge; found {', '.join(several[:5])}. Remove these cells."
        raise DataError(msg)
    return np.array([CONTROL_LABEL, *conditions.perturbations], dtype=object)[conditions.codes]


def _gene_list(genes: Sequence[str] | str | os.PathLike[str]) -> list[str]:
    if not isinstance(genes, str | os.PathLike):
        return list(map(str, genes))
    path = Path(genes).expanduser()
    if not path.is_file():
        msg = f"genes={os.fspath(genes)!r} is not a file; expected gene names, or the path of gene_names.csv."
        raise OptionError(msg)
    with path.open(newline="", encoding="utf-8") as file:
        return [row[0] for row in csv.reader(file) if row]


def _gene_order(own: list[str], wanted: list[str]) -> NDArray[np.int64]:
    for what, names in (("adata.var_names", own), ("genes", wanted)):
        if len(set(names)) < len(names):
            repeated = Counter(names).most_common(1)[0][0]
            msg = f"{what} contains {repeated!r} more than once; expected each gene once."
            raise DataError(msg)
    position = {name: i for i, name in enumerate(own)}
    lacking, extra = [g for g in wanted if g not in position], sorted(position.keys() - set(wanted))
    if lacking or extra:
        parts = [
            f"{len(names):,} {verb}, such as {', '.join(names[:5])}"
            for names, verb in ((lacking, "are missing"), (extra, "are not in the list"))
            if names
        ]
        msg = f"adata must have exactly the {len(wanted):,} genes of the list: {'; '.join(parts)}."
        raise DataError(msg)
    if len(wanted) != N_GENES:
        logg.warning(f"Writing {len(wanted):,} genes; the challenge of 2025 had {N_GENES:,}.")
    return np.array([position[name] for name in wanted], dtype=np.int64)


def _checked_matrix(adata: AnnData, layer: str | None) -> CellMatrix:
    matrix = CellMatrix.from_adata(adata, layer=layer)
    matrix.check()
    values = matrix.summary()
    if not values.is_whole and values.max >= MAX_LOGGED:
        msg = (
            f"{matrix.name} contains fractional values up to {values.max:.4g}; expected integer counts, or logarithms below {MAX_LOGGED}. "
            "Check that predicted and control cells are on the same scale."
        )
        raise DataError(msg)
    return matrix


def _write_input(
    folder: Path, matrix: CellMatrix, order: NDArray[np.int64], names: list[str], labels: NDArray[np.object_]
) -> None:
    import pandas as pd
    from anndata import AnnData

    obs = pd.DataFrame({LABEL: labels}, index=[f"cell{i}" for i in range(matrix.n_obs)])
    rows = matrix.rows(np.arange(matrix.n_obs))[:, order]
    rows.sort_indices()
    AnnData(rows, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(folder / "cells.h5ad")
    with (folder / "genes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([name] for name in names)


def _pack(folder: Path, target: Path, n_genes: int) -> None:
    command = [
        sys.executable,
        "-m",
        "cell_eval",
        "prep",
        "-i",
        str(folder / "cells.h5ad"),
        "-g",
        str(folder / "genes.csv"),
    ]
    command += ["-o", str(target), "-p", LABEL, "-n", CONTROL_LABEL, "-e", "32"]
    command += ["--expected-gene-dim", str(n_genes), "--max-cell-dim", str(MAX_CELLS)]
    # In the folder, since Python looks for modules in the working directory first.
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    # cell-eval does not check the exit status of the programs it calls.
    if run.returncode or not _is_submission(target):
        reason = (run.stderr or run.stdout).strip().splitlines()[-1:] or ["no message"]
        msg = f"cell-eval prep failed: {reason[0]}"
        raise DataError(msg)


def _is_submission(path: Path) -> bool:
    if not path.is_file() or not tarfile.is_tarfile(path):
        return False
    with tarfile.open(path) as packed:
        return {member.name for member in packed if member.size} == MEMBERS
