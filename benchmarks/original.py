"""The side of the original program; runs in the environment that ``peers.py`` makes, without scgalore."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import types
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.side import saved_for_backward, serve, storages_of

warnings.simplefilter("ignore")
STATE: dict[str, Any] = {}
SPECIALS = ("<pad>", "<cls>", "<eoc>")


def about() -> dict[str, str]:
    """Versions of what runs here."""
    return {"scgpt": import_module("scgpt").__version__, "torch": torch.__version__}


def import_vocabulary_only() -> dict[str, str]:
    """Load the module of the vocabulary without the package around it, whose other dependencies may be missing."""
    spec = importlib.util.find_spec("scgpt")
    assert spec is not None
    package: Any = types.ModuleType("scgpt")
    package.__path__, package.logger = list(spec.submodule_search_locations or []), logging.getLogger("scGPT")
    sys.modules["scgpt"] = package
    import_module("scgpt.tokenizer.gene_tokenizer")  # not at the first call that is timed
    return {"torchtext": import_module("torchtext").__version__, "torch": torch.__version__}


def vocabulary(folder: str) -> int:
    """Read the vocabulary as ``embed_data`` does."""
    vocab = import_module("scgpt.tokenizer.gene_tokenizer").GeneVocab.from_file(Path(folder) / "vocab.json")
    for token in SPECIALS:
        if token not in vocab:
            vocab.append_token(token)
    STATE["vocab"] = vocab
    return len(vocab)


def load(folder: str) -> list[str]:
    """Build the network and load its weights as ``embed_data`` does; names of parameters that the file did not fill."""
    config = json.loads((Path(folder) / "args.json").read_text())
    vocab = STATE["vocab"]
    model = import_module("scgpt.model").TransformerModel(
        ntoken=len(vocab),
        d_model=config["embsize"],
        nhead=config["nheads"],
        d_hid=config["d_hid"],
        nlayers=config["nlayers"],
        nlayers_cls=config["n_layers_cls"],
        n_cls=1,
        vocab=vocab,
        dropout=config["dropout"],
        pad_token=config["pad_token"],
        pad_value=config["pad_value"],
        do_mvc=True,
        use_fast_transformer=True,
    )
    tensors = torch.load(Path(folder) / "best_model.pt", map_location="cpu")
    import_module("scgpt.utils").load_pretrained(model, tensors, verbose=False)
    STATE.update(model=model.eval(), config=config)
    found = {name.replace("Wqkv.", "in_proj_") for name in tensors}
    return [name for name in model.state_dict() if name not in found]


def open_cells(path: str) -> None:
    """Read cells, and drop genes without a token, as ``embed_data`` does before it runs the network."""
    import anndata as ad

    adata, vocab = ad.read_h5ad(path), STATE["vocab"]
    ids = vocab.get_stoi()
    adata.var["id_in_vocab"] = [ids.get(gene, -1) for gene in adata.var_names]
    STATE["adata"] = adata[:, adata.var["id_in_vocab"] >= 0].copy()


def embed(max_length: int, seed: int = 0, fast_path: bool = True) -> None:  # noqa: FBT001, FBT002 (from JSON)
    """Embed the cells with the loaded network; without torch's fast path, no tensors of unequal cells are made."""
    torch.backends.mha.set_fastpath_enabled(fast_path)
    np.random.seed(seed)  # noqa: NPY002 (ties in the original's binning draw from it)
    torch.manual_seed(seed)
    adata = STATE["adata"]
    STATE["embedding"] = import_module("scgpt.tasks").get_batch_cell_embeddings(
        adata,
        model=STATE["model"],
        vocab=STATE["vocab"],
        max_length=max_length,
        batch_size=64,
        model_configs=STATE["config"],
        gene_ids=np.array(adata.var["id_in_vocab"]),
    )


def end_to_end(path: str, folder: str, max_length: int, fast_path: bool = True) -> None:  # noqa: FBT001, FBT002 (from JSON)
    """``scgpt.tasks.embed_data``, from files to embeddings."""
    torch.backends.mha.set_fastpath_enabled(fast_path)
    options = {"gene_col": "index", "max_length": max_length, "batch_size": 64, "device": "cpu"}
    result = import_module("scgpt.tasks").embed_data(path, folder, **options)
    STATE["embedding"] = result.obsm["X_scGPT"]


def save_embedding(path: str) -> None:
    """Write the last embeddings."""
    np.save(path, STATE["embedding"])


def encode(path: str, out: str) -> None:
    """Embed cells that are tokens already."""
    batch = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    with torch.no_grad():
        hidden = STATE["model"]._encode(batch["genes"], batch["values"], src_key_padding_mask=batch["padding"])
    np.save(out, hidden[:, 0].numpy())


def prepare_training(batch: str, lr: float) -> None:
    """Take a batch and an optimizer with the settings of the original's fine-tuning scripts."""
    STATE["batch"] = {name: torch.from_numpy(array) for name, array in np.load(batch).items()}
    STATE["optimizer"] = torch.optim.Adam(STATE["model"].parameters(), lr=lr, eps=1e-8)


def loss_of(n_cells: int | None, precision: str) -> torch.Tensor:
    """Masked squared error of both heads (GEP and GEPC)."""
    masked_mse_loss = import_module("scgpt.loss").masked_mse_loss
    batch = {name: tensor[:n_cells] for name, tensor in STATE["batch"].items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
        padding = torch.zeros_like(batch["masked"])
        output = STATE["model"](batch["genes"], batch["values"], src_key_padding_mask=padding, MVC=True)
        loss = masked_mse_loss(output["mlm_output"], batch["targets"], batch["masked"])
        return loss + masked_mse_loss(output["mvc_output"], batch["targets"], batch["masked"])


def evaluate(n_cells: int) -> float:
    """Loss without dropout."""
    STATE["model"].eval()
    with torch.no_grad():
        return float(loss_of(n_cells, "32-true"))


def _training(*, attention_dropout: bool) -> torch.nn.Module:
    """The network, which drops attention probabilities as well unless told not to."""
    model: torch.nn.Module = STATE["model"].train()
    for layer in model.modules():
        if isinstance(layer, torch.nn.MultiheadAttention):
            layer.dropout = STATE["config"]["dropout"] if attention_dropout else 0.0
    return model


def saved_bytes(n_cells: int, precision: str, attention_dropout: bool = True) -> int:  # noqa: FBT001, FBT002 (from JSON)
    """Bytes kept for the backward pass."""
    model = _training(attention_dropout=attention_dropout)
    return saved_for_backward(lambda: loss_of(n_cells, precision), storages_of(model))


def step(n_cells: int, precision: str, attention_dropout: bool = True) -> float:  # noqa: FBT001, FBT002 (from JSON)
    """One step of training."""
    model = _training(attention_dropout=attention_dropout)
    STATE["optimizer"].zero_grad()
    loss = loss_of(n_cells, precision)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    STATE["optimizer"].step()
    return loss.item()


if __name__ == "__main__":
    handlers = (
        about,
        import_vocabulary_only,
        vocabulary,
        load,
        open_cells,
        embed,
        end_to_end,
        save_embedding,
        encode,
        prepare_training,
        evaluate,
        saved_bytes,
        step,
    )
    serve({handler.__name__: handler for handler in handlers})
