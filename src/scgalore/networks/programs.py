"""Gene programs: enriched gene sets, and activity in cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import scipy.sparse as sp
    from numpy.typing import NDArray

__all__ = ["activities", "enrichment"]


def enrichment(programs: NDArray[np.int64], n_programs: int, sets: Mapping[str, NDArray[np.int64]]) -> pd.DataFrame:
    """Enrichment of gene sets in programs by the hypergeometric test.

    Parameters
    ----------
    programs
        Index of the program of each gene, -1 for genes in none, int64 ``(n_genes,)``; the background is all of these
        genes.
    n_programs
        Number of programs.
    sets
        Positions of the genes of each set in ``programs``.

    Returns
    -------
    One row per program and set that share a gene, smallest p-value first: ``program`` (index), ``gene_set``,
    ``n_overlap``, ``n_program``, ``n_set``, ``p`` and ``fdr``, by Benjamini and Hochberg over all pairs of program and
    set, including those without a common gene.
    """
    from scipy.stats import false_discovery_control, hypergeom  # slow to import

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
    """Mean expression of the genes of each program in each cell, each gene scaled to mean 0 and standard deviation 1.

    Parameters
    ----------
    chunks
        Index of the first cell and expression of the cells of each chunk.
    n_obs
        Number of cells.
    programs
        Index of the program of each column, -1 for columns in none.
    n_programs
        Number of programs.
    means, deviations
        Mean and standard deviation of each column, over all cells; constant columns count as 0.

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
