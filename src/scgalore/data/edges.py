"""Edges of groups of cells, in the table of :func:`scgalore.tl.gene_network`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore._options import COUNT, Option
from scgalore.data.texts import same_label
from scgalore.errors import OptionError

if TYPE_CHECKING:
    import pandas as pd

    from scgalore._typing import Label

__all__ = ["N_EDGES", "difference", "of_group"]

N_EDGES = Option("n_edges", COUNT, "")
"""Number of edges to store or to show."""


def of_group(edges: pd.DataFrame, group: Label | None) -> pd.DataFrame:
    """Edges of one group, the strongest first.

    Parameters
    ----------
    edges
        Edges of all groups.
    group
        Name of the group; ``None`` if there is only one.

    Raises
    ------
    OptionError
        If the group does not exist, or there are several and none is given.
    """
    names = edges["group"].astype(str)
    known = list(names.unique())
    name = known[0] if group is None and len(known) == 1 else same_label(group, known)
    if name not in known:
        msg = f"group={group!r}: the network has {', '.join(map(repr, known))}. Pass one of them."
        raise OptionError(msg)
    return edges[names == name]


def difference(edges: pd.DataFrame, group: Label | None, versus: Label) -> pd.DataFrame:
    """Differences of weights between two groups, for edges of both, the largest difference first.

    Parameters
    ----------
    edges
        Edges of all groups.
    group, versus
        Names of the groups.

    Returns
    -------
    Columns ``source``, ``target`` and ``weight``.

    Raises
    ------
    OptionError
        If a group does not exist or is not given.
    """
    own, other = (of_group(edges, name) for name in (group, versus))
    both = own.merge(other, on=["source", "target"], suffixes=("", "_other"), validate="one_to_one")
    both["weight"] -= both["weight_other"]
    order = (-both["weight"].abs()).argsort(kind="stable")
    return both.iloc[order][["source", "target", "weight"]].reset_index(drop=True)
