"""The scBERT network in plain torch, from top to bottom: gene table, attention, block, network.

Module names are the tensor names of the released checkpoint. Written from the paper and a description of the file's
layout. Source: Yang et al., Nature Machine Intelligence 2022, doi:10.1038/s42256-022-00534-z.

Shape letters: b cells, s tokens, d width (``d_model``), h heads, e width of a head.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils.checkpoint import checkpoint

from scgalore.nn.base import CellNetwork, Encoded
from scgalore.nn.cpu.linear import Linear
from scgalore.nn.favor import attend_by_features, orthogonal_features
from scgalore.nn.layout import Padded, split_heads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scgalore.nn.scbert_config import SCBERTConfig

__all__ = ["SCBERTNetwork"]

REDRAW_AFTER = 1000
"""Number of forward passes in training before new features are drawn: one in 1,001 draws them."""


class GeneTable(nn.Embedding):
    """Fixed gene embeddings, with a float64 remainder, which some devices do not support."""

    def __init__(self, n_tokens: int, d_model: int, padding_idx: int) -> None:
        super().__init__(n_tokens, d_model, padding_idx=padding_idx)
        self.weight.requires_grad = False
        self.register_buffer("digits", torch.zeros(2, n_tokens, d_model))
        self.digits: Tensor


class Genes(nn.Module):
    """Embedding of each gene, instead of position embeddings in other transformers."""

    def __init__(self, config: SCBERTConfig) -> None:
        super().__init__()
        kind = GeneTable if config.gene2vec else nn.Embedding
        self.emb: nn.Embedding = kind(config.n_tokens, config.d_model, padding_idx=config.pad_id)

    def forward(self, genes: Tensor) -> Tensor:
        return self.emb(genes)  # (..., d)


class Mixing(Protocol):
    """Interface of attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: Padded, n_heads: int) -> Tensor:
        """Mix values ``(b, s, h e)``."""
        ...


class ExactAttention(nn.Module):
    """Softmax attention."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Padded, n_heads: int) -> Tensor:
        return layout.attend(q, k, v, n_heads)


class FeatureAttention(nn.Module):
    """Attention by random features, which are stored with the weights that were trained with them."""

    def __init__(self, n_features: int, d_head: int) -> None:
        super().__init__()
        self.register_buffer("projection_matrix", orthogonal_features(n_features, d_head))
        self.projection_matrix: Tensor

    def forward(self, q: Tensor, k: Tensor, v: Tensor, layout: Padded, n_heads: int) -> Tensor:
        # In float32 also under autocast: the exponential turns rounding errors of exponents into relative errors.
        with torch.autocast(q.device.type, enabled=False):
            queries, keys, values = (split_heads(part.float(), n_heads) for part in (q, k, v))
            mixed = attend_by_features(queries, keys, values, self.projection_matrix.float(), layout.unseen)
        return mixed.transpose(1, 2).flatten(-2).to(q.dtype)

    @torch.no_grad()
    def redraw(self, generator: torch.Generator) -> None:
        """Draw new features."""
        n_features, width = self.projection_matrix.shape
        self.projection_matrix.copy_(orthogonal_features(n_features, width, generator))


class SelfAttention(nn.Module):
    """Queries, keys and values by three layers without bias."""

    def __init__(self, config: SCBERTConfig) -> None:
        super().__init__()
        d, inner = config.d_model, config.n_heads * config.d_head
        self.n_heads = config.n_heads
        favor = config.attention == "favor"
        self.fast_attention: nn.Module = (
            FeatureAttention(config.n_features, config.d_head) if favor else ExactAttention()
        )
        self.to_q = Linear(d, inner, bias=False)
        self.to_k = Linear(d, inner, bias=False)
        self.to_v = Linear(d, inner, bias=False)
        self.to_out = Linear(inner, d)

    def forward(self, x: Tensor, layout: Padded, *, cls_only: bool = False) -> Tensor:
        queries = layout.cls(x) if cls_only else x
        return self.to_out(self.fast_attention(self.to_q(queries), self.to_k(x), self.to_v(x), layout, self.n_heads))


class FeedForward(nn.Module):
    """Two layers with GELU."""

    def __init__(self, config: SCBERTConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.d_model, config.d_hid)
        self.w2 = Linear(config.d_hid, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(x)))


class Wrapped(nn.Module):
    """Level in the names of the released tensors; the original chunks tokens here."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Normed(nn.Module):
    """A layer norm in front of a sublayer."""

    def __init__(self, d_model: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.fn = fn

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return self.fn(self.norm(x), *args, **options)


class Block(nn.ModuleList):
    """Pre-norm transformer block."""

    def __init__(self, config: SCBERTConfig) -> None:
        d = config.d_model
        super().__init__([Normed(d, SelfAttention(config)), Normed(d, Wrapped(FeedForward(config)))])

    def forward(self, x: Tensor, layout: Padded, *, cls_only: bool = False) -> Tensor:
        attention, feed_forward = self
        mixed = attention(x, layout, cls_only=cls_only)
        x = (layout.cls(x) if cls_only else x) + mixed
        return x + feed_forward(x)


class Blocks(nn.Module):
    """The blocks, one after the other."""

    def __init__(self, config: SCBERTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))


