"""What changed genes do to the predicted expression of others, as a table."""

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
def in_silico_effects(
    adata: AnnData, gene: str | None = None, *, group: Label | None = None, key: str = InSilicoKeys().uns
) -> pd.DataFrame:
    """Read the effects that :func:`scgalore.tl.perturb_in_silico` wrote: the largest predicted changes of other genes.

    Parameters
    ----------
    {adata}
    gene
        Gene that was changed; ``None`` gives all.
    group
        Group of cells; ``None`` gives all.
    {key}

    Returns
    -------
    Columns ``gene``, ``group``, ``target``, ``effect`` (by the network, in bins of expression) and ``coexpression`` (by regression over the same
    cells, log-normalised), largest effects of each gene first. A copy.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no effects under ``key``, or none of this gene or group.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.get.in_silico_effects(adata, "CD74").head(10)  # doctest: +SKIP
    """
    effects = of_group(read_in_silico_record(adata, key)["effects"], gene, "gene")
    return of_group(effects, group, "group").copy()
