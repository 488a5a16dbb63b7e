"""The scGPT network in plain torch, from top to bottom: encoders, block, heads, network.

Module names are the tensor names of the released checkpoints, so a file loads and exports without renaming.
Source: Cui et al., Nature Methods 2024, doi:10.1038/s41592-024-02201-0.

Shape letters: b cells, s tokens, d width (``d_model``), h heads, e width of a head, n sequencing batches.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scgalore.errors import OptionError
from scgalore.nn.base import CellNetwork, Encoded
from scgalore.nn.cpu.dropout import Dropout
from scgalore.nn.cpu.linear import Linear, linear
from scgalore.nn.cpu.traced import shapes_may_depend_on
from scgalore.nn.layout import Padded, split_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scgalore.nn.layout import Layout
    from scgalore.nn.scgpt_config import SCGPTConfig

MAX_VALUE = 512.0  # the value encoder saturates here, as in the original
BATCH_NORM_EPS = 6.1e-5
UNPERTURBED, PERTURBED, KNOWN = 0, 1, 2  # rows of the flag embedding, as in scgalore.data.perturbations
GENERATED = 1  # row of the flag embedding of pre-training; the original uses no other


class GeneEncoder(nn.Module):
    """Embedding lookup and norm; also the encoder of sequencing batches."""

    def __init__(self, n_tokens: int, d_model: int, padding_idx: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, d_model, padding_idx=padding_idx)
        self.enc_norm = nn.LayerNorm(d_model)

    def forward(self, ids: Tensor) -> Tensor:
        return self.enc_norm(self.embedding(ids))  # (..., d)


class CategoryValueEncoder(GeneEncoder):
    """Bins as tokens."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.long())  # (b, s, d)


class ContinuousValueEncoder(nn.Module):
    """A two-layer network of one number."""

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = Linear(1, d_model)
        self.linear2 = Linear(d_model, d_model)
        self.norm = nn.LayerNorm(d_model)
        self.dropout = Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        if shapes_may_depend_on(values) and not values.requires_grad:
            levels, level_of = values.unique(return_inverse=True)
            if 2 * len(levels) <= values.numel():  # tokens share them: bins, or zeros
                return self.dropout(F.embedding(level_of, self._encode(levels)))
        return self.dropout(self._encode(values))

    def _encode(self, values: Tensor) -> Tensor:
        x = values.unsqueeze(-1).clamp(max=MAX_VALUE)  # (..., 1)
        return self.norm(self.linear2(F.relu(self.linear1(x))))  # (..., d)


