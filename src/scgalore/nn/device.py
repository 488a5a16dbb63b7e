"""Choice of the torch device."""

from __future__ import annotations

import torch

from scgalore.errors import OptionError

__all__ = ["pick_device"]


def pick_device(accelerator: str) -> torch.device:
    """Convert Lightning's name of an accelerator to a torch device.

    Raises
    ------
    OptionError
        If the accelerator does not exist, or is not available on this machine.
    """
    available = {
        "cpu": True,
        "gpu": torch.cuda.is_available(),
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(accelerator, False):
        there = ", ".join(repr(name) for name, is_there in {"auto": True, **available}.items() if is_there)
        msg = f"accelerator={accelerator!r} is not available on this machine; choose one of {there}."
        raise OptionError(msg)
    return torch.device("cuda" if accelerator == "gpu" else accelerator)
