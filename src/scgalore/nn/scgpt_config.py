"""What a scGPT network is made of, read from a checkpoint or written down by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from scgalore.errors import WeightsError
from scgalore.nn.base import NetworkConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

ValueStyle = Literal["continuous", "category", "scaling"]
CellStyle = Literal["cls", "avg-pool", "w-pool"]
BatchNorm = Literal["none", "shared", "per-batch"]


@dataclass(frozen=True, kw_only=True)
class SCGPTConfig(NetworkConfig):
    """Sizes and parts of a :class:`~scgalore.nn.SCGPTNetwork`.

    Attributes
    ----------
    n_tokens
        Rows of the gene embedding: genes and special tokens.
    pad_id
        Token id of ``<pad>``.
    d_model
        Width.
    n_heads
        Attention heads; they divide the width.
    d_hid
        Width of the feed-forward layers.
    n_layers
        Number of blocks.
    dropout
        Probability on the residual branches and after the value encoder.
    heads
        Outputs of each head on the cell embedding, by name.
    n_layers_cls
        Depth of these heads.
    mvc
        Whether the head that predicts expression from the cell embedding exists ("masked value prediction for cell
        modelling").
    value_style
        How expression enters: a small network ("continuous"), a lookup of bins ("category") or a factor on the gene
        embedding ("scaling").
    n_value_bins
        Bins of the "category" style.
    cell_style
        How tokens become a cell embedding.
    n_batches
        Sequencing batches the network knows.
    batch_labels
        Whether the decoders see the batch of a cell.
    batch_norm
        Whether inputs are normalised, over all cells ("shared") or within each batch ("per-batch").
    adversary
        Whether a discriminator tries to guess the batch, with its gradient reversed.
    zero_probabilities
        Whether decoders also predict the probability of a non-zero value.
    perturbation
        Whether the input carries perturbation flags and the expression decoder is affine, as in upstream's generator.
    pert_pad_id
        Flag whose embedding stays zero.
    decoder_activation
        Name of a module of :mod:`torch.nn` after both parts of the affine decoder.
    adaptive_bias
        Whether its bias is multiplied by the mean of a cell's non-zero values.
    n_bins
        Bins of expression the weights were trained with, the one for zeros included.
    max_length
        Most tokens of a cell.
    mask_value
        What stands for a masked value.
    pad_value
        What stands at padding and at ``<cls>``.
    """

    n_heads: int = 8
    d_hid: int = 512
    n_layers: int = 12
    n_layers_cls: int = 3
    mvc: bool = True
    value_style: ValueStyle = "continuous"
    n_value_bins: int = 0
    cell_style: CellStyle = "cls"
    n_batches: int = 0
    batch_labels: bool = False
    batch_norm: BatchNorm = "none"
    adversary: bool = False
    zero_probabilities: bool = False
    perturbation: bool = False
    pert_pad_id: int = 2
    decoder_activation: str | None = None
    adaptive_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_heads", "d_hid", "n_layers"):
            if getattr(self, name) < 1:
                msg = f"SCGPTConfig.{name} is {getattr(self, name)}; it must be at least 1."
                raise WeightsError(msg)
        if self.d_model % self.n_heads:
            msg = f"The width d_model={self.d_model} is not a multiple of n_heads={self.n_heads}."
            raise WeightsError(msg)

    @classmethod
    def from_args(
        cls,
        args: Mapping[str, Any],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        pad_id: int,
        **overrides: Any,
    ) -> Self:
        """Read an upstream checkpoint: hyperparameters from its ``args.json``, parts from its tensors.

        ``args.json`` does not say which heads, encoders and norms a fine-tuned file holds, but the tensor names do.

        Parameters
        ----------
        args
            Content of ``args.json``; ``embsize, nheads, d_hid, nlayers`` are required.
        shapes
            Shape of every tensor by its canonical name.
        pad_id
            Token id of ``<pad>``.
        overrides
            Fields that neither source tells, such as ``cell_style`` or ``decoder_activation``.

        Raises
        ------
        WeightsError
            If a size is missing from ``args`` or the gene embedding from ``shapes``.
        """
        missing = [key for key in ("embsize", "nheads", "d_hid", "nlayers") if key not in args]
        if missing:
            msg = f"args.json lacks {missing}; an upstream scGPT folder states embsize, nheads, d_hid and nlayers."
            raise WeightsError(msg)
        if "encoder.embedding.weight" not in shapes:
            msg = f"The weights hold no 'encoder.embedding.weight'; found {sorted(shapes)[:5]} ..."
            raise WeightsError(msg)
        stated = {
            "d_model": args["embsize"],
            "n_heads": args["nheads"],
            "d_hid": args["d_hid"],
            "n_layers": args["nlayers"],
            "dropout": args.get("dropout", 0.2),
            "n_layers_cls": args.get("n_layers_cls", 3),
            "n_bins": args.get("n_bins", 51),
            "max_length": args.get("max_seq_len", 1200),
            "mask_value": float(args.get("mask_value", -1)),
            "pad_value": float(args.get("pad_value", -2)),
        }
        return cls(**{"pad_id": pad_id, **stated, **_parts(shapes), **overrides})

    def to_args(self) -> dict[str, Any]:
        """Spell the sizes as upstream's ``args.json`` does, for :func:`~scgalore.weights.export_scgpt`."""
        return {
            "embsize": self.d_model,
            "nheads": self.n_heads,
            "d_hid": self.d_hid,
            "nlayers": self.n_layers,
            "n_layers_cls": self.n_layers_cls,
            "dropout": self.dropout,
            "pad_token": "<pad>",
            "input_style": "binned",
            "input_emb_style": self.value_style,
            "n_bins": self.n_bins,
            "max_seq_len": self.max_length,
            "mask_value": int(self.mask_value),
            "pad_value": int(self.pad_value),
            "MVC": self.mvc,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`; unknown fields raise :class:`~scgalore.errors.WeightsError`."""
        content = dict(content)
        n_classes = content.pop("n_classes", 0)  # scgalore 0.5.0 knew no other head
        if n_classes:
            content["heads"] = {"classes": n_classes}
        return super().from_dict(content)


def _parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    per_batch = sum(name.startswith("dsbn.bns.") and name.endswith("running_mean") for name in shapes)
    head = shapes.get("cls_decoder.out_layer.weight")
    category = shapes.get("value_encoder.embedding.weight")
    batches = shapes.get("batch_encoder.embedding.weight")
    return {
        "n_tokens": shapes["encoder.embedding.weight"][0],
        "heads": {"classes": head[0]} if head else {},
        "mvc": "mvc_decoder.gene2query.weight" in shapes,
        "value_style": "category"
        if category
        else ("continuous" if "value_encoder.linear1.weight" in shapes else "scaling"),
        "n_value_bins": category[0] if category else 0,
        "n_batches": batches[0] if batches else per_batch,
        "batch_labels": batches is not None,
        "batch_norm": "per-batch" if per_batch else ("shared" if "bn.running_mean" in shapes else "none"),
        "adversary": "grad_reverse_discriminator.out_layer.weight" in shapes,
        "zero_probabilities": any(".zero_logit." in name or name.startswith("mvc_decoder.W_zero") for name in shapes),
        "perturbation": "pert_encoder.weight" in shapes,
    }
