"""Base class of networks for all model families, and their outputs.

Shape letters: b cells, s tokens, d width (``d_model``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from scgalore._json import check_fields, named
from scgalore._options import FRACTION, Kind, number, whole
from scgalore.errors import OptionError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CellNetwork", "CellOutput", "Encoded", "NetworkConfig", "PaddedEncoder"]


WIDTH = whole(1, 1 << 16)
OUTPUTS = whole(1, 1 << 20)
VALUE = number("it must be a number within 10,000 of zero", lambda value: abs(value) <= 10_000)


def _are_heads(value: Any) -> bool:
    names = hasattr(value, "keys") and all(isinstance(name, str) and name and "." not in name for name in value)
    return names and len(value) <= 1024 and all(map(OUTPUTS.fits, value.values()))


HEADS = Kind("it must give the number of outputs of each head, at least 1, by name", _are_heads)


class Encoded(NamedTuple):
    """Output of the network's body.

    ``hidden`` and ``genes`` (the gene embeddings before values are added) are ``(b, s, d)``, ``cell`` is ``(b, d)``.
    """

    hidden: Tensor
    genes: Tensor
    cell: Tensor


@dataclass(frozen=True)
class CellOutput:
    """Outputs of a network for each cell, in the order of the data.

    Attributes
    ----------
    embedding
        Cell embeddings with unit norm, float32 ``(n_obs, d_model)``.
    heads
        Raw outputs of the cell heads by name, float32 ``(n_obs, n_outputs)``: logits, for classes.
    precision
        Precision of the computation, ``"32-true"`` or ``"bf16-true"``.
    kernels
        Kernels used on a CPU, as described by ``scgalore.nn.cpu.kernels_in_words``.
    """

    embedding: NDArray[np.float32]
    heads: dict[str, NDArray[np.float32]]
    precision: str
    kernels: str | None = None

    @property
    def arithmetic(self) -> dict[str, str]:
        """What is recorded of how they were computed: ``precision`` and, on a CPU, ``cpu_kernels``."""
        return {"precision": self.precision} | ({} if self.kernels is None else {"cpu_kernels": self.kernels})


def set_last_layer(head: nn.Module, weight: Any, bias: Any) -> None:
    """Set the last layer of a cell head to arrays ``(n_outputs, n_inputs)`` and ``(n_outputs,)``, or to a constant."""
    *_, own_weight, own_bias = head.parameters()
    with torch.no_grad():
        for own, new in ((own_weight, weight), (own_bias, bias)):
            own.copy_(torch.as_tensor(new, dtype=own.dtype))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Common configuration of all networks, for training, inference and files; families add their own fields.

    Attributes
    ----------
    n_tokens
        Number of rows of the gene embedding: genes and special tokens.
    pad_id
        Token id of ``<pad>``.
    d_model
        Width.
    dropout
        Dropout probability.
    heads
        Number of outputs of each head on the cell embedding, by name.
    n_bins
        Number of expression bins the weights were trained with, including the bin for zeros.
    max_length
        Maximum number of tokens per cell.
    mask_value
        Value of masked tokens.
    pad_value
        Value of padding and ``<cls>``.
    kinds
        Kind of each field. Values come from files of unknown origin; the bounds are far beyond any network, but small
        enough that invalid configurations are rejected quickly.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        "n_tokens": whole(1, 1 << 24),
        "pad_id": whole(0, 1 << 24),
        "d_model": WIDTH,
        "dropout": FRACTION,
        "heads": HEADS,
        "n_bins": whole(2, 1 << 16),
        "max_length": whole(2, 1 << 24),
        "mask_value": VALUE,
        "pad_value": VALUE,
    }

    n_tokens: int
    pad_id: int
    d_model: int = 512
    dropout: float = 0.2
    heads: Mapping[str, int] = field(default_factory=dict)
    n_bins: int = 51
    max_length: int = 1200
    mask_value: float = -1.0
    pad_value: float = -2.0

    def __post_init__(self) -> None:
        check_fields(vars(self), self.kinds, where=type(self).__name__)
        if self.pad_id >= self.n_tokens:
            msg = f"pad_id={self.pad_id} is not a row of the table with n_tokens={self.n_tokens}."
            raise WeightsError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict of numbers, strings, booleans and, for the heads, a dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`; unknown or missing fields raise :class:`~scgalore.errors.WeightsError`."""
        own = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(content) - set(own)):
            msg = f"it has the unknown fields {named(unknown)}, written by a newer version. Update scgalore."
            raise WeightsError(msg)
        if absent := [name for name in ("n_tokens", "pad_id") if name not in content]:
            msg = f"it lacks {', '.join(absent)}."
            raise WeightsError(msg)
        return cls(**content)

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Fields determined by the tensors of a file, regardless of its configuration file.

        Parameters
        ----------
        shapes
            Shape of every tensor by its name.
        """
        return {}

    @classmethod
    def heads_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Fields of the heads on the cell embedding determined by the tensors; checked only for files written by scgalore."""
        return {}

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields changed."""
        return replace(self, **changes)


class CellNetwork(nn.Module):
    """A network that embeds cells, given as tokens with values.

    A subclass builds its modules in ``__init__``, sets the name of its gene embedding in :attr:`table` and implements
    :meth:`encode`; everything else has defaults. Its ``__init__`` ends with
    ``self.put_heads(self.fresh_heads(config.heads))``.

    Parameters
    ----------
    config
        Sizes and parts.
    """

    table: ClassVar[str]
    """Name of the :class:`torch.nn.Embedding` that token ids index, such as ``"encoder.embedding"``."""
    body: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of pre-trained tensors that embeddings depend on; all others are heads."""
    required: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of tensors that a checkpoint must contain, and that must all be loaded."""
    pretraining: ClassVar[tuple[str, ...]] = ("masked",)
    """Supported self-supervised objectives, keys of :data:`scgalore.objectives.PRETRAINING`, the default first."""
    recompute: bool = False
    """Whether training stores only the input of each block and recomputes the rest in the backward pass."""
    seed: int = 0
    """Seed for random draws of the network in training, other than dropout, which uses the seed of the step."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.heads = nn.ModuleDict()

    def __setattr__(self, name: str, value: Any) -> None:
        # torch registers a module under any name without checking for a property of that name, such as `gene_table`.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Embedding --------------------------------------------------------------------------------------------------------

    @property
    def gene_table(self) -> nn.Embedding:
        """The table indexed by token ids; may be replaced by another one with the same ids."""
        return cast("nn.Embedding", self.get_submodule(self.table))

    @gene_table.setter
    def gene_table(self, table: nn.Embedding) -> None:
        parent, _, name = self.table.rpartition(".")
        setattr(self.get_submodule(parent), name, table)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Most expensive modules, for :func:`torch.compile`."""
        return ()

    def gene_embeddings(self, genes: Tensor) -> Tensor:
        """Embeddings ``(..., d)`` of token ids, before values are added."""
        return self.gene_table(genes)

    def queries_and_keys(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of the tokens of one of :attr:`blocks`, ``(b, h, s, e)`` each.

        Their products divided by the square root of ``e`` are the logits of attention, exact or approximated.

        Parameters
        ----------
        block
            Index of the block.
        x
            Input of the block, ``(b, s, d)``.

        Raises
        ------
        OptionError
            If networks of this family have no attention.
        """
        msg = f"{type(self).__name__} has no attention. Choose another model, or another method."
        raise OptionError(msg)

    def encode(
        self,
        genes: Tensor,
        values: Tensor,
        padding: Tensor | None = None,
        *,
        cell_only: bool = False,
        **conditions: Tensor | None,
    ) -> Encoded:
        """Compute hidden states and a cell embedding from tokens.

        Parameters
        ----------
        genes
            Token ids, int64 ``(b, s)``; column 0 is ``<cls>``.
        values
            Expression, float ``(b, s)``.
        padding
            ``True`` at padding, ``(b, s)``.
        cell_only
            Whether only the cell embedding is needed.
        conditions
            Additional inputs, such as ``flags``, int64 ``(b, s)``.
        """
        raise NotImplementedError

    def embedding(self, cell: Tensor) -> Tensor:
        """Cell embeddings ``(b, d)`` in ``cell`` of :meth:`encode`, which may contain more inputs of heads."""
        return cell

    # Heads on tokens --------------------------------------------------------------------------------------------------

    def expression(self, encoded: Encoded, values: Tensor, **conditions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Expression of every token ``(b, s)``, and the probability that it is not zero if the network predicts it."""
        msg = f"{type(self).__name__} does not predict expression. Train it with labels_key=, or choose another model."
        raise OptionError(msg)

    def expressions(
        self, encoded: Encoded, values: Tensor, **conditions: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """All predictions of expression: ``""`` is :meth:`expression`, others have names."""
        return {"": self.expression(encoded, values, **conditions)}

    def expression_change(self, change: Tensor, genes: Tensor) -> Tensor | None:
        """Change of the predicted expression of genes when the cell embedding changes.

        Parameters
        ----------
        change
            Changes of cell embeddings, float ``(b, d)``.
        genes
            Token ids, int64 ``(s,)``.

        Returns
        -------
        Tensor ``(b, s)`` in units of the values of tokens; ``None`` for networks that do not predict expression from
        the cell embedding alone.
        """
        return None

    def class_logits(self, hidden: Tensor) -> Tensor:
        """Logits of each class of expression, the one for masked values last, ``(..., n_classes)``, from states ``(..., d)``."""
        msg = f"{type(self).__name__} does not predict classes of expression. Train it with another objective, or choose another model."
        raise OptionError(msg)

    # Heads on the cell embedding --------------------------------------------------------------------------------------

    @property
    def cell_heads(self) -> dict[str, nn.Module]:
        """Heads on the cell embedding by name."""
        return dict(self.heads.items())

    def make_head(self, n_outputs: int) -> nn.Module:
        """Create a head with random weights: a module from ``(b, d)`` to ``(b, n_outputs)`` with ``out_features``."""
        return nn.Linear(self.config.d_model, n_outputs).to(self.gene_table.weight)

    def fresh_heads(self, sizes: Mapping[str, int], *, seed: int | None = None) -> dict[str, nn.Module]:
        """Create heads of these sizes, in this order; reproducible with a seed, without using the global generator."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return {name: self.make_head(n_outputs) for name, n_outputs in sizes.items()}

    def put_heads(self, heads: Mapping[str, nn.Module]) -> None:
        """Replace the heads, and record their sizes in the configuration."""
        self.heads = nn.ModuleDict(heads)
        sizes = {name: cast("nn.Linear", head).out_features for name, head in self.cell_heads.items()}
        self.config = self.config.replace(heads=sizes)

    def read_head(self, name: str, cell: Tensor) -> Tensor:
        """Outputs ``(b, n_outputs)`` of one head for cell embeddings ``(b, d)``.

        Raises
        ------
        OptionError
            If the network has no head with this name.
        """
        heads = self.cell_heads
        if name not in heads:
            msg = f"The network has no head {name!r}; its heads are {sorted(heads)}. Heads are added by training."
            raise OptionError(msg)
        return heads[name](cell)

    def is_head_tensor(self, name: str) -> bool:
        """Whether the tensor of this name belongs to a cell head, whose size depends on the task."""
        heads = {id(head) for head in self.cell_heads.values()}
        return any(name.startswith(f"{path}.") for path, module in self.named_modules() if id(module) in heads)

    # Generation -------------------------------------------------------------------------------------------------------

    @property
    def generates(self) -> bool:
        """Whether :meth:`encode` uses ``generated``, the tokens whose expression is generated from the others."""
        return False

    def generative_variant(self, *, seed: int) -> Self:
        """Copy to a network that generates the expression of some tokens from the others.

        Parameters
        ----------
        seed
            Seed for new weights.

        Raises
        ------
        OptionError
            If networks of this family cannot generate.
        """
        msg = f"{type(self).__name__} cannot generate the expression of some genes from others. Choose another model."
        raise OptionError(msg)

    # Batches ----------------------------------------------------------------------------------------------------------

    @property
    def reads_batches(self) -> bool:
        """Whether :meth:`encode` uses ``batches``, the code of each cell's sequencing batch."""
        return False

    @property
    def decodes_batches(self) -> bool:
        """Whether :meth:`expression` uses ``batches``."""
        return False

    def integration_variant(
        self,
        n_batches: int,
        n_known: int = 0,
        *,
        batch_norm: bool,
        adversary: bool,
        from_cell: bool,
        zeros: bool,
        seed: int,
    ) -> Self:
        """Copy to a network with sequencing batches; other weights are kept.

        Parameters
        ----------
        n_batches
            Number of batches of the copy.
        n_known
            Number of existing batches to keep, with the same codes; others are initialised.
        batch_norm
            Whether inputs are normalised within each batch.
        adversary
            Whether a discriminator predicts the batch from the cell embedding.
        from_cell
            Whether expression is also predicted from the cell embedding.
        zeros
            Whether decoders predict the probability that a gene is expressed.
        seed
            Seed for new weights.

        Raises
        ------
        OptionError
            If networks of this family do not support batches.
        """
        msg = f"{type(self).__name__} does not support sequencing batches. Choose another model."
        raise OptionError(msg)

    def with_batches(self, n_batches: int) -> Self:
        """Copy of a network that reads batches, with norms for more of them; see :meth:`estimate_norm`."""
        raise NotImplementedError

    def take_norms(self, other: Self, n_known: int) -> None:
        """Copy the norms of batches from ``n_known`` on from another network; does nothing without batch norms."""

    def estimate_norm(self, batch: int, tokens: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Estimate the norm of one batch from its tokens.

        Parameters
        ----------
        batch
            Code of the batch.
        tokens
            Ids and values of tokens, ``(n,)`` each, in chunks.
        """
        raise NotImplementedError

    def discriminate(self, encoded: Encoded) -> Tensor:
        """Logits of the sequencing batch ``(b, n)``, with a reversed gradient into the cell embedding."""
        msg = f"{type(self).__name__} has no discriminator of batches. Use its integration_variant()."
        raise OptionError(msg)

    # Perturbations ----------------------------------------------------------------------------------------------------

    @property
    def reads_flags(self) -> bool:
        """Whether :meth:`encode` uses ``flags``, the perturbation flag of each token."""
        return False

    def perturbation_variant(self, n_tokens: int, n_known: int, *, seed: int) -> Self:
        """Copy to a network with perturbation flags and embeddings for new genes.

        Parameters
        ----------
        n_tokens
            Number of rows of the copy's gene embedding, if more are needed.
        n_known
            Number of tokens of the network; later rows are new.
        seed
            Seed for new weights.

        Raises
        ------
        OptionError
            If networks of this family do not support flags.
        """
        msg = f"{type(self).__name__} does not support perturbation flags. Choose another model."
        raise OptionError(msg)

    def start_at_zero(self) -> None:
        """Initialise a perturbation network to predict 0 for every input, for training with a prior."""
        raise NotImplementedError

    @property
    def starts_at_zero(self) -> bool:
        """Whether :meth:`expression` is 0 for every input."""
        return False

    # Modalities -------------------------------------------------------------------------------------------------------

    @property
    def reads_modalities(self) -> bool:
        """Whether :meth:`expressions` uses ``modalities``, the modality of each token."""
        return False

    def multiomic_variant(self, rows: Tensor, n_modalities: int, *, seed: int) -> Self:
        """Copy to a network with additional tokens and modalities of tokens.

        Parameters
        ----------
        rows
            Complete gene embedding of the copy, ``(n_tokens, d)``.
        n_modalities
            Number of modalities.
        seed
            Seed for new weights.

        Raises
        ------
        OptionError
            If networks of this family do not support modalities.
        """
        msg = f"{type(self).__name__} does not support several modalities. Choose another model."
        raise OptionError(msg)


class PaddedEncoder:
    """Cell embeddings of any network in evaluation mode, from padded batches with :meth:`CellNetwork.encode`.

    Parameters
    ----------
    network
        Network in evaluation mode, on its device. Outputs must not depend on padding.
    tokens
        Ids of the tokens that may occur, int64 ``(t,)``.
    levels
        Values that may occur; ``None`` for unbinned values.
    dtype
        Dtype; by default that of the network.
    """

    def __init__(
        self,
        network: CellNetwork,
        tokens: Tensor,
        *,
        levels: range | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.network, self.dtype = network, dtype

    @torch.no_grad()
    def __call__(self, genes: Tensor, values: Tensor, lengths: Sequence[int], **conditions: Tensor) -> Tensor:
        """Embed cells.

        Parameters
        ----------
        genes
            Concatenated token ids of the cells, each with ``<cls>`` first, int64 ``(n,)``.
        values
            Values of these tokens, float32 ``(n,)``.
        lengths
            Number of tokens of each cell.
        conditions
            Additional inputs, ``(b,)``, such as ``batches``.

        Returns
        -------
        Tensor
            Cell embeddings, ``(b, d)``.
        """
        encoded, _ = self._encode(genes, values, lengths, cell_only=True, **conditions)
        return encoded.cell.to(self.network.gene_table.weight.dtype)

    @torch.no_grad()
    def states(self, genes: Tensor, values: Tensor, lengths: Sequence[int], **conditions: Tensor) -> Tensor:
        """Last states ``(n, d)`` of all tokens, including ``<cls>``; parameters as for calls."""
        encoded, padding = self._encode(genes, values, lengths, cell_only=False, **conditions)
        return encoded.hidden[~padding].to(self.network.gene_table.weight.dtype)

    def _encode(
        self, genes: Tensor, values: Tensor, lengths: Sequence[int], *, cell_only: bool, **conditions: Tensor
    ) -> tuple[Encoded, Tensor]:
        config, counts = self.network.config, list(lengths)
        pad = nn.utils.rnn.pad_sequence
        genes = pad(genes.split(counts), batch_first=True, padding_value=config.pad_id)
        values = pad(values.split(counts), batch_first=True, padding_value=config.pad_value)
        ends = torch.tensor(counts, device=genes.device).unsqueeze(1)
        padding = torch.arange(genes.shape[1], device=genes.device) >= ends
        lower = self.dtype is not None and self.dtype != self.network.gene_table.weight.dtype
        with torch.autocast(genes.device.type, dtype=self.dtype, enabled=lower):
            return self.network.encode(genes, values, padding, cell_only=cell_only, **conditions), padding
