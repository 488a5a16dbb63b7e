"""Load the tensors of a checkpoint into a network, and account for every one of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from scgalore.errors import WeightsError
from scgalore.weights.checkpoint import Checkpoint
from scgalore.weights.finite import refuse_not_finite

__all__ = ["LoadReport", "compare_tensors", "load_tensors"]


class Loadable(Protocol):
    """Network with the interface of :class:`scgalore.nn.CellNetwork` that loading needs."""

    @property
    def required(self) -> tuple[str, ...]:
        """Prefixes of the names of tensors that a checkpoint must contain."""
        ...

    def is_head_tensor(self, name: str) -> bool:
        """Whether the size of this tensor depends on the task."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""
        ...


@dataclass(frozen=True)
class LoadReport:
    """Account of all tensors of a network and a checkpoint.

    Attributes
    ----------
    loaded
        Names of loaded tensors, which are in both.
    random
        Names of tensors of the network that kept their initial values.
    ignored
        Names of tensors of the checkpoint that are not in the network.

    See Also
    --------
    scgalore.weights.load_tensors : Load tensors into a network.

    Examples
    --------
    >>> import scgalore as sg
    >>> report = sg.model.load("scgpt-mini").load_report
    >>> report.random
    ()
    """

    loaded: tuple[str, ...]
    random: tuple[str, ...]
    ignored: tuple[str, ...]

    def summary(self) -> str:
        """One line with the numbers of tensors that were loaded, left random and ignored, by part of the network."""
        n = len(self.loaded) + len(self.random)
        return f"{len(self.loaded)} of {n} tensors loaded; left random: {_parts(self.random)}; ignored: {_parts(self.ignored)}"

    def __str__(self) -> str:
        lines = [self.summary()]
        for verdict in ("random", "ignored"):
            lines += [f"  {verdict:8}{name}" for name in getattr(self, verdict)]
        return "\n".join(lines)


def load_tensors(
    network: Loadable, checkpoint: Checkpoint, *, allow_random: tuple[str, ...] | None = None
) -> LoadReport:
    """Load tensors by name, cast to the dtypes of the network; if there is an error, nothing is changed.

    What the network requires has to match exactly: neither may one of these tensors stay random, nor one of the
    checkpoint's be ignored. Heads on the cell embedding that have another size than the checkpoint's stay random.

    Parameters
    ----------
    network
        Its ``state_dict`` has the names of the checkpoint.
    checkpoint
        What to load.
    allow_random
        First parts of the names that may stay random; by default all that the network does not require.

    Raises
    ------
    WeightsError
        If shapes differ, a tensor would stay random that may not, or one that is used holds NaN or infinity.

    See Also
    --------
    scgalore.weights.read_checkpoint : Read a checkpoint folder of any layout.
    scgalore.weights.LoadReport : Account of loaded tensors.

    Examples
    --------
    >>> import scgalore as sg
    >>> model = sg.model.load("scgpt-mini")
    >>> checkpoint = sg.weights.read_scgpt(sg.weights.fetch_weights("scgpt-mini"))
    >>> report = sg.weights.load_tensors(model.network, checkpoint)
    >>> report.random
    ()
    """
    report = compare_tensors(network, checkpoint, allow_random=allow_random)
    own = network.state_dict()
    used = {name: checkpoint.tensors[name] for name in report.loaded}
    dtypes = {name: own[name].dtype for name in used}
    refuse_not_finite(used, where=checkpoint.weights_file, dtypes=dtypes)
    with torch.no_grad():
        for name, tensor in used.items():
            own[name].copy_(tensor)
    return report


def compare_tensors(
    network: Loadable, checkpoint: Checkpoint, *, allow_random: tuple[str, ...] | None = None
) -> LoadReport:
    """Say what :func:`load_tensors` would do, for a network that needs no memory, on torch's "meta" device, as well.

    Parameters
    ----------
    network, checkpoint, allow_random
        As for :func:`load_tensors`.

    Raises
    ------
    WeightsError
        If shapes differ, or a tensor would stay random that may not.
    """
    own = network.state_dict()
    misfits = {name for name, tensor in checkpoint.tensors.items() if name in own and own[name].shape != tensor.shape}
    if wrong := sorted(name for name in misfits if not network.is_head_tensor(name)):
        ours, theirs = own[wrong[0]], checkpoint.tensors[wrong[0]]
        msg = (
            f"{wrong[0]} is {tuple(theirs.shape)} in {checkpoint.folder} and {tuple(ours.shape)} in the network. Build "
            "the network from the checkpoint's own args and vocabulary."
        )
        raise WeightsError(msg)
    report = LoadReport(
        loaded=tuple(name for name in own if name in checkpoint.tensors and name not in misfits),
        random=tuple(name for name in own if name not in checkpoint.tensors or name in misfits),
        ignored=tuple(name for name in checkpoint.tensors if name not in own or name in misfits),
    )
    _check(report, checkpoint, network.required, allow_random)
    return report


def _check(
    report: LoadReport, checkpoint: Checkpoint, required: tuple[str, ...], allow_random: tuple[str, ...] | None
) -> None:
    lost = [name for name in report.ignored if _part(name) in required]
    if lost:
        msg = (
            f"The network has no place for {_few(lost)} of {checkpoint.folder}. Does args.json belong to these weights?"
        )
        raise WeightsError(msg)
    left = [
        name
        for name in report.random
        if _part(name) in required or (allow_random is not None and not name.startswith(allow_random))
    ]
    if left:
        msg = (
            f"{_few(left)} would stay random: {checkpoint.folder} holds no such tensor. Its other tensors: "
            f"{_few(report.ignored) or 'none'}. Is the checkpoint whole, and do its args belong to it?"
        )
        raise WeightsError(msg)


def _part(name: str) -> str:
    return name.partition(".")[0]


def _parts(names: Iterable[str]) -> str:
    counts = Counter(map(_part, names))
    return ", ".join(f"{part} ({n})" for part, n in counts.items()) or "none"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
