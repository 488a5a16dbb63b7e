"""Run a network over many cells."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F

from scgalore import _logging as logg
from scgalore._progress import progress
from scgalore._settings import settings
from scgalore.data.sampler import cut_batches
from scgalore.errors import OptionError
from scgalore.model.distributed import refuse_devices
from scgalore.nn import AttentionMeans, CellOutput
from scgalore.nn.cpu import gain_of_bfloat16, kernels_in_words
from scgalore.nn.cpu.measure import MARGIN
from scgalore.nn.device import pick_device
from scgalore.nn.finite import refuse_not_finite_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from scgalore.data.source import TokenSource
    from scgalore.data.tokens import RaggedTokens, TokenizerConfig
    from scgalore.nn import CellNetwork
    from scgalore.nn.attention import AttentionScale

__all__ = [
    "InferencePrecision",
    "RunOptions",
    "levels_of",
    "mean_attention",
    "mean_states",
    "pick_dtype",
    "run_network",
]

InferencePrecision = Literal["auto", "32-true", "bf16-true"]

WINDOW = 1024
"""Number of cells in memory at once."""

BATCH_TOKENS = {True: 4096, False: 65536}
"""Default maximum number of tokens per batch, on a CPU (so that a layer fits into its caches) and on other devices."""


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Convert Lightning's name of a precision to a dtype.

    Parameters
    ----------
    precision
        ``"32-true"``, ``"bf16-true"``, or ``"auto"``: bfloat16 on GPUs that support it, float32 otherwise; on a CPU also
        bfloat16 if ``sg.settings.cpu_bfloat16`` is set and it was measured to be faster. If it is requested but slower, a
        warning is logged once.
    device
        Torch device.

    Raises
    ------
    OptionError
        If the precision does not exist.
    """
    if precision not in get_args(InferencePrecision):
        msg = f"precision={precision!r}: choose one of {', '.join(map(repr, get_args(InferencePrecision)))}."
        raise OptionError(msg)
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
        wants_it = device.type == "cpu" and settings.cpu_bfloat16
        return torch.bfloat16 if has_it or (wants_it and gain_of_bfloat16() >= MARGIN) else torch.float32
    if precision == "bf16-true" and device.type == "cpu" and (gain := gain_of_bfloat16()) < 1:
        _warn_of_bfloat16(gain)
    return torch.bfloat16 if precision == "bf16-true" else torch.float32


@cache
def _warn_of_bfloat16(gain: float) -> None:
    logg.warning(
        f"precision='bf16-true' is slower than float32 on this processor: a layer was measured at {gain:.2f} times its speed. "
        "Pass precision='32-true'."
    )


@dataclass(frozen=True)
class RunOptions:
    """Checked options for running a network.

    Attributes
    ----------
    device, dtype
        Device and precision.
    batch_size, batch_tokens
        Maximum numbers of cells and tokens per batch; ``None`` sets no limit for cells, and the default of the device
        for tokens.
    """

    device: torch.device
    dtype: torch.dtype
    batch_size: int | None
    batch_tokens: int | None

    @classmethod
    def of(
        cls,
        *,
        precision: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        accelerator: str | None = None,
        devices: int | str | None = None,
    ) -> Self:
        """Check options, with defaults from ``sg.settings``.

        Raises
        ------
        OptionError
            If the precision or device does not exist, a limit is not positive, or the number of processes differs from
            ``devices``.
        """
        refuse_devices(devices)
        for name, most in (("batch_size", batch_size), ("batch_tokens", batch_tokens)):
            if most is not None and most < 1:
                msg = f"{name}={most}: it must be at least 1."
                raise OptionError(msg)
        device = pick_device(accelerator or settings.accelerator)
        dtype = pick_dtype(precision or settings.precision, device)
        return cls(device, dtype, batch_size or settings.batch_size, batch_tokens or settings.batch_tokens)


