"""One side of the benchmark of scBERT: a network of its size, by us or by performer-pytorch, on one real or drawn cell."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.side import serve
from torch import Tensor, nn

STATE: dict[str, Any] = {}


class Original(nn.Module):
    """scBERT's configuration around performer-pytorch's Performer: depth 6, width 200, 10 heads of 64, its other defaults."""

    def __init__(self, n_genes: int, sizes: dict[str, int]) -> None:
        from performer_pytorch import Performer

        super().__init__()
        d = sizes["d_model"]
        self.token_emb = nn.Embedding(7, d)
        self.pos_emb = nn.Embedding(n_genes + 1, d)
        self.pos_emb.weight.requires_grad = False
        how = {"dim": d, "depth": sizes["n_layers"], "heads": sizes["n_heads"], "dim_head": sizes["d_head"]}
        self.performer = Performer(**how, ff_dropout=0.0, attn_dropout=0.0)
        self.norm = nn.LayerNorm(d)
        self.to_out = nn.Linear(d, 7)

    def forward(self, genes: Tensor, values: Tensor) -> Tensor:
        """Hidden states ``(b, s, d)``."""
        return self.norm(self.performer(self.token_emb(values) + self.pos_emb(genes)))


def build(kind: str, n_genes: int, sizes: dict[str, int], folder: str | None) -> int:
    """Make a network with random weights: ``"performer-pytorch"``, ``"favor"`` or ``"exact"``; its trainable parameters."""
    torch.manual_seed(0)
    if kind == "performer-pytorch":
        sys.path.append(str(folder))
        network: Any = Original(n_genes, sizes)
    else:
        from scgalore.nn import SCBERTConfig, SCBERTNetwork

        how = {"n_tokens": n_genes + 2, "pad_id": n_genes + 1, "attention": kind, "gene2vec": True}
        how["d_hid"] = 4 * sizes["d_model"]
        network = SCBERTNetwork(SCBERTConfig(**how, **sizes))
    STATE["kind"], STATE["network"] = kind, network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    STATE["optimizer"] = torch.optim.Adam(trained, lr=1e-4)
    return sum(p.numel() for p in trained)


def set_cell(n_genes: int, n_expressed: int, *, every: bool) -> int:
    """Draw one cell, with all genes as tokens or the expressed ones; its tokens."""
    generator = torch.Generator().manual_seed(0)
    expressed = torch.randperm(n_genes, generator=generator)[:n_expressed]
    classes = torch.zeros(n_genes + 1, dtype=torch.int64)
    classes[expressed] = torch.randint(1, 6, (n_expressed,), generator=generator)
    genes = torch.arange(n_genes + 1) if every else torch.cat([torch.tensor([n_genes]), expressed.sort().values])
    STATE["genes"], STATE["values"] = genes[None], classes[genes][None]
    places = (STATE["values"] > 0).nonzero()
    STATE["masked"] = places[: -(-n_expressed * 15 // 100)]
    return len(genes)


def _hidden(values: Tensor) -> Tensor:
    if STATE["kind"] == "performer-pytorch":
        return STATE["network"](STATE["genes"], values)
    return STATE["network"].encode(STATE["genes"], values.float()).hidden


def step(repeats: int = 1) -> float:
    """Training steps on the masked cell: forwards, backwards, Adam; the loss of the last."""
    STATE["network"].train()
    rows, columns = STATE["masked"].T
    values = STATE["values"].clone()
    values[rows, columns] = 6
    for _ in range(repeats):
        # The original has logits of all tokens.
        logits = STATE["network"].to_out(_hidden(values))
        loss = F.cross_entropy(logits[rows, columns], STATE["values"][rows, columns])
        loss.backward()
        STATE["optimizer"].step()
        STATE["optimizer"].zero_grad()
    return float(loss.detach())


@torch.no_grad()
def embed(repeats: int = 1) -> float:
    """Embed the cell by the mean of its tokens; the norm."""
    STATE["network"].eval()
    for _ in range(repeats):
        cell = _hidden(STATE["values"]).mean(dim=1)
    return float(cell.norm())


@torch.no_grad()
def feature_error(scale: float, seed: int, n_features: int, length: int) -> list[float]:
    """Error of attention by features against softmax attention, and that of plain averaging, relative to its norm."""
    from scgalore.nn.favor import attend_by_features, orthogonal_features

    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 4, length, 64, generator=generator) for _ in range(3))
    exact = F.scaled_dot_product_attention(scale * q, scale * k, v)
    found = attend_by_features(scale * q, scale * k, v, orthogonal_features(n_features, 64, generator))
    plain = v.mean(dim=2, keepdim=True).expand_as(exact)
    return [float((one - exact).norm() / exact.norm()) for one in (found, plain)]


if __name__ == "__main__":
    handlers = {"build": build, "set_cell": set_cell, "step": step, "embed": embed, "feature_error": feature_error}
    serve(handlers)