class Performer(nn.Module):
    """The blocks, with periodic redrawing of their features.

    Attributes
    ----------
    recompute
        As :attr:`scgalore.nn.CellNetwork.recompute`.
    seed
        Seed for features drawn in training.
    """

    def __init__(self, config: SCBERTConfig) -> None:
        super().__init__()
        self.net = Blocks(config)
        self.recompute, self.seed = False, 0
        if config.attention == "favor":
            self.register_buffer("calls_since_last_redraw", torch.tensor(0))
            self.calls_since_last_redraw: Tensor

    def forward(self, x: Tensor, layout: Padded, *, cls_only: bool = False) -> Tensor:
        if self.training and hasattr(self, "calls_since_last_redraw"):
            self._count()
        last = len(self.net.layers) - 1
        for number, layer in enumerate(self.net.layers):
            short = cls_only and number == last
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, layout, cls_only=short, use_reentrant=False)
            else:
                x = layer(x, layout, cls_only=short)
        return x

    @torch.no_grad()
    def _count(self) -> None:
        """Count a forward pass in training, or draw new features and restart counting."""
        calls = self.calls_since_last_redraw
        if is_fake(calls) or calls.is_meta:
            return  # memory is traced without data
        if calls < REDRAW_AFTER:
            calls += 1
            return
        calls.zero_()
        attentions = [part for part in self.modules() if isinstance(part, FeatureAttention)]
        # The seed is derived from the current features: identical in every process and in a resumed run.
        state = hashlib.blake2b(f"{self.seed}".encode(), digest_size=7)
        for attention in attentions:
            state.update(attention.projection_matrix.cpu().numpy().tobytes())
        generator = torch.Generator().manual_seed(int.from_bytes(state.digest(), "little"))
        for attention in attentions:
            attention.redraw(generator)


class TokensHead(nn.Module):
    """Outputs for a cell from one number per gene, with two hidden layers."""

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_inputs, 512)
        self.fc2 = nn.Linear(512, 128)
        self.fc3 = nn.Linear(128, n_outputs)

    def forward(self, scalars: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(scalars)))))

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self.fc3.out_features


