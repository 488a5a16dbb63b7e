"""Effects of in-silico perturbations on the predicted expression of other genes, as a table."""

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
        Perturbed gene; ``None`` returns all.
    group
        Group of cells; ``None`` returns all.
    {key}

    Returns
    -------
    A copy with columns ``gene``, ``group``, ``target``, ``effect`` (predicted by the network, in expression bins) and
    ``coexpression`` (from regression over the same cells, log-normalised), largest effects of each gene first.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData.
    MissingKeyError
        If there are no effects under ``key``, or none for this gene or group.

    See Also
    --------
    scgalore.tl.perturb_in_silico : Perturb genes of unperturbed cells in silico.
    scgalore.get.in_silico_shifts : Read shifts by in-silico perturbations as a table.

    Examples
    --------
    Here ``adata`` contains results of :func:`scgalore.tl.perturb_in_silico`.

    >>> import scgalore as sg
    >>> largest = sg.get.in_silico_effects(adata, "CD74").head(10)
    """
    effects = of_group(read_in_silico_record(adata, key)["effects"], gene, "gene")
    return of_group(effects, group, "group").copy()
