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
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.weights import load_tensors, read_scgpt, resolve_model_folder, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scgalore._typing import PathLike
    from scgalore.tasks.perturbation.fitting import ScreenMemory
    from scgalore.weights import Checkpoint, LoadReport

__all__ = ["Provenance", "StoredModel", "read_model", "write_model"]

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

    network: SCGPTNetwork
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
        As for :meth:`scgalore.model.SCGPT.from_pretrained`.
    """
    folder, entry = resolve_model_folder(model)
    checkpoint = read_scgpt(folder, args=None if entry is None else entry.args)
    vocab = GeneVocab.from_dict(checkpoint.vocab)
    config, classes = _config(checkpoint, vocab)
    # Heads that the file lacks stay random: the same in every process, and at no cost to the user's generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SCGPTNetwork(config)
    report = load_tensors(network, checkpoint)
    name = entry.name if entry is not None else str(folder)
    logg.info(f"loaded {name}: {report.summary()}")
    base = checkpoint.args["weights"]["name"] if "weights" in checkpoint.args else ""
    provenance = Provenance(name=name, sha256=checkpoint.sha256, layout=checkpoint.layout, base=base)
    history = _read_history(folder / HISTORY)
    return StoredModel(network.eval(), vocab, classes, provenance, report, history, read_screen(folder))


def write_model(
    folder: PathLike,
    *,
    network: SCGPTNetwork,
    vocab: GeneVocab,
    classes: tuple[str, ...],
    provenance: Provenance,
    history: pd.DataFrame,
    screen: ScreenMemory | None = None,
    evaluation: Mapping[str, Any] | None = None,
    overwrite: bool,
) -> None:
    """Write a model in our own layout; see :meth:`scgalore.model.SCGPT.save`."""
    config: dict[str, Any] = {
        "scgalore": __version__,
        "network": network.config.to_dict(),
        "classes": list(classes),
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


def _read_history(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame()
    try:
        return pd.read_csv(path, index_col="epoch", float_precision="round_trip")
    except ValueError as error:  # all that pandas raises for a file it cannot parse
        msg = f"{path} is no history of a training ({error}). Delete it, or save the model again."
        raise WeightsError(msg) from error


def _config(checkpoint: Checkpoint, vocab: GeneVocab) -> tuple[SCGPTConfig, tuple[str, ...]]:
    if checkpoint.layout == "scgalore":
        try:
            return SCGPTConfig.from_dict(checkpoint.args["network"]), tuple(checkpoint.args["classes"])
        except (KeyError, TypeError) as error:
            msg = f"{checkpoint.folder}/config.json is not one that scgalore wrote: {error}. Save the model again."
            raise WeightsError(msg) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    # Upstream keeps the names of the classes elsewhere, so its classification head cannot name what it predicts.
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("cls_decoder.")}
    config = SCGPTConfig.from_args(checkpoint.args, shapes=shapes, pad_id=vocab.pad_id)
    if checkpoint.args.get("MVC") and not config.mvc:
        logg.info(
            "    the head that predicts expression from the cell embedding (MVC) is not in the file, and left out"
        )
    return config, ()
