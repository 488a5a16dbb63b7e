"""Volcano plot of in-silico perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scgalore._docs import shared_parameters
from scgalore._keys import InSilicoKeys
from scgalore._options import INDEX, Option
from scgalore.data.records import of_group, read_in_silico_record
from scgalore.errors import DataError, OptionError
from scgalore.pl._axes import axes_or_new, finish, set_title
from scgalore.pl._colors import tone
from scgalore.pl._points import name_points

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scgalore._typing import Label, PathLike

N_LABELS = Option("n_labels", INDEX, "", 10)
LIMIT = 0.05
"""False discovery rate of the coloured genes."""


@shared_parameters
def in_silico_shifts(
    adata: AnnData,
    group: Label | None = None,
    *,
    n_labels: int = 10,
    key: str = InSilicoKeys().uns,
    title: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | PathLike | None = None,
    return_fig: bool = False,
) -> Axes | Figure | None:
    """Volcano plot of in-silico perturbations: shift of the cells, and p-value against random genes.

    With a target state, the horizontal axis is the fraction of the distance to it, otherwise the shift relative to that
    of random genes. Genes with a false discovery rate of at most 5 % are coloured. p-values are fractions of random
    genes, so their minimum is one over the number of these.

    Parameters
    ----------
    {adata}
    group
        Group of cells; may be omitted if there is only one.
    n_labels
        Number of genes to label: those with the largest shifts, in either direction, as space permits.
    {key}
    {title}
    {ax}
    {show}
    {save}
    {return_fig}

    Returns
    -------
    The axes, the figure with ``return_fig``, or ``None`` if the figure was shown.

    Raises
    ------
    DataError
        If ``adata`` is not an AnnData, or genes were not compared with random ones.
    MissingKeyError
        If there are no shifts under ``key``, or the group does not exist.
    OptionError
        If ``n_labels`` is not a whole number of at least 0, or there are several groups and ``group`` is ``None``.

    See Also
    --------
    scgalore.tl.perturb_in_silico : Perturb genes of unperturbed cells in silico.
    scgalore.get.in_silico_shifts : Read shifts by in-silico perturbations as a table.

    Examples
    --------
    Here ``adata`` contains results of :func:`scgalore.tl.perturb_in_silico`.

    >>> import scgalore as sg
    >>> ax = sg.pl.in_silico_shifts(adata, show=False)
    """
    n_labels = N_LABELS.check(n_labels)
    record = read_in_silico_record(adata, key)
    shifts = of_group(record["shifts"], group, "group")
    groups = list(dict.fromkeys(shifts["group"].astype(str)))
    if len(groups) > 1:
        msg = f"There are shifts of {len(groups)} groups: {', '.join(map(repr, groups[:5]))}. Pass one as group=."
        raise OptionError(msg)
    towards = "towards" in shifts
    names = ("towards", "towards_p_value", "towards_p_adjusted") if towards else ("log2_ratio", "p_value", "p_adjusted")
    x, p, rate = (shifts[name].to_numpy(dtype=np.float64) for name in names)
    drawn = np.isfinite(x) & np.isfinite(p)
    if not drawn.any():
        msg = "Genes were not compared with random genes, so there are no p-values to plot. Call sg.tl.perturb_in_silico with n_null=100."
        raise DataError(msg)
    axes = axes_or_new(ax, (5.0, 4.0))
    height = -np.log10(p)
    found = drawn & (rate <= LIMIT)
    for which, color in ((drawn & ~found, tone(axes, 0.7)), (found, "C3")):
        axes.scatter(x[which], height[which], s=12, color=color, linewidths=0)
    axes.axvline(0, color=tone(axes, 0.5), linewidth=0.6, zorder=0)
    axes.margins(x=0.12, y=0.15)
    state = record["params"].get("target")
    axes.set_xlabel(
        f"fraction of the distance to {state}" if towards else "log2 shift relative to random genes", fontsize=9
    )
    axes.set_ylabel("-log10 p (random genes)", fontsize=9)
    mode = str(record["params"]["mode"])
    set_title(axes, title, mode if groups[0] == "all" else f"{mode}, {groups[0]}")
    far = np.flatnonzero(drawn)
    far = far[np.argsort(-np.abs(x[far]), kind="stable")]
    first, rest = far[:n_labels], far[n_labels:]
    name_points(
        axes, x[first], height[first], list(shifts["gene"].iloc[first]), others=np.column_stack([x, height])[rest]
    )
    return finish("in_silico_shifts", axes, ax=ax, show=show, save=save, return_fig=return_fig)
