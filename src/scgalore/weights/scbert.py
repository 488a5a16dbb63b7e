"""Checkpoint files of scBERT: one archive with weights, optimizer and schedule, of genes in a fixed order.

The order of the released file's genes is ``scbert_genes.txt``, 16,906 symbols (huynguyen250896/nano-scBERT at 845f1c5,
MIT).
"""

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scgalore._files import file_digest
from scgalore._folders import recover_folder
from scgalore._json import named, read_json
from scgalore.errors import WeightsError
from scgalore.weights.checkpoint import VOCAB_BYTES, Checkpoint, check_tensors, read_archive, read_checkpoint
from scgalore.weights.finite import tensors_in

__all__ = [
    "N_GENES",
    "SPECIALS",
    "finds_scbert",
    "join_digits",
    "read_scbert",
    "released_genes",
    "released_tensors",
    "split_digits",
]

N_GENES = 16906
"""Number of genes of the released file."""

SPECIALS = ("<cls>", "<pad>")
"""Special tokens, after the genes: the trailing token of scBERT, and padding, which scBERT does not have."""

TABLE, DIGITS = "pos_emb.emb.weight", "pos_emb.emb.digits"


@cache
def released_genes() -> tuple[str, ...]:
    """Symbols of the released file's genes, in the order of its tokens."""
    return tuple(Path(__file__).with_name("scbert_genes.txt").read_text(encoding="utf-8").split())


def finds_scbert(path: Path) -> bool:
    """Whether a path is a checkpoint file of scBERT, or a folder with one."""
    return path.suffix == ".pth" or path.is_dir() and any(path.glob("*.pth"))


def read_scbert(folder: str | os.PathLike[str], *, args: Mapping[str, Any] | None = None) -> Checkpoint:
    """Read scBERT weights: a folder in the layout of scgalore, an original ``.pth`` file, or a folder with one.

    Parameters
    ----------
    folder
        Folder or file. For a ``.pth`` file, ``vocab.json`` in its folder maps each gene to its row; without it, the
        file must have the genes of the released one.
    args
        As for :func:`scgalore.weights.read_checkpoint`.

    Returns
    -------
    The checkpoint. The gene table has an additional row for ``<pad>``, and its float64 values are split into float32
    values and the remaining digits. Tensors of the optimizer are listed with their names in the file.

    Raises
    ------
    WeightsError
        As for :func:`scgalore.weights.read_checkpoint`, and if the genes are unknown.

    See Also
    --------
    scgalore.weights.read_checkpoint : Read a checkpoint folder of any layout.
    scgalore.weights.export_scbert : Write a checkpoint file of scBERT.

    Examples
    --------
    >>> import scgalore as sg
    >>> checkpoint = sg.weights.read_scbert("panglao_pretrain.pth")
    """
    path = Path(folder).expanduser()
    recover_folder(path)
    if path.suffix != ".pth":
        files = sorted(path.glob("*.pth"))
        if not files or (path / "model.safetensors").exists():
            return read_checkpoint(path, args=args)
        if len(files) > 1:
            msg = f"{path} holds {[file.name for file in files]}. Pass the path of the file to load."
            raise WeightsError(msg)
        (path,) = files
    try:
        content = read_archive(path)
        sha256 = file_digest(path)
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}. Download or save it again."
        raise WeightsError(msg) from error
    state = content.get("model_state_dict", content)
    if not isinstance(state, Mapping):
        msg = f"{path}: model_state_dict is a {type(state).__name__}; expected a dict of tensors."
        raise WeightsError(msg)
    own = {name.removeprefix("module.") if isinstance(name, str) else name: tensor for name, tensor in state.items()}
    others = {} if state is content else {key: part for key, part in content.items() if key != "model_state_dict"}
    tensors = check_tensors(path, {**own, **dict(tensors_in(others))})
    table = tensors.get(TABLE)
    if table is None or table.ndim != 2 or len(table) < 2:
        msg = f"{path} holds no table {TABLE!r} (genes and a trailing token, width); found {named(sorted(tensors))}."
        raise WeightsError(msg)
    vocab = _vocab(path, len(table) - 1)
    padded = torch.cat([table.double(), table.new_zeros(1, table.shape[1], dtype=torch.float64)])
    tensors[TABLE], tensors[DIGITS] = split_digits(padded)
    return Checkpoint({}, vocab, tensors, "scbert", path.parent, sha256, str(path), str(path))


def released_tensors(tensors: Mapping[str, Tensor], genes: Iterable[int], cls_id: int) -> dict[str, Tensor]:
    """Weights of a network with the names, shapes and dtypes of the released file.

    Parameters
    ----------
    tensors
        Tensors of the network, with attention by random features.
    genes
        Rows of the genes, in order.
    cls_id
        Row of ``<cls>``.
    """
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(("heads.", "to_scalars.")) and name != DIGITS
    }
    table = tensors[TABLE]
    digits = tensors.get(DIGITS, table.new_zeros(2, *table.shape))
    rows = torch.tensor([*genes, cls_id])
    return {**kept, TABLE: join_digits(table[rows], digits[:, rows])}


def split_digits(table: Tensor) -> tuple[Tensor, Tensor]:
    """Split float64 values into float32 values and two float32 remainders: ``(n, d)`` and ``(2, n, d)``."""
    weight = table.float()
    middle = (table - weight).float()
    return weight, torch.stack([middle, (table - weight - middle).float()])


def join_digits(weight: Tensor, digits: Tensor) -> Tensor:
    """Inverse of :func:`split_digits`; remainders are ignored for values that have changed in training."""
    table = weight.double() + digits[0].double() + digits[1].double()
    return torch.where(table.float() == weight, table, weight.double())


def _vocab(path: Path, n_genes: int) -> dict[str, int]:
    where = path.with_name("vocab.json")
    if where.exists():
        vocab = read_json(where, max_bytes=VOCAB_BYTES)
        genes = {token: index for token, index in vocab.items() if not token.startswith("<")}
        if sorted(map(str, genes.values())) != sorted(map(str, range(n_genes))):
            msg = f"{where} numbers {len(genes):,} genes; expected {{gene: row}} with the rows 0 to {n_genes - 1:,} of {path}."
            raise WeightsError(msg)
    elif n_genes == N_GENES:
        genes = {gene: number for number, gene in enumerate(released_genes())}
    else:
        msg = (
            f"{path} has {n_genes:,} genes, and the released scBERT has {N_GENES:,}, so their names are not known. "
            f"Write {{gene: row}} to {where}."
        )
        raise WeightsError(msg)
    return {**genes, **{token: n_genes + number for number, token in enumerate(SPECIALS)}}