class PackedLinear(Linear):
    """Queries, keys and values by one matrix ``(3 d, d)``."""

    def parts(self, x: Tensor, queries: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of some tokens (those of ``x`` if ``None``), keys and values of the tokens ``x``, each ``(..., d)``."""
        if queries is None:
            q, k, v = self(x).chunk(3, dim=-1)
            return q, k, v
        d = self.out_features // 3
        q_bias, kv_bias = (None, None) if self.bias is None else (self.bias[:d], self.bias[d:])
        k, v = linear(x, self.weight[d:], kv_bias).chunk(2, dim=-1)
        return linear(queries, self.weight[:d], q_bias), k, v


class SplitLinear(nn.Module):
    """Queries, keys and values by three layers, so that adapters can treat them separately."""

    def __init__(self, q: nn.Module, k: nn.Module, v: nn.Module) -> None:
        super().__init__()
        self.q, self.k, self.v = q, k, v

    def parts(self, x: Tensor, queries: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`PackedLinear.parts`. The parts are called as layers; their weights are not used directly."""
        return self.q(x if queries is None else queries), self.k(x), self.v(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.parts(x), dim=-1)  # (..., 3 d)


class SelfAttention(nn.Module):
    """Exact attention over the tokens of a cell."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.Wqkv = PackedLinear(d_model, 3 * d_model)  # an adapter may replace it by a SplitLinear
        self.out_proj = Linear(d_model, d_model)

    def forward(self, x: Tensor, layout: Layout, queries: Tensor | None = None) -> Tensor:
        if queries is not None and self._absorbs(x):
            return self.out_proj(self._attend_once(x, layout, queries))
        q, k, v = self.Wqkv.parts(x, queries)
        mixed = layout.attend(q, k, v, self.n_heads)  # as the queries
        projected = self.out_proj(mixed)
        if queries is not None or layout.generated is None:
            return projected
        # As in training of the released weights: the attention output of generated tokens is not projected.
        return torch.where(layout.generated.unsqueeze(-1), mixed, projected)

    def _absorbs(self, x: Tensor) -> bool:
        # In lower precision the order of the products would show, and other devices attend to all cells in one call.
        return (
            type(self.Wqkv) is PackedLinear
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )

    def _attend_once(self, x: Tensor, layout: Layout, queries: Tensor) -> Tensor:
        """What one query per cell attends to, without keys and values of every token.

        Scores are ``q (W_k x) = (q W_k) x``, and the mean of values is the value of the mean state; the bias of the
        keys is the same for all tokens and changes nothing.
        """
        d, shape = self.Wqkv.out_features // 3, (self.n_heads, -1, self.Wqkv.in_features)
        bias = (None, None) if self.Wqkv.bias is None else (self.Wqkv.bias[:d], self.Wqkv.bias[2 * d :])
        w_q, w_k, w_v = self.Wqkv.weight.split(d)
        q = linear(queries, w_q, bias[0]).reshape(-1, self.n_heads, d // self.n_heads)  # (b, h, e)
        of_states = torch.einsum("bhe,hed->bhd", q * q.shape[-1] ** -0.5, w_k.view(shape))
        mixed = torch.einsum("bhd,hed->bhe", layout.attend_once(of_states, x), w_v.view(shape)).reshape(queries.shape)
        return mixed if bias[1] is None else mixed + bias[1]


class Block(nn.Module):
    """Post-norm transformer block with a ReLU feed-forward layer."""

    def __init__(self, config: SCGPTConfig) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config.d_model, config.n_heads)
        self.linear1 = Linear(config.d_model, config.d_hid)
        self.linear2 = Linear(config.d_hid, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout, *, cls_only: bool = False) -> Tensor:
        queries = layout.cls(x) if cls_only else None
        mixed = self.self_attn(x, layout, queries)
        x = self.norm1((x if queries is None else queries) + self.dropout(mixed))
        hidden = self.dropout(F.relu(self.linear1(x)))  # (..., d_hid)
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class Transformer(nn.Module):
    """The blocks, one after the other; there is no final norm.

    Attributes
    ----------
    recompute
        Whether training stores only the input of each block and recomputes the rest in the backward pass (Chen et al.,
        arXiv:1604.06174): less memory for 10 to 20 % more time on a CPU, with identical results.
    """

    def __init__(self, config: SCGPTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.recompute = False

    def forward(self, x: Tensor, layout: Layout, *, cls_only: bool = False) -> Tensor:
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            short = cls_only and number == last
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, layout, cls_only=short, use_reentrant=False)
            else:
                x = layer(x, layout, cls_only=short)
        return x


class PerBatchNorm(nn.Module):
    """One batch norm per sequencing batch, without affine parameters ("domain-specific batch norm")."""

    def __init__(self, d_model: int, n_batches: int) -> None:
        super().__init__()
        self.bns = nn.ModuleList(nn.BatchNorm1d(d_model, eps=BATCH_NORM_EPS, affine=False) for _ in range(n_batches))

    def start_new(self, n_known: int) -> None:
        """Initialise the batches from ``n_known`` on with the mean statistics of those before."""
        for name in ("running_mean", "running_var"):
            mean = torch.stack([getattr(bn, name) for bn in self.bns[:n_known]]).mean(dim=0)
            for bn in self.bns[n_known:]:
                getattr(bn, name).copy_(mean)

    def forward(self, x: Tensor, batches: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for batch in batches.unique().tolist():
            rows = batches == batch
            out[rows] = self.bns[batch](x[rows].transpose(1, 2)).transpose(1, 2)
        return out


def _expression_mlp(d_in: int, d_model: int) -> nn.Sequential:
    return nn.Sequential(
        Linear(d_in, d_model), nn.LeakyReLU(), Linear(d_model, d_model), nn.LeakyReLU(), Linear(d_model, 1)
    )


class ExpressionDecoder(nn.Module):
    """Expression of each token from its hidden state."""

    def __init__(self, d_in: int, d_model: int, *, zero_probabilities: bool) -> None:
        super().__init__()
        self.fc = _expression_mlp(d_in, d_model)
        self.zero_logit = _expression_mlp(d_in, d_model) if zero_probabilities else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        nonzero = None if self.zero_logit is None else torch.sigmoid(self.zero_logit(x).squeeze(-1))
        return self.fc(x).squeeze(-1), nonzero  # (b, s), (b, s)


class AffineExpressionDecoder(nn.Module):
    """Expression after a perturbation as an affine function of the expression before."""

    def __init__(self, config: SCGPTConfig) -> None:
        super().__init__()
        zeros = config.zero_probabilities
        self.coeff_decoder = ExpressionDecoder(config.d_model, config.d_model, zero_probabilities=zeros)
        self.bias_decoder = ExpressionDecoder(config.d_model, config.d_model, zero_probabilities=zeros)
        self.activation = getattr(nn, config.decoder_activation)() if config.decoder_activation else nn.Identity()
        self.adaptive_bias = config.adaptive_bias

    def start_at_zero(self) -> None:
        """Initialise the decoder to predict 0 for every input, for training with a prior."""
        for parameter in self._last():
            nn.init.zeros_(parameter)

    @property
    def is_zero(self) -> bool:
        """Whether it predicts 0 for every input."""
        return not any(bool(parameter.any()) for parameter in self._last())

    def _last(self) -> list[nn.Parameter]:
        return [p for part in (self.coeff_decoder, self.bias_decoder) for p in part.fc[-1].parameters()]

    def forward(self, x: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        coefficient, nonzero = self.coeff_decoder(x)
        bias = self.activation(self.bias_decoder(x)[0])
        if self.adaptive_bias:
            bias = bias * values.sum(dim=1, keepdim=True) / (values != 0).sum(dim=1, keepdim=True)
        return self.activation(coefficient) * values + bias, nonzero


class CellExpressionDecoder(nn.Module):
    """Expression of each gene from its embedding and the cell embedding alone (scGPT's MVC decoder)."""

    def __init__(self, d_gene: int, d_cell: int, *, zero_probabilities: bool) -> None:
        super().__init__()
        self.gene2query = Linear(d_gene, d_gene)
        self.W = Linear(d_gene, d_cell, bias=False)
        self.W_zero_logit = Linear(d_gene, d_cell) if zero_probabilities else None

    def forward(self, cell: Tensor, genes: Tensor) -> tuple[Tensor, Tensor | None]:
        query = torch.sigmoid(self.gene2query(genes))  # (b, s, d_gene)
        cell = cell.unsqueeze(-1)  # (b, d_cell, 1)
        expression = (self.W(query) @ cell).squeeze(-1)  # (b, s)
        if self.W_zero_logit is None:
            return expression, None
        return expression, torch.sigmoid((self.W_zero_logit(query) @ cell).squeeze(-1))


class CellDecoder(nn.Module):
    """Outputs for a cell, such as class logits: (linear, activation, norm) times ``n_layers - 1``, then linear."""

    def __init__(self, d_model: int, n_outputs: int, n_layers: int, activation: nn.Module) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for _ in range(n_layers - 1):
            steps += [Linear(d_model, d_model), activation, nn.LayerNorm(d_model)]
        self._decoder = nn.Sequential(*steps)
        self.out_layer = Linear(d_model, n_outputs)

    def forward(self, cell: Tensor) -> Tensor:
        return self.out_layer(self._decoder(cell))  # (b, n_outputs)

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.out_layer.out_features


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return -grad_outputs[0]


class SCGPTNetwork(CellNetwork):
    """scGPT: a transformer over the expressed genes of a cell.

    Parameters
    ----------
    config
        Sizes and parts; a disabled part has no parameters.

    Notes
    -----
    Tokens have no positions: their order does not matter. ``encode`` computes hidden states and a cell
    embedding from tokens; the other methods are the heads.
    """

    table = "encoder.embedding"
    # Without generation flags and batches: new ones are also trained when an adapter is attached.
    body = ("encoder", "value_encoder", "pert_encoder", "bn", "transformer_encoder")
    required = ("encoder", "value_encoder", "transformer_encoder")
    pretraining = ("masked", "generative")
    config: SCGPTConfig

    def __init__(self, config: SCGPTConfig) -> None:
        super().__init__(config)
        d = config.d_model
        d_context = 2 * d if config.batch_labels or config.n_modalities else d  # decoders read [state, context]
        d_gene = 2 * d if config.n_modalities else d
        self.encoder = GeneEncoder(config.n_tokens, d, padding_idx=config.pad_id)
        self.value_encoder = _value_encoder(config)
        self.batch_encoder = GeneEncoder(config.n_batches, d) if config.batch_labels else None
        self.pert_encoder = nn.Embedding(3, d, padding_idx=config.pert_pad_id) if config.perturbation else None
        self.dsbn = PerBatchNorm(d, config.n_batches) if config.batch_norm == "per-batch" else None
        self.bn = nn.BatchNorm1d(d, eps=BATCH_NORM_EPS) if config.batch_norm == "shared" else None
        self.transformer_encoder = Transformer(config)
        zeros = config.zero_probabilities
        self.decoder: nn.Module = (
            AffineExpressionDecoder(config)
            if config.perturbation
            else ExpressionDecoder(d_context, d, zero_probabilities=zeros)
        )
        self.mvc_decoder = CellExpressionDecoder(d_gene, d_context, zero_probabilities=zeros) if config.mvc else None
        self.cls_decoder: nn.Module | None = None
        self.grad_reverse_discriminator = (
            CellDecoder(d, config.n_batches, 3, nn.LeakyReLU()) if config.adversary else None
        )
        self.apply(_initialise)
        nn.init.uniform_(self.encoder.embedding.weight, -0.1, 0.1)
        self.put_heads(self.fresh_heads(config.heads))
        # Last, so that networks with and without these draw the same weights.
        self.flag_encoder = nn.Embedding(2, d) if config.generative else None
        self.mod_encoder = GeneEncoder(config.n_modalities, d) if config.n_modalities else None

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the transformer."""
        return list(self.transformer_encoder.layers)

    @property
    def recompute(self) -> bool:
        """See :attr:`Transformer.recompute`."""
        return self.transformer_encoder.recompute

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        self.transformer_encoder.recompute = wanted

    def gene_embeddings(self, genes: Tensor) -> Tensor:
        """Normalised embeddings ``(..., d)`` of token ids."""
        return self.encoder(genes)

    def queries_and_keys(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`CellNetwork.queries_and_keys`."""
        attention = cast("Block", self.blocks[block]).self_attn
        q, k, _ = attention.Wqkv.parts(x)
        return split_heads(q, attention.n_heads), split_heads(k, attention.n_heads)

    def encode(  # type: ignore[override]  # explicit conditions
        self,
        genes: Tensor,
        values: Tensor,
        padding: Tensor | None = None,
        *,
        cell_only: bool = False,
        batches: Tensor | None = None,
        flags: Tensor | None = None,
        generated: Tensor | None = None,
        cell: Tensor | None = None,
        modalities: Tensor | None = None,
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
            Whether only the cell embedding is needed. If that is the state of ``<cls>``, the last block is then applied
            only to this token, and ``hidden`` is ``(b, 1, d)``.
        batches
            Codes of the sequencing batches, int64 ``(b,)``; required by networks with batches.
        flags
            Perturbation flags, int64 ``(b, s)``; required by perturbation networks.
        generated
            ``True`` at tokens whose expression is generated from the other tokens of the cell, bool ``(b, s)``; never
            at ``<cls>``. They have a flag instead of a value and attend to the other tokens and to themselves; no other
            output depends on them, including the cell embedding. Needs a network with ``SCGPTConfig.generative``.
        cell
            Cell embeddings ``(b, d)`` that replace the input of ``<cls>``.
        modalities
            Modality of each token, int64 ``(b, s)``; used only by the decoders, as in scGPT.

        Raises
        ------
        OptionError
            If required batches or flags are missing, or ``generated`` is given to a network that is not generative.
        """
        gene_embeddings = self.encoder(genes)  # (b, s, d)
        # Unused values are arbitrary, and may have no gradient in the value encoder.
        x = self.add_values(gene_embeddings, values if generated is None else values.masked_fill(generated, 0))
        if generated is not None:
            flag = _built(self.flag_encoder, "generative")(generated.new_full((), GENERATED, dtype=torch.int64))
            x = torch.where(generated.unsqueeze(-1), gene_embeddings + flag, x)
        if self.pert_encoder is not None:
            x = x + self.pert_encoder(_given(flags, "flags"))
        x = self.normalise(x, batches)
        if cell is not None:
            x = _put_first(cell, x)
        layout = Padded(padding, genes.shape[1], generated)
        cls_only = cell_only and self.config.cell_style == "cls"
        hidden = self.transformer_encoder(x, layout, cls_only=cls_only)
        return Encoded(hidden, gene_embeddings, self.pool(hidden, values, layout))

    def generate(
        self,
        cell: Tensor,
        genes: Tensor,
        values: Tensor | None = None,
        padding: Tensor | None = None,
        *,
        batches: Tensor | None = None,
        modalities: Tensor | None = None,
    ) -> Tensor:
        """Expression ``(b, s)`` generated from a cell embedding ``(b, d)``, which replaces ``<cls>``."""
        x = self.encoder(genes)
        if values is not None:
            x = self.add_values(x, values)
        x = _put_first(cell, self.normalise(x, batches))
        hidden = self.transformer_encoder(x, Padded(padding, genes.shape[1]))
        return self._decode(hidden, values, batches, modalities)[0]

    def expression(
        self,
        encoded: Encoded,
        values: Tensor,
        *,
        batches: Tensor | None = None,
        modalities: Tensor | None = None,
        **conditions: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Expression of every token ``(b, s)``, and the probability that it is not zero if the network predicts it."""
        return self._decode(encoded.hidden, values, batches, modalities)

    def expression_from_cell(
        self, encoded: Encoded, *, batches: Tensor | None = None, modalities: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Like :meth:`expression`, from the cell embedding and gene embeddings alone."""
        decoder = _built(self.mvc_decoder, "mvc")
        if self.mod_encoder is None:
            return decoder(self._with_context(encoded.cell, batches, None), encoded.genes)
        of_cls = _given(modalities, "modalities")[:, 0]
        genes = self._with_context(encoded.genes, batches, modalities)
        return decoder(self._with_context(encoded.cell, batches, of_cls), genes)

    def expressions(
        self,
        encoded: Encoded,
        values: Tensor,
        *,
        batches: Tensor | None = None,
        modalities: Tensor | None = None,
        **conditions: Tensor | None,
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """``""``: :meth:`expression`; ``"_from_cell"``: :meth:`expression_from_cell`, if the network has that head."""
        context = {"batches": batches, "modalities": modalities}
        predicted = {"": self.expression(encoded, values, **context)}
        if self.mvc_decoder is not None:
            predicted["_from_cell"] = self.expression_from_cell(encoded, **context)
        return predicted

    def expression_change(self, change: Tensor, genes: Tensor) -> Tensor | None:
        """Change of :meth:`expression_from_cell` with the cell embedding, in which it is linear.

        Parameters
        ----------
        change, genes
            As for :meth:`CellNetwork.expression_change`.
        """
        if self.mvc_decoder is None or self.mod_encoder is not None:
            return None
        decoder = self.mvc_decoder
        queries = decoder.W(torch.sigmoid(decoder.gene2query(self.encoder(genes))))  # (s, d) or, with batches, (s, 2 d)
        return change @ queries[:, : change.shape[1]].T

    @property
    def cell_heads(self) -> dict[str, nn.Module]:
        """Heads on the cell embedding by name; the head for classes is that of released checkpoints."""
        own = {} if self.cls_decoder is None else {"classes": self.cls_decoder}
        return {**own, **super().cell_heads}

    def make_head(self, n_outputs: int) -> nn.Module:
        """Create a head of ``n_layers_cls`` layers with random weights."""
        head = CellDecoder(self.config.d_model, n_outputs, self.config.n_layers_cls, nn.ReLU())
        return head.to(self.gene_table.weight)

    def put_heads(self, heads: Mapping[str, nn.Module]) -> None:
        """Replace the heads, and record their sizes in the configuration."""
        self.cls_decoder = heads.get("classes")
        super().put_heads({name: head for name, head in heads.items() if name != "classes"})

    def discriminate(self, encoded: Encoded) -> Tensor:
        """Logits of the sequencing batch ``(b, n)``; the gradient into the cell embedding is reversed."""
        return _built(self.grad_reverse_discriminator, "adversary")(_ReverseGradient.apply(encoded.cell))

    def add_values(self, gene_embeddings: Tensor, values: Tensor) -> Tensor:
        if self.value_encoder is None:
            return gene_embeddings * values.unsqueeze(-1)
        return gene_embeddings + self.value_encoder(values)

    def normalise(self, x: Tensor, batches: Tensor | None) -> Tensor:
        if self.dsbn is not None:
            return self.dsbn(x, _given(batches, "batches"))
        if self.bn is not None:
            return self.bn(x.transpose(1, 2)).transpose(1, 2)
        return x

    def pool(self, hidden: Tensor, values: Tensor, layout: Layout) -> Tensor:
        """Cell embeddings ``(b, d)`` from the last states of all tokens, or of ``<cls>``."""
        if self.config.cell_style == "cls":
            return layout.cells(layout.cls(hidden))
        # The original also pools over padding, so that an embedding depends on other cells in the batch; ours does not.
        if self.config.cell_style == "avg-pool":
            return layout.sum(hidden) / layout.count()
        return F.normalize(layout.sum(hidden * values.unsqueeze(-1)), dim=1)

    @property
    def generates(self) -> bool:
        """Whether it has a flag for generated tokens."""
        return self.config.generative

    def generative_variant(self, *, seed: int) -> Self:
        """Copy to a network with a flag for generated tokens; other weights are kept.

        Parameters
        ----------
        seed
            Seed of the flag embedding, if the network has none.
        """
        variant = copy.deepcopy(self)
        if not self.generates:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                variant.flag_encoder = nn.Embedding(2, self.config.d_model).to(self.gene_table.weight)
            variant.config = self.config.replace(generative=True)
        return variant

    @property
    def reads_flags(self) -> bool:
        """Whether it is a perturbation network."""
        return self.config.perturbation

    def perturbation_variant(self, n_tokens: int, n_known: int, *, seed: int) -> Self:
        """Copy to a network with perturbation flags and embeddings for new genes.

        Encoders and transformer keep their weights; the decoder is new, unless the network already is a perturbation
        network. The flag of unperturbed genes has a zero vector, or keeps its vector. Embeddings of new genes are drawn
        from the distribution of existing ones.

        Parameters
        ----------
        n_tokens, n_known, seed
            As for :meth:`CellNetwork.perturbation_variant`.
        """
        old = self.config
        if self.reads_batches:
            msg = "A network that normalises its inputs within batches cannot be trained on perturbations, which have no batches. Use other weights."
            raise OptionError(msg)
        n_tokens = max(old.n_tokens, n_tokens)
        config = old.replace(n_tokens=n_tokens, perturbation=True, pert_pad_id=UNPERTURBED, n_modalities=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            copy = type(self)(config)
            new = torch.randn(config.n_tokens - n_known, config.d_model)
        tensors = copy.state_dict()
        for name, tensor in self.state_dict().items():
            if name in tensors and tensors[name].shape == tensor.shape:
                tensors[name] = tensor
        genes = self.encoder.embedding.weight.detach()[:n_known]
        tensors["encoder.embedding.weight"] = torch.cat([genes, genes.mean(dim=0) + genes.std(dim=0) * new])
        if old.perturbation and old.pert_pad_id == KNOWN:
            # Padding flag of the original, which no gene ever has.
            flags = tensors["pert_encoder.weight"].clone()
            flags[KNOWN] = flags[PERTURBED]
            tensors["pert_encoder.weight"] = flags
        copy.load_state_dict(tensors)
        return copy.eval()

    def start_at_zero(self) -> None:
        """Initialise the affine decoder to predict 0 for every input."""
        self._affine_decoder().start_at_zero()

    @property
    def starts_at_zero(self) -> bool:
        """Whether the affine decoder, if it has one, predicts 0 for every input."""
        return self.reads_flags and self._affine_decoder().is_zero

    @property
    def reads_batches(self) -> bool:
        """Whether inputs are normalised within each batch."""
        return self.dsbn is not None

    @property
    def decodes_batches(self) -> bool:
        """Whether decoders receive the batch."""
        return self.batch_encoder is not None

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

        Decoders get additional inputs for the batch, with zero weights, so that predictions do not change before
        training. Norms of new batches are initialised with the mean of existing ones.

        Parameters
        ----------
        n_batches, n_known, batch_norm, adversary, from_cell, zeros, seed
            As for :meth:`CellNetwork.integration_variant`.
        """
        own = self.config
        if own.perturbation:
            msg = "A perturbation network does not support batches of cells. Start from the weights before fine-tuning."
            raise OptionError(msg)
        config = own.replace(
            n_batches=n_batches,
            batch_labels=True,
            batch_norm="per-batch" if batch_norm else "none" if self.reads_batches else own.batch_norm,
            adversary=adversary,
            mvc=own.mvc or from_cell,
            zero_probabilities=own.zero_probabilities or zeros,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            variant = type(self)(config)
        old = self.state_dict()
        for name, tensor in variant.state_dict().items():  # references, not copies
            if name not in old:
                continue
            part, before = name.partition(".")[0], old[name]
            if part == "dsbn" and int(name.split(".")[2]) >= n_known:
                continue
            if name.startswith(("batch_encoder.embedding.", "grad_reverse_discriminator.out_layer.")):
                before = before[:n_known]
            if tensor.shape != before.shape and part in ("decoder", "mvc_decoder"):
                tensor.zero_()
            tensor[tuple(map(slice, before.shape))] = before
        if self.dsbn is not None and variant.dsbn is not None and n_known:
            variant.dsbn.start_new(n_known)
        return variant.to(self.gene_table.weight).eval()

    def with_batches(self, n_batches: int) -> Self:
        """Copy with norms for more batches, initialised with the mean of existing ones."""
        has = self.config
        return self.integration_variant(
            n_batches,
            has.n_batches,
            batch_norm=self.dsbn is not None,
            adversary=has.adversary,
            from_cell=has.mvc,
            zeros=has.zero_probabilities,
            seed=0,
        )

    def take_norms(self, other: Self, n_known: int) -> None:
        """Copy the norms of batches from ``n_known`` on from another network."""
        if self.dsbn is not None and other.dsbn is not None:
            for own, new in zip(self.dsbn.bns[n_known:], other.dsbn.bns[n_known:], strict=True):
                own.load_state_dict(new.state_dict())

    @torch.no_grad()
    def estimate_norm(self, batch: int, tokens: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Estimate the norm of one batch from its tokens; parameters as for :meth:`CellNetwork.estimate_norm`."""
        norm = cast("nn.BatchNorm1d", cast("PerBatchNorm", _built(self.dsbn, "batch_norm")).bns[batch])
        assert norm.running_mean is not None
        assert norm.running_var is not None
        device, n = self.gene_table.weight.device, 0
        sums = torch.zeros(2, self.config.d_model, dtype=torch.float64, device=device)
        for genes, values in tokens:
            x = self.add_values(self.encoder(genes.to(device)), values.to(device)).double()
            sums += torch.stack([x.sum(dim=0), x.square().sum(dim=0)])
            n += len(x)
        mean = sums[0] / n
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((sums[1] / n - mean.square()).clamp(min=0) * (n / max(n - 1, 1)))

    def _affine_decoder(self) -> AffineExpressionDecoder:
        return cast("AffineExpressionDecoder", _built(self.decoder if self.reads_flags else None, "perturbation"))

    @property
    def reads_modalities(self) -> bool:
        """Whether decoders use the modality of each token."""
        return self.config.n_modalities > 0

    def multiomic_variant(self, rows: Tensor, n_modalities: int, *, seed: int) -> Self:
        """Copy to a network with more tokens, and with modalities in the decoders.

        New weights of the decoders are initialised with 0, so that predictions of a network without batches do not
        change before training.

        Parameters
        ----------
        rows, n_modalities, seed
            As for :meth:`CellNetwork.multiomic_variant`.
        """
        old = self.config
        config = old.replace(n_tokens=len(rows), n_modalities=n_modalities, perturbation=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            variant = type(self)(config)
        tensors = variant.state_dict()
        for name, tensor in self.state_dict().items():
            if name in tensors and tensor.dim() == tensors[name].dim():
                tensors[name] = _placed(tensor, tensors[name])
        tensors["encoder.embedding.weight"] = rows
        variant.load_state_dict(tensors)
        return variant.eval()

    def _with_context(self, x: Tensor, batches: Tensor | None, modalities: Tensor | None) -> Tensor:
        """States ``(b, d)`` or ``(b, s, d)``, concatenated with embeddings of batch and modality, if used."""
        context: Tensor | None = None
        if self.mod_encoder is not None:
            context = self.mod_encoder(_given(modalities, "modalities"))  # as x
        if self.batch_encoder is not None:
            of_batch = self.batch_encoder(_given(batches, "batches"))  # (b, d)
            of_batch = of_batch.unsqueeze(1).expand_as(x) if x.dim() == 3 else of_batch
            context = of_batch if context is None else context + of_batch
        return x if context is None else torch.cat([x, context], dim=-1)

    def _decode(
        self, hidden: Tensor, values: Tensor | None, batches: Tensor | None, modalities: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.config.perturbation:
            return self.decoder(hidden, values)
        return self.decoder(self._with_context(hidden, batches, modalities))


def _placed(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy a tensor to the first rows and columns of a zero tensor of another shape."""
    if tensor.shape == like.shape:
        return tensor
    larger = torch.zeros_like(like)
    larger[tuple(slice(n) for n in tensor.shape)] = tensor
    return larger


def _value_encoder(config: SCGPTConfig) -> nn.Module | None:
    if config.value_style == "continuous":
        return ContinuousValueEncoder(config.d_model, config.dropout)
    if config.value_style == "category":
        # Convention of scGPT: the last but one bin is padding.
        return CategoryValueEncoder(config.n_value_bins, config.d_model, padding_idx=config.n_value_bins - 2)
    return None


def _initialise(module: nn.Module) -> None:
    if isinstance(module, SelfAttention):
        # As torch's MultiheadAttention, which scGPT uses without flash-attn.
        nn.init.xavier_uniform_(module.Wqkv.weight)
        nn.init.zeros_(module.Wqkv.bias)
        nn.init.zeros_(module.out_proj.bias)


def _put_first(cell: Tensor, x: Tensor) -> Tensor:
    """Replace the first token of ``x``, ``(b, s, d)``, by cell embeddings ``(b, d)``."""
    return torch.cat([cell.unsqueeze(1), x[:, 1:]], dim=1)


def _given(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        msg = (
            f"This network has a part that needs `{name}`, but the cells have none. Build the network without "
            "that part; see SCGPTConfig."
        )
        raise OptionError(msg)
    return tensor


def _built(module: nn.Module | None, field: str) -> nn.Module:
    if module is None:
        msg = f"This network does not have this part: SCGPTConfig.{field} is disabled."
        raise OptionError(msg)
    return module
