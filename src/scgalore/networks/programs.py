"""Programs of genes: sets that they are enriched in, and how active they are in cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, hypergeom

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import scipy.sparse as sp
    from numpy.typing import NDArray

__all__ = ["activities", "enrichment"]


def enrichment(programs: NDArray[np.int64], n_programs: int, sets: Mapping[str, NDArray[np.int64]]) -> pd.DataFrame:
    """Gene sets that programs have more genes of than chance gives, by the hypergeometric distribution.

    Parameters
    ----------
    programs
        Number of the program of each gene, -1 for genes in none, int64 ``(n_genes,)``: all genes that could have been in one.
    n_programs
        Number of programs.
    sets
        Positions of the genes of each set among these.

    Returns
    -------
    One row for each program and set that share a gene, the smallest p-value first: ``program`` (number), ``gene_set``, ``n_overlap``,
    ``n_program``, ``n_set``, ``p`` and ``fdr``, by Benjamini and Hochberg over all programs and sets, those without a gene in common among
    them.
    """
    n_genes, names = len(programs), list(sets)
    sizes = np.bincount(programs[programs >= 0], minlength=n_programs)
    overlaps = np.zeros((n_programs, len(names)), dtype=np.int64)
    for at, genes in enumerate(sets.values()):
        inside = programs[genes]
        overlaps[:, at] = np.bincount(inside[inside >= 0], minlength=n_programs)
    of_sets = np.array([len(genes) for genes in sets.values()], dtype=np.int64)
    p = hypergeom.sf(overlaps - 1, n_genes, of_sets[None], sizes[:, None])
    fdr = false_discovery_control(p.ravel()).reshape(p.shape) if p.size else p
    program, gene_set = np.nonzero(overlaps)
    table = pd.DataFrame(
        {
            "program": program,
            "gene_set": [names[at] for at in gene_set],
            "n_overlap": overlaps[program, gene_set],
            "n_program": sizes[program],
            "n_set": of_sets[gene_set],
            "p": p[program, gene_set],
            "fdr": fdr[program, gene_set],
        }
    )
    return table.sort_values(["p", "n_overlap"], ascending=[True, False], kind="stable", ignore_index=True)


def activities(
    chunks: Iterable[tuple[int, sp.csr_matrix]],
    n_obs: int,
    programs: NDArray[np.int64],
    n_programs: int,
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Mean expression of the genes of each program in each cell, each gene brought to mean 0 and standard deviation 1.

    Parameters
    ----------
    chunks
        Number of the first cell and expression of some cells, one chunk after the other.
    n_obs
        Number of cells.
    programs
        Number of the program of each column, -1 for columns in none.
    n_programs
        Number of programs.
    means, deviations
        Of each column, over all cells; constant columns count as 0.

    Returns
    -------
    Float32 ``(n_obs, n_programs)``.
    """
    weights = np.zeros((len(programs), n_programs))
    columns = np.flatnonzero(programs >= 0)
    scale = np.divide(1, deviations, out=np.zeros_like(deviations), where=deviations > 0)
    weights[columns, programs[columns]] = scale[columns]
    weights /= np.bincount(programs[columns], minlength=n_programs)
    found = np.empty((n_obs, n_programs), dtype=np.float32)
    for start, rows in chunks:
        found[start : start + rows.shape[0]] = rows @ weights - means @ weights
    return found
