"""scGPT as users hold it, and its row of the model families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch

from scgalore import _logging as logg
from scgalore._rng import seed_from
from scgalore.model.cell_model import CellModel
from scgalore.model.families import FAMILIES
from scgalore.model.family import Family
from scgalore.nn import CellEncoder, SCGPTConfig, SCGPTNetwork
from scgalore.weights import export_scgpt, read_scgpt

if TYPE_CHECKING:
    from pathlib import Path

    from scgalore._typing import PathLike, Rng
    from scgalore.data.vocab import GeneVocab
    from scgalore.weights import Checkpoint

__all__ = ["SCGPT"]


class SCGPT(CellModel):
    """A scGPT model.

    Made by :meth:`from_pretrained` (released or fine-tuned weights) or :meth:`from_config` (random weights). Parameters are
    those of :class:`CellModel`.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    >>> model.get_latent_representation(adata).shape[0]
    700
    """

    network: SCGPTNetwork

    @classmethod
    def from_pretrained(cls, model: PathLike = "scgpt", *, base: PathLike | None = None) -> Self:
        """Load weights.

        Parameters
        ----------
        model
            Name in the registry (:func:`scgalore.weights.list_weights`), or folder: one that :meth:`save` or
            :meth:`save_adapter` wrote, one in upstream's layout (``args.json, vocab.json, best_model.pt``), or a
            safetensors copy of it.
        base
            Where the weights are that an adapter belongs to, when that is no longer where its folder says.

        Returns
        -------
        The model in evaluation mode, on the CPU; ``load_report`` accounts for every tensor.

        Raises
        ------
        OptionError
            If ``model`` is neither a name nor a folder.
        WeightsError
            If the folder is incomplete or damaged, an encoder tensor would stay random, or ``base`` holds other weights
            than the adapter was trained on.
        DownloadError
            If the weights must be fetched and cannot be.
        """
        return super().from_pretrained(model, base=base)

    @classmethod
    def from_config(cls, config: SCGPTConfig, vocab: GeneVocab, *, rng: Rng = 0) -> Self:
        """Make a model with random weights.

        Parameters
        ----------
        config
            Sizes and parts of the network.
        vocab
            Genes and special tokens; ``config.n_tokens`` must be their number.
        rng
            Seed of the weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(rng))
            return cls(SCGPTNetwork(config), vocab)

    def export_scgpt(self, folder: PathLike, *, overwrite: bool = False) -> None:
        """Write ``args.json, vocab.json, best_model.pt`` for the original program.

        Parameters
        ----------
        folder
            Made by this call.
        overwrite
            Whether a checkpoint that is there may be replaced.
        """
        export_scgpt(
            folder,
            args=self.network.config.to_args(),
            vocab=self.vocab.to_dict(),
            tensors=self.network.state_dict(),
            overwrite=overwrite,
        )


def _holds_scgpt(folder: Path) -> bool:
    return (folder / "vocab.json").is_file()


def _upstream_config(checkpoint: Checkpoint, vocab: GeneVocab) -> SCGPTConfig:
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    # Upstream keeps the names of the classes elsewhere, so its classification head cannot name what it predicts.
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("cls_decoder.")}
    config = SCGPTConfig.from_args(checkpoint.args, shapes=shapes, pad_id=vocab.pad_id)
    if checkpoint.args.get("MVC") and not config.mvc:
        logg.info(
            "    the head that predicts expression from the cell embedding (MVC) is not in the file, and left out"
        )
    return config


WHOLE_HUMAN = SCGPTConfig(n_tokens=60697, pad_id=60694)

FAMILIES["scgpt"] = Family(
    name="scgpt",
    title="scGPT",
    stem="scgpt",
    embedding="X_scGPT",
    network=SCGPTNetwork,
    config=SCGPTConfig,
    model=SCGPT,
    encoder=CellEncoder,
    recognises=_holds_scgpt,
    read=read_scgpt,
    foreign_config=_upstream_config,
    sizes={"scgpt": WHOLE_HUMAN, "scgpt-continual": WHOLE_HUMAN.replace(mvc=False)},  # as the authors publish them
)