class SCBERTNetwork(CellNetwork):
    """scBERT: a Performer over all genes of a cell.

    Parameters
    ----------
    config
        Sizes and parts.

    Notes
    -----
    A token is the embedding of its gene plus that of its class of expression. scBERT's trailing token, whose
    gene embedding is 0, is ``<cls>`` here and comes first: tokens have no positions.
    """

    table = "pos_emb.emb"
    body = required = ("token_emb", "pos_emb", "performer", "norm")
    pretraining = ("classes",)
    config: SCBERTConfig

    def __init__(self, config: SCBERTConfig) -> None:
        super().__init__(config)
        d = config.d_model
        self.token_emb = nn.Embedding(config.n_bins + 1, d)
        self.pos_emb = Genes(config)
        self.performer = Performer(config)
        self.norm = nn.LayerNorm(d)
        self.to_out = nn.Linear(d, config.n_bins + 1)
        self.to_scalars = nn.Linear(d, 1) if config.head == "tokens" else None
        self.put_heads(self.fresh_heads(config.heads))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of the transformer."""
        return list(self.performer.net.layers)

    @property
    def recompute(self) -> bool:
        """Whether training stores only the input of each block."""
        return self.performer.recompute

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        self.performer.recompute = wanted

    @property
    def seed(self) -> int:
        """Seed for features drawn in training."""
        return self.performer.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.performer.seed = seed

    def queries_and_keys(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`CellNetwork.queries_and_keys`."""
        normed = cast("Normed", cast("Block", self.blocks[block])[0])
        attention = cast("SelfAttention", normed.fn)
        x = normed.norm(x)
        return split_heads(attention.to_q(x), attention.n_heads), split_heads(attention.to_k(x), attention.n_heads)

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
            Classes of expression, float ``(b, s)``.
        padding
            ``True`` at padding, ``(b, s)``.
        cell_only
            Whether only the cell embedding is needed. If that is the state of ``<cls>``, the last block is then applied
            only to this token, and ``hidden`` is ``(b, 1, d)``.
        conditions
            Not used.

        Returns
        -------
        States and embeddings. If heads use all tokens, ``cell`` has one number per gene after the cell embedding,
        ``(b, d + n_tokens)``: 0 for genes that are not tokens.
        """
        embedded = self.gene_embeddings(genes)  # (b, s, d)
        x = embedded + self.token_emb(values.long())
        layout = Padded(padding, genes.shape[1])
        of_cls = self.config.pooling == "cls"
        hidden = self.norm(self.performer(x, layout, cls_only=cell_only and of_cls and self.to_scalars is None))
        cell = hidden[:, 0] if of_cls else layout.sum(hidden) / layout.count()
        if self.to_scalars is not None:
            scalars = F.relu(self.to_scalars(hidden).squeeze(-1))  # (b, s)
            if padding is not None:
                scalars = scalars.masked_fill(padding, 0)
            of_genes = scalars.new_zeros(len(genes), self.config.n_tokens).scatter(1, genes, scalars)
            cell = torch.cat([cell, of_genes.to(cell.dtype)], dim=1)
        return Encoded(hidden, embedded, cell)

    def embedding(self, cell: Tensor) -> Tensor:
        """Cell embeddings ``(b, d)`` in ``cell`` of :meth:`encode`."""
        return cell[:, : self.config.d_model]

    def make_head(self, n_outputs: int) -> nn.Module:
        """Create a head with random weights: a linear layer, or one that uses all tokens."""
        if self.config.head == "linear":
            return super().make_head(n_outputs)
        return TokensHead(self.config.n_tokens, n_outputs).to(self.gene_table.weight)

    def read_head(self, name: str, cell: Tensor) -> Tensor:
        """Outputs ``(b, n_outputs)`` of one head for ``cell`` of :meth:`encode`."""
        return super().read_head(name, cell if self.to_scalars is None else cell[:, self.config.d_model :])

    def class_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the classes of expression ``(..., n_bins + 1)``, the one for masked values last, from states ``(..., d)``."""
        return self.to_out(hidden)

    def expression(self, encoded: Encoded, values: Tensor, **conditions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Mean class of every token under its probabilities, ``(b, s)``."""
        logits = self.class_logits(encoded.hidden)[..., :-1].float()
        classes = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
        return logits.softmax(dim=-1) @ classes, None
