"""Where to compute."""

from __future__ import annotations

import torch

from scgalore.errors import OptionError

__all__ = ["pick_device"]


def pick_device(accelerator: str) -> torch.device:
    """Turn Lightning's word for an accelerator into a device of torch.

    Raises
    ------
    OptionError
        If there is no such word, or no such device on this machine.
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
        msg = f"accelerator={accelerator!r} is not on this machine; choose one of {there}."
        raise OptionError(msg)
    return torch.device("cuda" if accelerator == "gpu" else accelerator)
