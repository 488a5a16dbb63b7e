"""Outputs that are no numbers: refused before anyone reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scgalore.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["refuse_not_finite_outputs"]


def refuse_not_finite_outputs(
    outputs: Mapping[str, NDArray[Any]], cells: NDArray[np.int64], *, precision: torch.dtype = torch.float32
) -> None:
    """Raise :class:`~scgalore.errors.DataError` if what a network gave for some cells is NaN or infinite.

    Parameters
    ----------
    outputs
        By the names that the message says, one row for each cell.
    cells
        Numbers of the cells.
    precision
        Arithmetic that they were computed in.
    """
    for what, found in outputs.items():
        bad = ~np.isfinite(found).reshape(len(cells), -1).all(axis=1)
        if bad.any():
            other = "" if precision == torch.float32 else "compute with precision='32-true', or "
            msg = (
                f"The network gave NaN or infinity as {what} of {int(bad.sum()):,} of {len(cells):,} cells, such as cell "
                f"{int(cells[bad][0]):,}; nothing was written. Its weights are damaged, or too large for {precision}: {other}load "
                "other weights."
            )
            raise DataError(msg)
