"""Models in folders: what is written beside the weights, and how any known folder becomes a network."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd
import torch

from scgalore import __version__
from scgalore import _logging as logg
from scgalore.data.vocab import GeneVocab
from scgalore.errors import WeightsError
from scgalore.model.families import family_of_folder
from scgalore.model.screen_files import read_screen, screen_files
from scgalore.weights import load_tensors, resolve_model_folder, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgalore._typing import PathLike
    from scgalore.model.family import Family
    from scgalore.model.screens import ScreenMemory
    from scgalore.nn import CellNetwork
    from scgalore.weights import LoadReport

__all__ = ["Provenance", "StoredModel", "memory_config", "read_memory", "read_model", "write_model"]

HISTORY = "history.csv"


class Provenance(TypedDict):
    """Where weights come from: registry name or folder, hash of the file, its layout ("memory" while there is no file).

    ``base`` is the name of what they were trained from, where the file tells; it is the name that stood here when the
    model was saved.
    """

    name: str
    sha256: str
    layout: str
    base: str


@dataclass(frozen=True)
class StoredModel:
    """A model as read from a folder."""

    family: Family
    network: CellNetwork
    vocab: GeneVocab
    classes: tuple[str, ...]
    provenance: Provenance
    report: LoadReport
    history: pd.DataFrame
    screen: ScreenMemory | None


def read_model(model: PathLike) -> StoredModel:
    """Read a model from a registry name or a folder in any known layout.

    Parameters
    ----------
    model
        As for :func:`scgalore.model.load`.
    """
    folder, entry = resolve_model_folder(model)
    family = family_of_folder(folder)
    checkpoint = family.read(folder, args=None if entry is None else entry.args)
    vocab = GeneVocab.from_dict(checkpoint.vocab)
    config = family.config_of(checkpoint, vocab)
    # Heads that the file lacks stay random: the same in every process, and at no cost to the user's generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = family.network(config)
    report = load_tensors(network, checkpoint)
    name = entry.name if entry is not None else str(folder)
    logg.info(f"loaded {name}: {report.summary()}")
    base = checkpoint.args["weights"]["name"] if "weights" in checkpoint.args else ""
    provenance = Provenance(name=name, sha256=checkpoint.sha256, layout=checkpoint.layout, base=base)
    history = _read_history(folder / HISTORY)
    classes, screen = read_memory(folder, checkpoint.args) if checkpoint.layout == "scgalore" else ((), None)
    return StoredModel(family, network.eval(), vocab, classes, provenance, report, history, screen)


def write_model(
    folder: PathLike,
    *,
    family: Family,
    network: CellNetwork,
    vocab: GeneVocab,
    classes: tuple[str, ...],
    provenance: Provenance,
    history: pd.DataFrame,
    screen: ScreenMemory | None = None,
    evaluation: Mapping[str, Any] | None = None,
    overwrite: bool,
) -> None:
    """Write a model in our own layout; see :meth:`scgalore.model.CellModel.save`."""
    config: dict[str, Any] = {
        "scgalore": __version__,
        "family": family.name,
        "network": network.config.to_dict(),
        **memory_config(classes, screen),
        "weights": dict(provenance),
    }
    extra: dict[str, str | bytes] = {} if screen is None else screen_files(screen, provenance, evaluation)
    if not history.empty:
        text = StringIO()
        history.to_csv(text, index_label="epoch")
        extra[HISTORY] = text.getvalue()
    write_checkpoint(
        folder, config=config, vocab=vocab.to_dict(), tensors=network.state_dict(), extra=extra, overwrite=overwrite
    )


def memory_config(classes: tuple[str, ...], screen: ScreenMemory | None) -> dict[str, Any]:
    """Entries ``task`` and ``memory`` of ``config.json``: the task that was trained for and what is known of it."""
    if screen is not None:
        return {"task": "perturbation", "memory": {"classes": list(classes)} if classes else {}}
    return {"task": "classes", "memory": {"classes": list(classes)}} if classes else {"task": None, "memory": {}}


def read_memory(folder: Path, config: Mapping[str, Any]) -> tuple[tuple[str, ...], ScreenMemory | None]:
    """Read what a model that scgalore wrote knows of its training data.

    Parameters
    ----------
    folder
        Folder of the model.
    config
        Content of its ``config.json``; that of scgalore 0.5.0 has ``classes`` and no ``memory``.
    """
    memory = config.get("memory", config)
    return tuple(memory.get("classes", ())), read_screen(folder)


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, index_col="epoch", float_precision="round_trip")
    except ValueError as error:  # all that pandas raises for a file it cannot parse
        msg = f"{path} is no history of a training ({error}). Delete it, or save the model again."
        raise WeightsError(msg) from error
