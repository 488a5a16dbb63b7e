"""Configuration of scGPT networks, from a checkpoint or by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from scgalore._json import check_fields, named, nullable
from scgalore._options import SWITCH, choice, whole
from scgalore.errors import WeightsError
from scgalore.nn.base import WIDTH, NetworkConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scgalore._options import Kind

ValueStyle = Literal["continuous", "category", "scaling"]
CellStyle = Literal["cls", "avg-pool", "w-pool"]
BatchNorm = Literal["none", "shared", "per-batch"]
# Modules of torch.nn that need no arguments and accept any shape.
Activation = Literal[
    "CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish", "ReLU",
    "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink",
]  # fmt: skip

ARGS = {
    "embsize": "d_model",
    "nheads": "n_heads",
    "d_hid": "d_hid",
    "nlayers": "n_layers",
    "dropout": "dropout",
    "n_layers_cls": "n_layers_cls",
    "n_bins": "n_bins",
    "max_seq_len": "max_length",
    "mask_value": "mask_value",
    "pad_value": "pad_value",
}
"""Fields by their names in ``args.json`` of scGPT; the first four are always present."""


@dataclass(frozen=True, kw_only=True)
class SCGPTConfig(NetworkConfig):
    """Sizes and parts of a :class:`~scgalore.nn.SCGPTNetwork`.

    Attributes
    ----------
    n_tokens
        Number of rows of the gene embedding: genes and special tokens.
    pad_id
        Token id of ``<pad>``.
    d_model
        Width.
    n_heads
        Number of attention heads, a divisor of the width.
    d_hid
        Width of the feed-forward layers.
    n_layers
        Number of blocks.
    dropout
        Dropout probability on the residual branches and after the value encoder.
    heads
        Number of outputs of each head on the cell embedding, by name.
    n_layers_cls
        Depth of these heads.
    mvc
        Whether the head that predicts expression from the cell embedding exists ("masked value prediction for cell
        modelling").
    value_style
        Encoding of expression: a small network ("continuous"), an embedding of bins ("category") or a factor on the
        gene embedding ("scaling").
    n_value_bins
        Number of bins of the "category" style.
    cell_style
        Pooling of tokens to a cell embedding.
    n_batches
        Number of sequencing batches.
    batch_labels
        Whether the decoders receive the batch of a cell.
    batch_norm
        Whether inputs are normalised, over all cells ("shared") or within each batch ("per-batch").
    adversary
        Whether a discriminator predicts the batch, with reversed gradient.
    zero_probabilities
        Whether decoders also predict the probability of a non-zero value.
    perturbation
        Whether the input has perturbation flags and the expression decoder is affine, as in scGPT's perturbation model.
    pert_pad_id
        Flag with a fixed zero embedding.
    decoder_activation
        Name of a module of :mod:`torch.nn` that is applied after both parts of the affine decoder.
    adaptive_bias
        Whether its bias is multiplied by the mean of a cell's non-zero values.
    generative
        Whether the network has a flag for generated tokens, as in scGPT's pre-training.
    n_modalities
        Number of modalities, whose embedding is an input of the decoders for each token, as in scGPT's multi-omic
        model; 0 for a network with genes only. With modalities, cell embeddings are those of ``<cls>``.
    n_bins
        Number of expression bins the weights were trained with, including the bin for zeros.
    max_length
        Maximum number of tokens per cell.
    mask_value
        Value of masked tokens.
    pad_value
        Value of padding and ``<cls>``.
    """

    kinds: ClassVar[Mapping[str, Kind]] = {
        **NetworkConfig.kinds,
        "n_heads": whole(1, 1 << 12),
        "d_hid": WIDTH,
        "n_layers": whole(1, 1 << 10),
        "n_layers_cls": whole(1, 64),
        "mvc": SWITCH,
        "value_style": choice(*get_args(ValueStyle)),
        "n_value_bins": whole(0, 1 << 16),
        "cell_style": choice(*get_args(CellStyle)),
        "n_batches": whole(0, 1 << 16),
        "batch_labels": SWITCH,
        "batch_norm": choice(*get_args(BatchNorm)),
        "adversary": SWITCH,
        "zero_probabilities": SWITCH,
        "perturbation": SWITCH,
        "pert_pad_id": whole(0, 2),
        "decoder_activation": nullable(choice(*get_args(Activation))),
        "adaptive_bias": SWITCH,
        "generative": SWITCH,
        "n_modalities": whole(0, 64),
    }

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
    generative: bool = False
    n_modalities: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_modalities and self.cell_style != "cls":
            msg = f"cell_style={self.cell_style!r} cannot be used with n_modalities={self.n_modalities}. Use cell_style='cls'."
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
        where: str = "args.json",
        **overrides: Any,
    ) -> Self:
        """Read the configuration of an original checkpoint: hyperparameters from ``args.json``, parts from its tensors.

        Heads, encoders and norms of a fine-tuned file are not in ``args.json``, but follow from the tensor names.

        Parameters
        ----------
        args
            Content of ``args.json``; ``embsize, nheads, d_hid, nlayers`` are required.
        shapes
            Shape of every tensor by its canonical name.
        pad_id
            Token id of ``<pad>``.
        where
            File of the hyperparameters, for messages.
        overrides
            Fields that are in neither source, such as ``cell_style`` or ``decoder_activation``.

        Raises
        ------
        WeightsError
            If a size is missing in ``args`` or out of range, or the gene embedding is missing in ``shapes``.
        """
        if len(shapes.get("encoder.embedding.weight", ())) != 2:
            msg = f"The weights of {where} have no table 'encoder.embedding.weight' (tokens, width); found {named(sorted(shapes))}."
            raise WeightsError(msg)
        kinds = {key: cls.kinds[name] for key, name in ARGS.items()}
        check_fields(args, kinds, where=where, missing=list(ARGS)[4:])
        stated = {name: kinds[key].plain(args[key]) for key, name in ARGS.items() if key in args}
        seen = {name: value for name, value in cls.seen_in(shapes).items() if name not in stated}
        heads = cls.heads_in(shapes)["heads"]
        return cls(**{"pad_id": pad_id, "heads": heads, **seen, **stated, **overrides})

    @classmethod
    def seen_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Sizes and parts determined by names and shapes of the tensors."""
        per_batch = sum(name.startswith("dsbn.bns.") and name.endswith("running_mean") for name in shapes)
        table = shapes.get("encoder.embedding.weight", ())
        hidden = shapes.get("transformer_encoder.layers.0.linear1.weight", ())
        category = shapes.get("value_encoder.embedding.weight")
        modalities = shapes.get("mod_encoder.embedding.weight")
        batches = shapes.get("batch_encoder.embedding.weight") or shapes.get(
            "grad_reverse_discriminator.out_layer.weight"
        )
        sizes = {"n_tokens": table[:1], "d_model": table[1:2], "d_hid": hidden[:1]}
        return {
            **{name: size[0] for name, size in sizes.items() if size},
            "n_layers": len({name.split(".")[2] for name in shapes if name.startswith("transformer_encoder.layers.")}),
            "mvc": "mvc_decoder.gene2query.weight" in shapes,
            "value_style": "category"
            if category
            else ("continuous" if "value_encoder.linear1.weight" in shapes else "scaling"),
            "n_value_bins": category[0] if category else 0,
            "n_batches": batches[0] if batches else per_batch,
            "batch_labels": "batch_encoder.embedding.weight" in shapes,
            "batch_norm": "per-batch" if per_batch else ("shared" if "bn.running_mean" in shapes else "none"),
            "adversary": "grad_reverse_discriminator.out_layer.weight" in shapes,
            "zero_probabilities": any(
                ".zero_logit." in name or name.startswith("mvc_decoder.W_zero") for name in shapes
            ),
            "perturbation": "pert_encoder.weight" in shapes,
            "generative": "flag_encoder.weight" in shapes,
            "n_modalities": modalities[0] if modalities else 0,
        }

    @classmethod
    def heads_in(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Numbers of outputs and depth of the heads; the head for classes has the name of released files."""
        last = ".out_layer.weight"
        paths = [name.removesuffix(last) for name in shapes if name.endswith(last) and len(shapes[name]) == 2]
        paths = [path for path in paths if path == "cls_decoder" or path.startswith("heads.")]
        outputs = {"classes" if path == "cls_decoder" else path[6:]: shapes[path + last][0] for path in paths}
        if not paths:
            return {"heads": {}}
        before = (
            name for name, shape in shapes.items() if name.startswith(f"{paths[0]}._decoder.") and len(shape) == 2
        )
        return {"heads": outputs, "n_layers_cls": 1 + len(list(before))}

    def to_args(self) -> dict[str, Any]:
        """Sizes by their names in ``args.json`` of scGPT, for :func:`~scgalore.weights.export_scgpt`."""
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
            "USE_GENERATIVE_TRAINING": self.generative,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`; unknown fields raise :class:`~scgalore.errors.WeightsError`."""
        content = dict(content)
        n_classes = content.pop("n_classes", 0)  # the only head in scgalore 0.5.0
        if n_classes:  # checked like all heads
            content["heads"] = {"classes": n_classes}
        return super().from_dict(content)
