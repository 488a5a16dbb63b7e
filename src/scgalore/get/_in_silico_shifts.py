"""Shifts of embeddings by in-silico perturbations, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._docs import shared_parameters
from scgalore._keys import InSilicoKeys
from scgalore.data.records import of_group, read_in_silico_record

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scgalore._typing import Label


@shared_parameters
def in_silico_shifts(adata: AnnData, group: Label | None = None, *, key: str = InSilicoKeys().uns) -> pd.DataFrame:
    """Read the shifts that :func:`scgalore.tl.perturb_in_silico` wrote.

    Parameters
    ----------
    {adata}
    group
        Group of cells; ``None`` returns all.
    {key}

    Returns
    -------
    A copy with one row per gene and group, in order of rank, with the columns listed there.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no shifts under ``key``, or the group does not exist.

    See Also
    --------
    scgalore.tl.perturb_in_silico : Perturb genes of unperturbed cells in silico.
    scgalore.get.in_silico_effects : Read effects of in-silico perturbations on other genes as a table.
    scgalore.pl.in_silico_shifts : Draw a volcano plot of in-silico perturbations.

    Examples
    --------
    Here ``adata`` contains results of :func:`scgalore.tl.perturb_in_silico`.

    >>> import scgalore as sg
    >>> best = sg.get.in_silico_shifts(adata).head(10)
    """
    return of_group(read_in_silico_record(adata, key)["shifts"], group, "group").copy()
