"""Selection of regulators for plots of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["sources_of"]


def sources_of(edges: pd.DataFrame, source: str | Sequence[str] | None) -> list[str]:
    """Requested regulators, checked to have edges; by default the one with the strongest edge."""
    if source is None:
        return [str(edges["source"].iloc[0])]
    sources = [source] if isinstance(source, str) else list(source)
    known = set(edges["source"])
    if absent := [name for name in sources if name not in known]:
        msg = (
            f"source={absent[0]!r} has no edges; {', '.join(map(repr, list(dict.fromkeys(edges['source']))[:5]))}, ... have. "
            "Store all edges with sg.tl.gene_network(adata, n_edges=None)."
        )
        raise OptionError(msg)
    return sources
