"""What a family of models is: how its folders are read, which network they make, and how its results are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scgalore.data.tokens import TokenizerConfig
from scgalore.nn.base import NetworkConfig, PaddedEncoder
from scgalore.weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from scgalore.data.vocab import GeneVocab
    from scgalore.nn.base import CellNetwork
    from scgalore.weights import Checkpoint

__all__ = ["Family", "tokens_by_config"]


def tokens_by_config(config: Any, *, max_length: int | None, seed: int) -> TokenizerConfig:
    """How cells become tokens, with the numbers of bins and tokens in the configuration of a network."""
    return TokenizerConfig(
        n_bins=config.n_bins,
        max_length=config.max_length if max_length is None else max_length,
        cls_value=config.pad_value,
        pad_value=config.pad_value,
        seed=seed,
    )


def _released_by_nobody(folder: Path) -> bool:
    return False


@dataclass(frozen=True)
class Family:
    """One row of :data:`scgalore.model.FAMILIES`.

    Attributes
    ----------
    name
        Name in ``config.json``.
    stem, embedding
        Start of the keys that results are written to (``scgpt_label``), and key of the embeddings (``X_scGPT``).
    can
        What its networks can do: ``"cell heads"`` (classes and numbers from the cell embedding), ``"expression"`` (of each
        token), ``"flags"`` (perturbations).
    network
        Makes a network with random weights from a configuration.
    config
        Class of the configurations, with ``from_dict``.
    model
        Class of the models; ``None`` is :class:`~scgalore.model.CellModel`.
    tokens
        How cells become tokens of a network, from its configuration.
    encoder
        Embeds many cells fast; made from a network, token ids, levels of values and a dtype as
        :class:`~scgalore.nn.base.PaddedEncoder` is.
    is_released
        Whether a folder has the layout in which the authors of the family release weights.
    read
        Reads a folder in our layout or in the authors', with the names that tensors have in the network.
    released_config
        Configuration of a network that was released by the authors, from its files.
    sizes
        Configurations of registered weights, known without their files.
    """

    name: str
    stem: str
    embedding: str
    can: frozenset[str]
    network: Callable[[Any], CellNetwork]
    config: type[NetworkConfig] = NetworkConfig
    model: Any = None
    tokens: Callable[..., TokenizerConfig] = tokens_by_config
    encoder: Callable[..., Any] = PaddedEncoder
    is_released: Callable[[Path], bool] = _released_by_nobody
    read: Callable[..., Checkpoint] = read_checkpoint
    released_config: Callable[[Checkpoint, GeneVocab], NetworkConfig] | None = None
    sizes: Mapping[str, NetworkConfig] = field(default_factory=dict)
