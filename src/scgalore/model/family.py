"""What a family of models is: all that the package asks of scGPT or any other, in one row."""

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
"""What tasks may ask of a family: heads on the cell embedding, expression of each token, perturbation flags, expression of some
tokens from the others alone, networks that know the sequencing batch of a cell, and tokens of several modalities."""


def binned_tokens(config: NetworkConfig, *, max_length: int | None, seed: int) -> TokenizerConfig:
    """Expressed genes with binned values, ``<cls>`` first: the tokens of scGPT.

    Parameters
    ----------
    config
        Of the network.
    max_length
        Most tokens of a cell; what the weights were trained with when ``None``.
    seed
        Seed of the sampling of longer cells.
    """
    return TokenizerConfig(
        n_bins=config.n_bins,
        max_length=config.max_length if max_length is None else max_length,
        cls_value=config.pad_value,
        pad_value=config.pad_value,
        seed=seed,
    )


def own_folders_only(checkpoint: Checkpoint, vocab: GeneVocab) -> NetworkConfig:
    """Refuse a folder that scgalore did not write."""
    msg = f"{checkpoint.folder} was not written by scgalore, and there is no reader for other folders of this family."
    raise WeightsError(msg)


@dataclass(frozen=True, eq=False)
class Family:
    """One entry of :data:`scgalore.model.FAMILIES`; the first seven fields suffice for one that has no released weights.

    Attributes
    ----------
    name
        What ``config.json`` of a saved model says.
    title
        Name in messages.
    stem
        First part of the keys in ``obs`` and ``uns``, such as ``"scgpt"``.
    embedding
        Key of cell embeddings in ``obsm``, such as ``"X_scGPT"``.
    network
        Class of its networks, made from a configuration.
    config
        Class of their configurations.
    model
        :class:`~scgalore.model.CellModel`, or a subclass with what this family has in addition.
    can
        What it can do, of :data:`CAN`.
    specials
        Special tokens that its vocabularies have, appended where a file lacks them.
    encoder
        How many cells are embedded fast: called as :class:`scgalore.nn.PaddedEncoder`, which works for all networks and shows
        the methods that are needed.
    tokenizer
        How cells become tokens, from a network's configuration, ``max_length`` and ``seed``.
    recognises
        Whether a folder that scgalore did not write holds weights of this family.
    read
        Reads a folder, in scgalore's layout or one that it recognises, with ``args`` of the registry of weights.
    foreign_config
        Configuration of the network in a folder that scgalore did not write.
    sizes
        Networks of registered weights whose files need not be there to know them, by name.
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
            If the checkpoint does not describe a network of this family, or states sizes that its tensors do not have.
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
        # Before a network is built: this bounds what a file can ask for by what it brings.
        for name, value in seen.items():
            if (stated := getattr(config, name)) != value:
                msg = (
                    f"{where} says {name}={named(stated)}, and the tensors in {checkpoint.weights_file} have {name}={named(value)}: they do "
                    "not belong together. Take both from the same folder."
                )
                raise WeightsError(msg)
        return config
