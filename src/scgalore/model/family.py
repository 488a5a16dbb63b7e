"""Description of a model family, such as scGPT: everything that the package needs to know about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scgalore._json import named
from scgalore.data.tokens import TokenizerConfig
from scgalore.data.vocab import SPECIALS
from scgalore.errors import WeightsError
from scgalore.nn import PaddedEncoder
from scgalore.weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from scgalore.data.vocab import GeneVocab
    from scgalore.nn import CellNetwork, NetworkConfig
    from scgalore.weights import Checkpoint

__all__ = ["CAN", "Family"]

CAN = frozenset({"cell heads", "expression", "flags", "generation", "batches", "modalities"})
"""Capabilities of a family: heads on the cell embedding, expression of each token, perturbation flags, generation of
the expression of some tokens from the others, sequencing batches, and tokens of several modalities."""


def binned_tokens(config: NetworkConfig, *, max_length: int | None, seed: int) -> TokenizerConfig:
    """Expressed genes with binned values, ``<cls>`` first: the tokens of scGPT.

    Parameters
    ----------
    config
        Configuration of the network.
    max_length
        Maximum number of tokens per cell; ``None`` uses the length the weights were trained with.
    seed
        Seed for sampling genes of longer cells.
    """
    return TokenizerConfig(
        n_bins=config.n_bins,
        max_length=config.max_length if max_length is None else max_length,
        cls_value=config.pad_value,
        pad_value=config.pad_value,
        seed=seed,
    )


def own_folders_only(checkpoint: Checkpoint, vocab: GeneVocab) -> NetworkConfig:
    """Raise an error for a folder that was not written by scgalore."""
    msg = f"{checkpoint.folder} was not written by scgalore, and other folders of this family are not supported."
    raise WeightsError(msg)


@dataclass(frozen=True, eq=False)
class Family:
    """Entry of :data:`scgalore.model.FAMILIES`; the first seven fields suffice for a family without released weights.

    Attributes
    ----------
    name
        Name in ``config.json`` of a saved model.
    title
        Name in messages.
    stem
        First part of the keys in ``obs`` and ``uns``, such as ``"scgpt"``.
    embedding
        Key of cell embeddings in ``obsm``, such as ``"X_scGPT"``.
    network
        Class of its networks, constructed from a configuration.
    config
        Class of their configurations.
    model
        :class:`~scgalore.model.CellModel`, or a subclass with additional methods of this family.
    can
        Its capabilities, from :data:`CAN`.
    specials
        Special tokens of its vocabularies, which are appended if missing in a file.
    encoder
        Fast encoder for many cells, with the interface of :class:`scgalore.nn.PaddedEncoder`, which works for all
        networks.
    tokenizer
        Tokenizer settings from a network's configuration, ``max_length`` and ``seed``.
    recognises
        Whether a folder that was not written by scgalore contains weights of this family.
    read
        Function that reads a folder, in scgalore's layout or a recognised one, with ``args`` from the registry of
        weights.
    foreign_config
        Configuration of the network in a folder that was not written by scgalore.
    sizes
        Configurations of registered weights that are known without their files, by name.

    See Also
    --------
    scgalore.model.load : Load a model of any family.
    scgalore.model.CellModel : Methods of all models.

    Examples
    --------
    >>> import scgalore as sg
    >>> sg.model.FAMILIES["scgpt"].embedding
    'X_scGPT'
    """

    name: str
    title: str
    stem: str
    embedding: str
    network: type[CellNetwork]
    config: type[NetworkConfig]
    model: type[Any]
    can: frozenset[str] = CAN
    specials: tuple[str, ...] = SPECIALS
    encoder: Callable[..., Callable[..., Any]] = PaddedEncoder
    tokenizer: Callable[..., TokenizerConfig] = binned_tokens
    recognises: Callable[[Path], bool] = lambda folder: False
    read: Callable[..., Checkpoint] = read_checkpoint
    foreign_config: Callable[[Checkpoint, GeneVocab], NetworkConfig] = own_folders_only
    sizes: Mapping[str, NetworkConfig] = field(default_factory=dict)

    def config_of(self, checkpoint: Checkpoint, vocab: GeneVocab) -> NetworkConfig:
        """Configuration of the network in a checkpoint.

        Raises
        ------
        WeightsError
            If the checkpoint does not describe a network of this family, or its sizes differ from those of its tensors.
        """
        where, shapes = checkpoint.args_file, checkpoint.shapes
        seen = self.config.seen_in(shapes)
        if checkpoint.layout != "scgalore":
            config = self.foreign_config(checkpoint, vocab)
        else:
            try:
                config = self.config.from_dict(checkpoint.args["network"])
            except WeightsError as error:
                msg = f"{where} does not describe a network of the family {self.name!r}: {error} Save the model again."
                raise WeightsError(msg) from error
            seen |= self.config.heads_in(shapes)
        # Before a network is built: limits the memory that a configuration can request to the size of its file.
        for name, value in seen.items():
            if (stated := getattr(config, name)) != value:
                msg = (
                    f"{where} has {name}={named(stated)}, but the tensors in {checkpoint.weights_file} have {name}={named(value)}: they do "
                    "not match. Use both from the same folder."
                )
                raise WeightsError(msg)
        return config
