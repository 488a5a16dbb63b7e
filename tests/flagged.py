"""A small screen as cells with flags, with every awkward kind of gene, and a network that reads it."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgalore.data.expression import LogExpression
from scgalore.data.perturbations import FlagTokenizer, HeldOutPrior, PerturbationCells, Targets
from scgalore.data.split import Split
from scgalore.data.tokens import TokenBatch
from scgalore.nn import SCGPTConfig, SCGPTNetwork

PAD, CLS = 60, 61
N_TOKENS = 64
TOKEN_IDS = np.array([17, 3, -1, 29, 8, 41, 5, -1, 22, 11, 36, 2])
"""Token of each column: in no order, and two columns have none."""

TARGETS = ((29,), (50,), (3, 51), (50, 51), (8, 36))
"""Tokens of the perturbed genes of each row: measured, not measured, one of each, two not measured, two measured."""

KNOWN = (29, 3, 51, 8)
"""Tokens of genes whose effect the prior knows; without the row itself it knows the first two only."""

CONTROL, LEFT_OUT, TEST = -1, -2, -3
OF_CELL = np.array(
    [CONTROL] * 6 + [0] * 7 + [1] * 5 + [2] * 4 + [3] * 3 + [4] * 4 + [CONTROL] * 3 + [TEST] * 4 + [LEFT_OUT] * 2
)
"""Row of each cell, or what else it is. Rows 3 and 4 are those of validation."""

SECOND_POOL = np.isin(np.arange(len(OF_CELL)), (1, 4, 8, 9, 15, 22, 29, 30))


def targets(known: tuple[int, ...]) -> tuple[Targets, ...]:
    """Perturbed genes of each row."""
    return tuple(Targets(np.array(tokens), np.isin(tokens, known)) for tokens in TARGETS)


def flagged_cells(
    *,
    prior: bool = True,
    held_out: bool = False,
    tokenizer: dict[str, Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> PerturbationCells:
    """All values differ, so that each can be found again; cells of the second pool have partners of their own."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0.1, 5, (len(OF_CELL), len(TOKEN_IDS))).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0
    adata = AnnData(x, obs=pd.DataFrame(index=[f"c{i}" for i in range(len(x))]))
    pools = tuple(np.flatnonzero((OF_CELL == CONTROL) & (second == SECOND_POOL)) for second in (False, True))
    shape = (len(TARGETS), len(TOKEN_IDS))
    return PerturbationCells(
        expression=LogExpression.from_adata(adata),
        tokenizer=FlagTokenizer(TOKEN_IDS, cls_id=CLS, pad_id=PAD, **(tokenizer or {})),
        targets=targets(KNOWN if prior else ()),
        rows=np.maximum(OF_CELL, -1),
        pools=SECOND_POOL.astype(np.int64),
        pool_cells=pools,
        row_pools=(*pools, pools[0], *pools),
        means=rng.uniform(0, 5, shape).astype(np.float32),
        controls=rng.uniform(0, 5, shape).astype(np.float32),
        prior=rng.normal(0, 1, shape).astype(np.float32) if prior else None,
        held_out=HeldOutPrior(rng.normal(0, 1, shape).astype(np.float32), targets(KNOWN[:2])) if held_out else None,
        seed=seed,
        **{"n_controls": 5, **options},
    )


def tensor_of(batch: TokenBatch, name: str) -> torch.Tensor:
    """A tensor of a batch by its name, wherever it is."""
    tensors: dict[str, Any] = {**vars(batch), **batch.conditions, **batch.targets}
    return tensors[name]


def flagged_split() -> Split:
    """Validation cells are those of rows 3 and 4; control cells lie in every part."""
    part = np.where(np.isin(OF_CELL, (3, 4)), "validation", "train")
    part[OF_CELL <= LEFT_OUT] = "test"
    part[[0, 1]] = "validation", "test"
    return Split(*(np.flatnonzero(part == name) for name in ("train", "validation", "test")))


def flag_network(*, seed: int = 0, at_zero: bool = False, **config: Any) -> SCGPTNetwork:
    """Random weights; at zero it predicts 0 until it is trained."""
    sizes = {"d_model": 16, "n_heads": 2, "d_hid": 32, "n_layers": 2, "dropout": 0.1, "mvc": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SCGPTNetwork(
            SCGPTConfig(n_tokens=N_TOKENS, pad_id=PAD, perturbation=True, pert_pad_id=0, **{**sizes, **config})
        )
    if at_zero:
        network.start_at_zero()
    return network
