"""scGPT: released and fine-tuned weights, original files, and its entry in the families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from scgalore import _logging as logg
from scgalore.model.cell_model import CellModel
from scgalore.model.family import Family
from scgalore.model.loading import load_model
from scgalore.nn import CellEncoder, SCGPTConfig, SCGPTNetwork
from scgalore.weights import export_scgpt, read_scgpt

if TYPE_CHECKING:
    from pathlib import Path

    from scgalore._typing import PathLike
    from scgalore.data.vocab import GeneVocab
    from scgalore.weights import Checkpoint

__all__ = ["SCGPT", "SCGPT_FAMILY", "scgpt_config"]


class SCGPT(CellModel):
    """A scGPT model.

    Created by :meth:`from_pretrained` (released or fine-tuned weights) or :meth:`from_config` (random weights).
    Parameters are those of :class:`scgalore.model.CellModel`.

    See Also
    --------
    scgalore.model.load : Load a model of any family.
    scgalore.model.CellModel : Methods of all models.
    scgalore.model.scgpt_config : Configuration of a new scGPT network.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    >>> model.get_latent_representation(adata).shape[1]
    128
    """

    @classmethod
    def own_family(cls) -> Family:
        """The scGPT family."""
        return SCGPT_FAMILY

    @classmethod
    def from_pretrained(cls, model: PathLike = "scgpt", *, base: PathLike | None = None) -> Self:
        """Load weights of scGPT; :func:`scgalore.model.load` loads weights of any family.

        Parameters
        ----------
        model
            Name in the registry (:func:`scgalore.weights.list_weights`), address on the Hugging Face Hub
            (``"hf://owner/name@revision"``), or folder: one that :meth:`save` or
            :meth:`save_adapter` wrote, one in the original layout (``args.json, vocab.json, best_model.pt``), or a
            safetensors copy of it.
        base
            Location of the base weights of an adapter, if it differs from the one recorded in its folder.

        Returns
        -------
        The model in evaluation mode, on the CPU; ``load_report`` accounts for every tensor.

        Raises
        ------
        OptionError
            If ``model`` is neither a name nor an address nor a folder.
        WeightsError
            If the folder is incomplete or damaged, an encoder tensor would stay random, or ``base`` has other weights
            than those the adapter was trained on.
        DownloadError
            If the weights are not downloaded and cannot be.
        """
        return load_model(model, base=base, families={SCGPT_FAMILY.name: SCGPT_FAMILY})

    def export_scgpt(self, folder: PathLike, *, overwrite: bool = False) -> None:
        """Write ``args.json, vocab.json, best_model.pt`` for the original implementation.

        A linear model that the network corrects, or a batch correction, cannot be exported; a warning is logged.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether a checkpoint in the folder may be replaced.
        """
        if getattr(self.memory, "map", None) is not None:
            logg.warning(
                "The embedding of this model combines the network with principal components of expression and a batch correction, which "
                "cannot be stored in the original layout: only the network is exported. save() keeps everything."
            )
        if getattr(self.memory, "prior", None) is not None and self.memory.task != "perturbation":
            logg.warning(
                "The network corrects a linear model, which cannot be stored in the original layout: the exported network predicts only the "
                "correction. save() keeps both; fine-tune with prior='none' to train a network without a linear model."
            )
        export_scgpt(
            folder,
            args=self.network.config.to_args(),
            vocab=self.vocab.to_dict(),
            tensors=self.network.state_dict(),
            overwrite=overwrite,
        )


def scgpt_config(**sizes: Any) -> SCGPTConfig:
    """Configuration of a new network, for :func:`scgalore.tl.pretrain`, which makes its vocabulary from the files.

    Parameters
    ----------
    **sizes
        Fields of :class:`scgalore.nn.SCGPTConfig`, such as ``d_model``, ``n_heads``, ``d_hid``, ``n_layers`` and
        ``max_length``; by default those of the whole-human network. ``n_tokens`` and ``pad_id`` are set by the
        vocabulary.

    See Also
    --------
    scgalore.tl.pretrain : Pre-train a model on files of cells.
    scgalore.model.SCGPT : scGPT models.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.model.scgpt_config(d_model=64, n_heads=4, d_hid=128, n_layers=2).n_layers
    2
    """
    return SCGPTConfig(**{"n_tokens": 1, "pad_id": 0, **sizes})


def _recognises(folder: Path) -> bool:
    return (folder / "args.json").is_file() or (folder / "best_model.pt").is_file()


def _released_config(checkpoint: Checkpoint, vocab: GeneVocab) -> SCGPTConfig:
    # The original stores the names of the classes elsewhere, so they are unknown for its classification head.
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if not name.startswith("cls_decoder.")}
    where = checkpoint.args_file
    config = SCGPTConfig.from_args(checkpoint.args, shapes=shapes, pad_id=vocab.pad_id, where=where)
    if checkpoint.args.get("MVC") and not config.mvc:
        logg.info(
            "    the head that predicts expression from the cell embedding (MVC) is not in the file and is omitted"
        )
    return config


_WHOLE_HUMAN = SCGPTConfig(n_tokens=60697, pad_id=60694)

SCGPT_FAMILY = Family(
    name="scgpt",
    title="scGPT",
    stem="scgpt",
    embedding="X_scGPT",
    network=SCGPTNetwork,
    config=SCGPTConfig,
    model=SCGPT,
    encoder=CellEncoder,
    recognises=_recognises,
    read=read_scgpt,
    foreign_config=_released_config,
    # Sizes published by the authors.
    sizes={"scgpt": _WHOLE_HUMAN.replace(generative=True), "scgpt-continual": _WHOLE_HUMAN.replace(mvc=False)},
)
"""Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0."""
