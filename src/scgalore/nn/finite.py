"""Check of network outputs for NaN and infinite values."""

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
    """Raise :class:`~scgalore.errors.DataError` if outputs of a network are NaN or infinite.

    Parameters
    ----------
    outputs
        Outputs by name in the message, one row per cell.
    cells
        Indices of the cells.
    precision
        Dtype of the computation.
    """
    for what, found in outputs.items():
        bad = ~np.isfinite(found).reshape(len(cells), -1).all(axis=1)
        if bad.any():
            other = "" if precision == torch.float32 else "compute with precision='32-true', or "
            msg = (
                f"The network returned NaN or infinite values as {what} of {int(bad.sum()):,} of {len(cells):,} cells, such as cell "
                f"{int(cells[bad][0]):,}; nothing was written. Its weights are damaged, or too large for {precision}: {other}load "
                "other weights."
            )
            raise DataError(msg)
