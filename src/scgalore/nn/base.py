"""What every network of cells is: the base class that a model family derives from, and what networks return.

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


HEADS = Kind("it must give the number of outputs of each head, at least 1, by its name", _are_heads)


class Encoded(NamedTuple):
    """Tokens after the network's body.

    ``hidden`` and ``genes`` (the gene embeddings before values are added) are ``(b, s, d)``, ``cell`` is ``(b, d)``.
    """

    hidden: Tensor
    genes: Tensor
    cell: Tensor


@dataclass(frozen=True)
class CellOutput:
    """What a network predicts for each cell, in the order of the data.

    Attributes
    ----------
    embedding
        Cell embeddings with unit norm, float32 ``(n_obs, d_model)``.
    heads
        Raw outputs of the cell heads by name, float32 ``(n_obs, n_outputs)``: logits, for classes.
    precision
        Arithmetic they were computed in, ``"32-true"`` or ``"bf16-true"``.
    kernels
        On a CPU, whose kernels computed them, as :func:`scgalore.nn.cpu.kernels_in_words` says.
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
    """Fill the layer that a cell head ends with, with arrays ``(n_outputs, n_inputs)`` and ``(n_outputs,)``, or with one number."""
    *_, own_weight, own_bias = head.parameters()
    with torch.no_grad():
        for own, new in ((own_weight, weight), (own_bias, bias)):
            own.copy_(torch.as_tensor(new, dtype=own.dtype))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What training, inference and files read of any network's configuration; families add their own fields.

    Attributes
    ----------
    n_tokens
        Rows of the gene embedding: genes and special tokens.
    pad_id
        Token id of ``<pad>``.
    d_model
        Width.
    dropout
        Probability of dropout.
    heads
        Outputs of each head on the cell embedding, by name.
    n_bins
        Bins of expression the weights were trained with, the one for zeros included.
    max_length
        Most tokens of a cell.
    mask_value
        What stands for a masked value.
    pad_value
        What stands at padding and at ``<cls>``.
    kinds
        What each field must be. The numbers come from files of others, and the bounds lie far beyond any network: nothing
        that they let pass takes long to refuse.
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
            msg = f"pad_id={self.pad_id} is no row of a table of n_tokens={self.n_tokens}."
            raise WeightsError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Give the fields as a plain dict of numbers, strings, booleans and, for the heads, a dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`; fields that are unknown or absent raise :class:`~scgalore.errors.WeightsError`."""
        own = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(content) - set(own)):
            msg = f"it holds the unknown fields {named(unknown)}; it was written by a newer scgalore. Update scgalore."
            raise WeightsError(msg)
        if absent := [name for name in ("n_tokens", "pad_id") if name not in content]:
            msg = f"it lacks {', '.join(absent)}."
            raise WeightsError(msg)
        return cls(**content)

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Fields that the tensors of a file show, whatever its configuration file states.

        Parameters
        ----------
        shapes
            Shape of every tensor by its name.
        """
        return {}

    @classmethod
    def heads_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """The same, for fields of the heads on the cell embedding, which only scgalore's own files must keep to."""
        return {}

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields changed."""
        return replace(self, **changes)


class CellNetwork(nn.Module):
    """A network that embeds cells, given as tokens with values.

    A subclass builds its modules in ``__init__``, names its table of genes in :attr:`table` and writes :meth:`encode`; all
    else has defaults. It ends its ``__init__`` with ``self.put_heads(self.fresh_heads(config.heads))``.

    Parameters
    ----------
    config
        Sizes and parts.
    """

    table: ClassVar[str]
    """Name of the :class:`torch.nn.Embedding` that token ids index, such as ``"encoder.embedding"``."""
    body: ClassVar[tuple[str, ...]] = ()
    """First parts of the names of tensors that pre-training learned and every embedding depends on; the others are heads."""
    required: ClassVar[tuple[str, ...]] = ()
    """First parts of the names of tensors that a checkpoint must hold, and all of whose tensors must have a place."""
    pretraining: ClassVar[tuple[str, ...]] = ("masked",)
    """Self-supervised objectives that it can be trained for, keys of :data:`scgalore.objectives.PRETRAINING`, its own first."""
    recompute: bool = False
    """Whether training keeps only the input of each block and computes the rest again in the backward pass."""
    seed: int = 0
    """Seed of what the network itself draws in training; dropout has that of the step."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.heads = nn.ModuleDict()

    def __setattr__(self, name: str, value: Any) -> None:
        # torch registers a module under any name without looking for a property of that name, such as `gene_table`.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Embedding --------------------------------------------------------------------------------------------------------

    @property
    def gene_table(self) -> nn.Embedding:
        """The table that token ids index; another one with the same ids may be put in its place."""
        return cast("nn.Embedding", self.get_submodule(self.table))

    @gene_table.setter
    def gene_table(self, table: nn.Embedding) -> None:
        parent, _, name = self.table.rpartition(".")
        setattr(self.get_submodule(parent), name, table)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Modules that take most of the time, for :func:`torch.compile`."""
        return ()

    def gene_embeddings(self, genes: Tensor) -> Tensor:
        """Embeddings ``(..., d)`` of token ids, before values are added."""
        return self.gene_table(genes)

    def queries_and_keys(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of the tokens of one of :attr:`blocks`, ``(b, h, s, e)`` each.

        Their products over the square root of ``e`` are what attention takes the exponential of, or what it approximates.

        Parameters
        ----------
        block
            Number of the block.
        x
            What it is called with, ``(b, s, d)``.

        Raises
        ------
        OptionError
            If networks of this family do not attend.
        """
        msg = f"{type(self).__name__} has no attention to show. Choose another model, or another method."
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
        """Tokens to hidden states and a cell embedding.

        Parameters
        ----------
        genes
            Token ids, int64 ``(b, s)``; column 0 is ``<cls>``.
        values
            Expression, float ``(b, s)``.
        padding
            ``True`` at padding, ``(b, s)``.
        cell_only
            Whether only the cell embedding will be read.
        conditions
            What the network reads in addition, such as ``flags``, int64 ``(b, s)``.
        """
        raise NotImplementedError

    def embedding(self, cell: Tensor) -> Tensor:
        """Cell embeddings ``(b, d)`` in what :meth:`encode` gives as ``cell``, which heads may read more of."""
        return cell

    # Heads on tokens --------------------------------------------------------------------------------------------------

    def expression(self, encoded: Encoded, values: Tensor, **conditions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Expression of every token ``(b, s)``, and the probability that it is not zero if the network predicts it."""
        msg = f"{type(self).__name__} predicts no expression. Train it with labels_key=, or choose another model."
        raise OptionError(msg)

    def expressions(
        self, encoded: Encoded, values: Tensor, **conditions: Tensor | None
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Every way in which the network predicts expression: ``""`` is :meth:`expression`, the others have names."""
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
        Tensor ``(b, s)`` in units of the values of tokens; ``None`` for networks that predict no expression from the cell embedding alone.
        """
        return None

    def class_logits(self, hidden: Tensor) -> Tensor:
        """Logits of each class of expression, the one for masked values last, ``(..., n_classes)``, from states ``(..., d)``."""
        msg = f"{type(self).__name__} predicts no classes of expression. Train it with another objective, or choose another model."
        raise OptionError(msg)

    # Heads on the cell embedding --------------------------------------------------------------------------------------

    @property
    def cell_heads(self) -> dict[str, nn.Module]:
        """Heads on the cell embedding by name."""
        return dict(self.heads.items())

    def make_head(self, n_outputs: int) -> nn.Module:
        """Make a head with random weights: a module from ``(b, d)`` to ``(b, n_outputs)`` with ``out_features``."""
        return nn.Linear(self.config.d_model, n_outputs).to(self.gene_table.weight)

    def fresh_heads(self, sizes: Mapping[str, int], *, seed: int | None = None) -> dict[str, nn.Module]:
        """Make heads of these sizes, in this order; with a seed, the same ones each time, and no other random numbers change."""
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return {name: self.make_head(n_outputs) for name, n_outputs in sizes.items()}

    def put_heads(self, heads: Mapping[str, nn.Module]) -> None:
        """Put exactly these heads in place, and their sizes into the configuration."""
        self.heads = nn.ModuleDict(heads)
        sizes = {name: cast("nn.Linear", head).out_features for name, head in self.cell_heads.items()}
        self.config = self.config.replace(heads=sizes)

    def read_head(self, name: str, cell: Tensor) -> Tensor:
        """Outputs ``(b, n_outputs)`` of one head for cell embeddings ``(b, d)``.

        Raises
        ------
        OptionError
            If the network has no head of this name.
        """
        heads = self.cell_heads
        if name not in heads:
            msg = f"The network has no head {name!r}; its heads are {sorted(heads)}. Training puts them in place."
            raise OptionError(msg)
        return heads[name](cell)

    def is_head_tensor(self, name: str) -> bool:
        """Whether the tensor of this name belongs to a cell head, whose size depends on the task."""
        heads = {id(head) for head in self.cell_heads.values()}
        return any(name.startswith(f"{path}.") for path, module in self.named_modules() if id(module) in heads)

    # Generation -------------------------------------------------------------------------------------------------------

    @property
    def generates(self) -> bool:
        """Whether :meth:`encode` reads ``generated``, the tokens whose expression is to be generated from the others."""
        return False

    def generative_variant(self, *, seed: int) -> Self:
        """Copy into a network that generates the expression of some tokens from the others.

        Parameters
        ----------
        seed
            Seed of what is new.

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
        """Whether :meth:`encode` reads ``batches``, the code of each cell's sequencing batch."""
        return False

    @property
    def decodes_batches(self) -> bool:
        """Whether :meth:`expression` reads ``batches``."""
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
        """Copy into a network that knows sequencing batches; all else keeps its weights.

        Parameters
        ----------
        n_batches
            Batches that it knows afterwards.
        n_known
            The first of those that it knew, which it keeps under their numbers; the others start anew.
        batch_norm
            Whether inputs are normalised within each batch.
        adversary
            Whether a discriminator guesses the batch from the cell embedding.
        from_cell
            Whether expression is predicted from the cell embedding, too.
        zeros
            Whether decoders predict the probability that a gene is expressed.
        seed
            Seed of what is new.

        Raises
        ------
        OptionError
            If networks of this family know no batches.
        """
        msg = f"{type(self).__name__} knows no sequencing batches. Choose another model."
        raise OptionError(msg)

    def with_batches(self, n_batches: int) -> Self:
        """Copy of a network that reads batches, with norms for more of them; see :meth:`estimate_norm`."""
        raise NotImplementedError

    def take_norms(self, other: Self, n_known: int) -> None:
        """Take the norms of the batches from this number on from another network; nothing where it reads no batches."""

    def estimate_norm(self, batch: int, tokens: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Take the norm of one batch from its tokens.

        Parameters
        ----------
        batch
            Its code.
        tokens
            Ids and values of tokens, ``(n,)`` each, some at a time.
        """
        raise NotImplementedError

    def discriminate(self, encoded: Encoded) -> Tensor:
        """Logits of the sequencing batch ``(b, n)``, with a reversed gradient into the cell embedding."""
        msg = f"{type(self).__name__} has no discriminator of batches: take its integration_variant()."
        raise OptionError(msg)

    # Perturbations ----------------------------------------------------------------------------------------------------

    @property
    def reads_flags(self) -> bool:
        """Whether :meth:`encode` reads ``flags``, the perturbation flag of each token."""
        return False

    def perturbation_variant(self, n_tokens: int, n_known: int, *, seed: int) -> Self:
        """Copy into a network that reads perturbation flags and has rows for new genes.

        Parameters
        ----------
        n_tokens
            Rows of the copy's gene embedding, if it needs more than there are.
        n_known
            How many tokens the network knows; the rows after them are new.
        seed
            Seed of what is new.

        Raises
        ------
        OptionError
            If networks of this family cannot read flags.
        """
        msg = f"{type(self).__name__} cannot learn perturbations: it reads no perturbation flags. Choose another model."
        raise OptionError(msg)

    def start_at_zero(self) -> None:
        """Let a perturbation network predict 0 for every input until it is trained, for training on top of a prior."""
        raise NotImplementedError

    @property
    def starts_at_zero(self) -> bool:
        """Whether :meth:`expression` is 0 for every input."""
        return False

    # Modalities -------------------------------------------------------------------------------------------------------

    @property
    def reads_modalities(self) -> bool:
        """Whether :meth:`expressions` reads ``modalities``, the modality of each token."""
        return False

    def multiomic_variant(self, rows: Tensor, n_modalities: int, *, seed: int) -> Self:
        """Copy into a network that has other tokens in addition and reads the modality of each token.

        Parameters
        ----------
        rows
            The whole gene embedding of the copy, ``(n_tokens, d)``.
        n_modalities
            How many modalities there are.
        seed
            Seed of what is new.

        Raises
        ------
        OptionError
            If networks of this family cannot read modalities.
        """
        msg = f"{type(self).__name__} cannot learn several modalities. Choose another model."
        raise OptionError(msg)


class PaddedEncoder:
    """Cell embeddings of any network in evaluation mode, by padded batches through :meth:`CellNetwork.encode`.

    Parameters
    ----------
    network
        In evaluation mode, on the device to compute on. Cells must not depend on their padding.
    tokens
        Ids of the tokens that cells may hold, int64 ``(t,)``.
    levels
        Values that they may hold; ``None`` for values that are not binned.
    dtype
        Arithmetic; the network's own when left out.
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
        """Embed some cells.

        Parameters
        ----------
        genes
            Token ids of the cells, one after the other, each with ``<cls>`` first, int64 ``(n,)``.
        values
            Their values, float32 ``(n,)``.
        lengths
            Tokens of each cell.
        conditions
            What the network reads of each cell in addition, ``(b,)``, such as ``batches``.

        Returns
        -------
        Tensor
            Cell embeddings, ``(b, d)``.
        """
        encoded, _ = self._encode(genes, values, lengths, cell_only=True, **conditions)
        return encoded.cell.to(self.network.gene_table.weight.dtype)

    @torch.no_grad()
    def states(self, genes: Tensor, values: Tensor, lengths: Sequence[int], **conditions: Tensor) -> Tensor:
        """Last states ``(n, d)`` of all tokens, ``<cls>`` included, for the same parameters."""
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