def run_network(
    network: CellNetwork,
    cells: TokenSource,
    *,
    encoder: Callable[..., Any],
    rows: NDArray[np.int64] | None = None,
    batch_size: int | None = None,
    batch_tokens: int | None = None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    label: str,
) -> CellOutput:
    """Compute embeddings and outputs of the cell heads.

    Cells are read, tokenised and run in windows, so that memory does not grow with their number, and files are
    read sequentially. Within a window, cells are sorted by decreasing length; there is no padding.

    Parameters
    ----------
    network
        Network; afterwards in evaluation mode on ``device``.
    cells
        Cells; results do not depend on batches. A stream must not shuffle.
    encoder
        Encoder of the network's family, see :class:`scgalore.model.Family`.
    rows
        Rows to run; ``None`` runs all. A stream is always run as a whole.
    batch_size
        Maximum number of cells per batch; ``None`` sets no limit.
    batch_tokens
        Maximum number of tokens per batch; ``None`` uses the default of the device.
    device
        Torch device.
    dtype
        Dtype of the blocks.
    label
        Text in front of the progress bar.

    Raises
    ------
    DataError
        If an embedding or the output of a head is not finite.
    """
    network.eval().to(device)  # outside of inference mode, since weights moved within could not be trained later
    config, n_obs = network.config, cells.n_obs if rows is None else len(rows)
    embedding = np.empty((n_obs, config.d_model), dtype=np.float32)
    heads = {name: np.empty((n_obs, n), dtype=np.float32) for name, n in config.heads.items()}
    embed = encoder(network, torch.from_numpy(cells.tokens()), levels=levels_of(cells.tokenizer.config), dtype=dtype)
    caps = {"batch_size": batch_size, "batch_tokens": batch_tokens or BATCH_TOKENS[device.type == "cpu"]}
    for at, batch in _batches(cells, rows, caps, label=label):
        genes, values = (torch.from_numpy(part).to(device) for part in (batch.genes, batch.values))
        with torch.inference_mode():
            cell = embed(genes, values, batch.lengths.tolist(), **_conditions(batch, device))
            embedded = network.embedding(cell)
            embedding[at] = F.normalize(embedded, dim=1).cpu().numpy()
            for name, outputs in heads.items():
                outputs[at] = network.read_head(name, cell).cpu().numpy()
            # An infinite norm would make an embedding of zeros.
            norms = torch.linalg.vector_norm(embedded, dim=1).cpu().numpy()
        named = {"the embedding": norms, **{f"head {name!r}": outputs[at] for name, outputs in heads.items()}}
        refuse_not_finite_outputs(named, at, precision=dtype)
    own = kernels_in_words(dtype) if device.type == "cpu" else None
    return CellOutput(embedding, heads, "bf16-true" if dtype == torch.bfloat16 else "32-true", own)


def mean_states(
    network: CellNetwork,
    cells: TokenSource,
    genes: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    n_groups: int,
    encoder: Callable[..., Any],
    options: RunOptions,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Mean last state of genes over the cells of each group with these genes as tokens.

    Cells are run as in :func:`run_network`; only sums are kept.

    Parameters
    ----------
    network
        Network; afterwards in evaluation mode on the device.
    cells
        Cells; the states of a cell do not depend on its batch.
    genes
        Token ids, int64 ``(n_genes,)``, each once.
    groups
        Group of each cell, -1 for excluded cells, int64 ``(n_obs,)``.
    n_groups
        Number of groups.
    encoder
        Encoder of the network's family, see :class:`scgalore.model.Family`.
    options
        Device, precision and batch size.

    Returns
    -------
    Means, float32 ``(n_groups, n_genes, d_model)``, NaN if a group has no cell with the gene, and the number of cells,
    int64 ``(n_groups, n_genes)``.

    Raises
    ------
    OptionError
        If the network needs the batch of each cell, but the cells do not have it.
    DataError
        If a state is not finite.
    """
    _refuse_unknown_batches(network, cells)
    device = options.device
    network.eval().to(device)
    states_of = encoder(
        network, torch.from_numpy(cells.tokens()), levels=levels_of(cells.tokenizer.config), dtype=options.dtype
    ).states
    place = torch.full((network.config.n_tokens,), -1, device=device)
    place[torch.from_numpy(genes).to(device)] = torch.arange(len(genes), device=device)
    # Sums in float64 do not depend on the order of the cells up to float32 precision. Some devices have no float64.
    wide = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros((n_groups * len(genes), network.config.d_model), dtype=wide, device=device)
    n_cells = torch.zeros(n_groups * len(genes), dtype=torch.int64, device=device)
    caps = {
        "batch_size": options.batch_size,
        "batch_tokens": options.batch_tokens or BATCH_TOKENS[device.type == "cpu"],
    }
    rows = np.flatnonzero(groups >= 0)
    for at, batch in _batches(cells, rows, caps, label="cells"):
        tokens, values = (torch.from_numpy(part).to(device) for part in (batch.genes, batch.values))
        group = torch.from_numpy(np.repeat(groups[rows[at]], batch.lengths)).to(device)
        with torch.inference_mode():
            states = states_of(tokens, values, batch.lengths.tolist(), **_conditions(batch, device))
            kept = place[tokens] >= 0
            row = (group * len(genes) + place[tokens])[kept]
            sums.index_add_(0, row, states[kept].to(wide))
            n_cells += torch.bincount(row, minlength=len(n_cells))
            norms = torch.segment_reduce(
                torch.linalg.vector_norm(states.float(), dim=1),
                "sum",
                lengths=torch.from_numpy(batch.lengths).to(device),
            )
        refuse_not_finite_outputs({"the state of a gene": norms.cpu().numpy()}, rows[at], precision=options.dtype)
    means = (sums / n_cells.unsqueeze(1)).float().cpu().numpy()  # 0 / 0 is NaN
    return means.reshape(n_groups, len(genes), -1), n_cells.reshape(n_groups, -1).cpu().numpy()


def mean_attention(
    network: CellNetwork,
    cells: TokenSource,
    keys: NDArray[np.int64],
    queries: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    n_groups: int,
    layers: Sequence[int] | None = None,
    scale: AttentionScale = "rank",
    device: torch.device,
) -> AttentionMeans:
    """Mean attention between pairs of genes over the cells of each group; see :class:`scgalore.nn.AttentionMeans`.

    Cells are run one by one, in float32: ranks of scores that differ by rounding would depend on the batch.

    Parameters
    ----------
    network
        Network; afterwards in evaluation mode on the device.
    cells
        The cells.
    keys, queries, layers, scale, n_groups
        As for :class:`scgalore.nn.AttentionMeans`.
    groups
        Group of each cell, -1 for excluded cells, int64 ``(n_obs,)``.
    device
        Torch device.

    Raises
    ------
    OptionError
        If the network needs the batch of each cell, but the cells do not have it.
    """
    _refuse_unknown_batches(network, cells)
    network.eval().to(device)
    means = AttentionMeans(network, keys, queries, layers=layers, scale=scale, n_groups=n_groups)
    rows = np.flatnonzero(groups >= 0)
    for at, batch in _batches(cells, rows, {"batch_size": 1, "batch_tokens": None}, label="cells"):
        genes, values = (torch.from_numpy(part).to(device) for part in (batch.genes, batch.values))
        conditions = _conditions(batch, device)
        if network.reads_flags:
            conditions["flags"] = torch.zeros_like(genes).unsqueeze(0)  # no gene is perturbed
        means.add(genes, values, int(groups[rows[at[0]]]), **conditions)
    return means


def levels_of(config: TokenizerConfig) -> range | None:
    """Possible values of tokens: bins, 0, and the value of ``<cls>``."""
    if not config.binned or config.cls_value % 1:
        return None
    return range(min(int(config.cls_value), 0), max(int(config.cls_value) + 1, config.n_bins))


def _batches(
    cells: TokenSource, rows: NDArray[np.int64] | None, caps: dict[str, int | None], *, label: str
) -> Iterator[tuple[NDArray[np.int64], RaggedTokens]]:
    """Iterate over batches with the positions of their cells, with a progress bar."""

    def cut() -> Iterator[tuple[NDArray[np.int64], RaggedTokens]]:
        start = 0
        for window in cells.windows(rows, size=WINDOW):
            for picked in _cut(window.lengths, caps):
                yield start + picked, window.take(picked)
            start += len(window)

    n_cells = cells.n_obs if rows is None else len(rows)
    yield from progress(cut(), label=label, total=n_cells, size=lambda batch: len(batch[0]))


def _refuse_unknown_batches(network: CellNetwork, cells: TokenSource) -> None:
    if network.reads_batches and "batches" not in getattr(cells, "conditions", {}):
        msg = (
            "The model normalises its input within each sequencing batch, which is unknown for these cells. Pass a model that does not, such as "
            "'scgpt'."
        )
        raise OptionError(msg)


def _conditions(batch: RaggedTokens, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(codes).to(device) for name, codes in batch.conditions.items()}


def _cut(lengths: NDArray[np.int64], caps: dict[str, int | None]) -> list[NDArray[np.int64]]:
    # Cells of equal length are grouped, so that attention is a single call.
    order = np.argsort(-lengths, kind="stable")
    return [order[cut] for cut in cut_batches(lengths[order], **caps, padded=False)]
