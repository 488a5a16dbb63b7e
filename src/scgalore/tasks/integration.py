"""Embed cells of several batches without batch effects."""

from __future__ import annotations

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pandas as pd
import torch

from scgalore import _logging as logg
from scgalore._options import SWITCH, TEXT, Option, choice, number
from scgalore._words import few
from scgalore.data.columns import read_column
from scgalore.data.labels import class_codes
from scgalore.errors import DataError, OptionError
from scgalore.objectives import Integration as Objective
from scgalore.tasks.batch_columns import batches_of, read_batches, read_labels, refuse_single, warn_nested
from scgalore.tasks.batch_map import BatchMap, fitted_rows, read_map
from scgalore.tasks.cells import CellTargets, CellTask
from scgalore.tasks.expression import RATIOS
from scgalore.tasks.integration_report import integration_findings
from scgalore.tasks.linear_model import read_part
from scgalore.tasks.query_adapters import QueryAdapter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from scgalore._keys import CellKeys
    from scgalore.data.cells import TokenCells
    from scgalore.data.reading import Reading
    from scgalore.data.results import Results
    from scgalore.nn.base import CellNetwork, CellOutput
    from scgalore.tasks.base import Prepared, TaskMemory, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.cells import CellReading
    from scgalore.tasks.findings import Findings
    from scgalore.train.result import TrainResult

__all__ = ["Integration", "IntegrationMemory"]

WEIGHT = number("a weight must be a non-negative number", lambda weight: 0 <= weight < math.inf)
QUERY_FILE = "query_{}.safetensors"
FEW = 20
"""A warning is logged for batches with fewer cells."""
THRESHOLD = number("it is a cosine similarity and must lie in [0, 1]", lambda threshold: 0 <= threshold <= 1)


@dataclass(frozen=True)
class IntegrationMemory:
    """Batches of an integrated model.

    Attributes
    ----------
    batch_key
        Column of ``obs`` with the batches.
    batches
        Names of the batches, in the order of their codes.
    zeros
        Whether genes without expression are tokens.
    map
        Maps expression and the network's embedding to batch-corrected components; ``None`` uses the network's
        embedding.
    adapters
        Adapters of query batches that were mapped later.
    """

    batch_key: str
    batches: tuple[str, ...]
    zeros: bool = False
    task: str = "integration"
    outlives_training: bool = False
    # Not compared: they belong to the weights, and runs of the same task differ in them.
    map: BatchMap | None = field(default=None, compare=False, repr=False)
    adapters: tuple[QueryAdapter, ...] = field(default=(), compare=False, repr=False)

    def to_config(self) -> dict[str, Any]:
        """Batches, and the expected content of the files."""
        n_prior = {} if self.map is None else {"n_prior": self.map.n_prior}
        adapters = {"adapters": [adapter.to_config() for adapter in self.adapters]} if self.adapters else {}
        return {"batch_key": self.batch_key, "batches": list(self.batches), "zeros": self.zeros, **n_prior, **adapters}

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """The map and the adapters, if any."""
        adapters = {QUERY_FILE.format(place): one.to_bytes() for place, one in enumerate(self.adapters)}
        return {**({} if self.map is None else self.map.files()), **adapters}


def _weight(name: str, default: float, help: str) -> Option:
    return Option(f"{name}_weight", WEIGHT, f"Weight in the loss of {help} 0 disables it.", default)


class Integration(CellTask):
    """Masked expression, with an adversary on the batch and decoders that receive the batch."""

    name = "integration"
    summary = "to embed cells without batch effects"
    arguments: ClassVar[tuple[Option, ...]] = (
        Option("batch_key", TEXT, "Column of obs with the batch of each cell, such as donor or assay.", column="obs"),
        Option(
            "labels_key",
            TEXT,
            "Column of obs with classes, such as cell types, to be kept separate: the network learns them, and batches are compared "
            "within them. Labels may be missing.",
            column="obs",
        ),
        _weight("tokens", 1.0, "masked expression, predicted from the other tokens (GEP)."),
        _weight("cell", 1.0, "masked expression, predicted from the cell embedding (GEPC)."),
        _weight(
            "zeros",
            0.0,
            "whether a masked gene is expressed; genes without expression are then also tokens, in training and afterwards.",
        ),
        _weight("similarity", 10.0, "elastic similarity of cells (ECS)."),
        Option("similarity_threshold", THRESHOLD, "Cosine similarity above which cells attract each other.", 0.8),
        _weight("adversary", 1.0, "a discriminator of batches, whose gradient is reversed (DAB)."),
        _weight(
            "classes",
            100.0,
            "the classes of labels_key; for comparison, squared errors of masked bins are in the tens.",
        ),
        Option("batch_norm", SWITCH, "Whether inputs are normalised within each batch (DSBN).", default=False),
        Option(
            "prior",
            choice("components", "none"),
            "What the network's embedding is joined with: components are principal components of log-normalised expression within "
            "batches, computed from the most variable genes only; none uses the embedding alone.",
            "components",
        ),
        Option(
            "correction",
            choice("clusters", "none"),
            "Correction of remaining batch effects: clusters finds clusters in which batches are mixed, and the shift of each "
            "batch in each cluster, as Harmony does; none applies no correction.",
            "clusters",
        ),
        Option("mask_ratio", RATIOS, "Fraction of a cell's genes to predict.", default=0.4),
    )
    needs = frozenset({"cell heads", "expression", "batches"})
    gives_batches = True
    predicts = False
    next_steps = "`sg.tl.embed(other_cells, model, batch_key=...)` embeds other cells."

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete and check the arguments; batches and at least one loss are required."""
        complete = super().check(arguments)
        if complete["batch_key"] is None:
            msg = "task='integration' needs batch_key=, a column of adata.obs with the batch of each cell."
            raise OptionError(msg)
        if complete["batch_key"] == complete["labels_key"]:
            msg = f"batch_key and labels_key are both {complete['batch_key']!r}; expected different columns."
            raise OptionError(msg)
        if not any(complete[f"{name}_weight"] for name in ("tokens", "cell", "similarity", "adversary")):
            msg = "All weights are 0, so there is no loss. Set tokens_weight or cell_weight to a positive number."
            raise OptionError(msg)
        return complete

    # Training ---------------------------------------------------------------------------------------------------------

    def targets(self, adata: AnnData, call: TrainingCall) -> CellTargets:
        """Batches, and labels if given; a random split is stratified by batch."""
        # A query may have one batch; whether the model was trained on others is known only when it is loaded.
        names, codes = read_batches(adata, call.arguments["batch_key"], fewest=1 if call.config.adapter else 2)
        arrays: dict[str, NDArray[Any]] = {"batches": codes}
        if (labels_key := call.arguments["labels_key"]) is not None:
            classes, labels = read_labels(adata, labels_key)
            arrays["labels"] = labels
            warn_nested(labels, codes, labels_key, call.arguments["batch_key"])
        split = call.split_of(adata, codes)
        absent = [name for code, name in enumerate(names) if not (codes[split.train] == code).any()]
        if absent:
            msg = (
                f"Batch {few(absent)} of adata.obs[{call.arguments['batch_key']!r}] has no training cells and cannot be learned. "
                "Assign some of its cells to 'train'."
            )
            raise DataError(msg)
        memory = IntegrationMemory(call.arguments["batch_key"], names, zeros=call.arguments["zeros_weight"] > 0)
        return CellTargets(split, arrays, memory)

    def objective(self, network: CellNetwork, memory: IntegrationMemory | None) -> Objective:
        """The objective with default weights."""
        return Objective(mask_value=network.config.mask_value)

    def objective_of(self, reading: CellReading, network: CellNetwork, call: TrainingCall) -> Objective:
        """The objective with the requested weights."""
        given, ratio = call.arguments, call.arguments["mask_ratio"]
        assert reading.targets is not None
        labels = reading.targets.arrays.get("labels")
        return Objective(
            **{
                name: given[f"{name}_weight"]
                for name in ("tokens", "cell", "zeros", "similarity", "adversary", "classes")
            },
            threshold=given["similarity_threshold"],
            n_classes=0 if labels is None else int(labels.max()) + 1,
            mask_ratio=tuple(ratio) if isinstance(ratio, list) else ratio,
            mask_value=network.config.mask_value,
        )

    def prepare(self, reading: CellReading, model: TaskModel, call: TrainingCall) -> Prepared:
        """Tokens with their batches, and a network for these batches.

        With an adapter, embeddings of batches that the model already integrates do not change: the adapter applies only
        to the new batches.
        """
        prepared = super().prepare(reading, model, call)
        memory, source = cast("IntegrationMemory", prepared.memory), cast("TokenCells", prepared.source)
        reference = model.memory if call.config.adapter and isinstance(model.memory, IntegrationMemory) else None
        if reference is not None:
            memory = _mapped(memory, reference)
        elif len(memory.batches) < 2:
            refuse_single(memory.batches, f"adata.obs[{memory.batch_key!r}]")
        n_known = 0 if reference is None else len(reference.batches)
        targets = dict(source.targets)
        source = replace(source, targets=targets).with_conditions(batches=targets.pop("batches") + n_known)
        if memory.zeros:
            source = source.with_zeros()
        own = model.network.config
        network = model.network.integration_variant(
            len(memory.batches),
            n_known,
            batch_norm=call.arguments["batch_norm"] if reference is None else model.network.reads_batches,
            adversary=call.arguments["adversary_weight"] > 0 or (reference is not None and own.adversary),
            from_cell=call.arguments["cell_weight"] > 0,
            zeros=memory.zeros,
            seed=call.seed,
        )
        state = {**prepared.state, "data": reading.data, "call": call, "reference": reference}
        state["kept"] = None if reference is None else copy.deepcopy(network)
        return replace(prepared, source=source, network=network, memory=memory, state=state)

    def remember(self, prepared: Prepared, result: TrainResult, adapter: Any = None) -> TaskMemory | None:
        """The batches and, for a query, the trained adapter."""
        memory, reference = cast("IntegrationMemory", prepared.memory), prepared.state["reference"]
        if reference is None:
            return memory
        if adapter is None:
            msg = (
                "adapter_options={'others': 'train'} changes the weights that the reference was embedded with. Omit it."
            )
            raise OptionError(msg)
        new = memory.batches[len(reference.batches) :]
        learned = QueryAdapter(new, adapter.name, dict(adapter.options), adapter.tensors)
        return replace(memory, adapters=(*reference.adapters, learned))

    def measured(self, memory: IntegrationMemory, model: TaskModel, prepared: Prepared) -> IntegrationMemory:
        """Fit components and correction to the embedding of the trained network, on all cells except test cells.

        For a query, only the shifts of its batches are fitted, with the network of the reference.
        """
        adata, call, reference = (prepared.state[name] for name in ("data", "call", "reference"))
        assert prepared.split is not None
        cells = cast("TokenCells", prepared.source)
        codes = cells.conditions["batches"]
        rows = fitted_rows(prepared.split.known, codes, seed=call.seed)
        prior, correct = (call.arguments[name] != "none" for name in ("prior", "correction"))
        if reference is not None:
            trained, model.network = model.network, prepared.state["kept"]
            model.network.take_norms(trained, len(reference.batches))
            if memory.map is None:
                return memory
            embedding = _run(model, cells, memory, rows=rows, accelerator=call.config.accelerator).embedding
            x = memory.map.components(embedding, adata[rows], call.reading)
            return replace(memory, map=memory.map.extended(x, codes[rows]))
        if not (prior or correct):
            return memory
        embedding = model.run(cells, rows=rows, accelerator=call.config.accelerator).embedding
        how = {"prior": prior, "correct": correct, "seed": call.seed}
        labels = cells.targets["labels"][rows] if "labels" in cells.targets else None
        return replace(memory, map=BatchMap.fit(adata, call.reading, codes, rows, embedding, labels, **how))

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """The batches and the map."""
        memory = config.get("memory", {})
        if "batches" not in memory:
            return None
        found = IntegrationMemory(memory["batch_key"], tuple(memory["batches"]), zeros=bool(memory["zeros"]))
        if "n_prior" in memory:
            found = replace(found, map=read_map(folder, n_batches=len(found.batches), n_prior=int(memory["n_prior"])))
        adapters = [
            read_part(folder / QUERY_FILE.format(place), partial(QueryAdapter.from_bytes, config=config))
            for place, config in enumerate(memory.get("adapters", []))
        ]
        return replace(found, adapters=tuple(adapter for adapter in adapters if adapter is not None))

    # Results ----------------------------------------------------------------------------------------------------------

    def embed(
        self,
        model: TaskModel,
        cells: Any,
        adata: AnnData,
        reading: Reading,
        *,
        batch_key: str | None = None,
        **how: Any,
    ) -> CellOutput:
        """Batch-corrected components; effects of new batches are estimated from their cells."""
        memory: IntegrationMemory = model.memory
        key = memory.batch_key if batch_key is None else batch_key
        hint = "Pass batch_key=, the column with the batch of each cell." if batch_key is None else ""
        column = read_column(adata.obs, key, asked="batch_key" if batch_key else "", hint=hint)
        found = batches_of(column, f"adata.obs[{key!r}]")
        names = (*memory.batches, *(name for name in found if name not in memory.batches))
        codes = class_codes(column, names)
        if memory.zeros and not cells.tokenizer.config.include_zeros:
            cells = cells.with_zeros()
        cells = cells.with_conditions(batches=codes)
        _report_new(names[len(memory.batches) :], codes - len(memory.batches), memory)
        with _with_new_batches(model, cells, codes, len(names), len(memory.batches)):
            output = _run(model, cells, memory, **how)
        if memory.map is None:
            return output
        x = memory.map.components(output.embedding, adata, reading)
        return replace(output, embedding=memory.map.corrected(x, codes))

    def arrays_of_embedding(self, memory: IntegrationMemory) -> Sequence[NDArray[Any]]:
        """The map, without added batches."""
        return [] if memory.map is None else memory.map.lasting_arrays()

    def results(
        self, adata: AnnData, model: TaskModel, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Embeddings, the split, and the number of cells of each batch."""
        results = super().results(adata, model, prepared, call, keys)
        content, what = results.uns[keys.uns]
        memory: IntegrationMemory = model.memory
        source: Any = prepared.source
        sizes = np.bincount(source.conditions["batches"], minlength=len(memory.batches))
        table = pd.DataFrame({"n_cells": sizes}, index=pd.Index(memory.batches, name="batch"))
        results.uns[keys.uns] = ({**content, "batches": table}, what)
        return results

    # Memory estimate --------------------------------------------------------------------------------------------------

    def network_for(self, network: CellNetwork) -> CellNetwork:
        """The network with two batches."""
        return network.integration_variant(2, batch_norm=False, adversary=True, from_cell=True, zeros=False, seed=0)

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def goal(self, arguments: Mapping[str, Any]) -> str:
        """Column of batches to correct for."""
        return f"to embed cells without effects of the batch in `obs['{arguments['batch_key']}']`"

    def draw_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Sampling is stratified by batch."""
        return [arguments["batch_key"]]

    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Score the embedding, and principal components and Harmony on the same cells."""
        return integration_findings(adata, model.keys("finetune"), call, name=name)


def _mapped(memory: IntegrationMemory, reference: IntegrationMemory) -> IntegrationMemory:
    """Memory with the batches of a query in addition to those of its reference."""
    known = [name for name in memory.batches if name in reference.batches]
    if known:
        msg = (
            f"adata.obs[{memory.batch_key!r}] has batches that the model was trained on: {few(known)}. With an adapter, a query must have only new "
            "batches. Embed these cells with sg.tl.embed instead, or rename the batches if they are different ones."
        )
        raise DataError(msg)
    if memory.zeros != reference.zeros:
        msg = f"zeros_weight does not match the model, which was trained {'with' if reference.zeros else 'without'} genes that are not expressed."
        raise OptionError(msg)
    logg.info(f"    mapped to the {len(reference.batches):,} batches of the model, which are embedded as before")
    return replace(reference, batches=(*reference.batches, *memory.batches))


def _run(
    model: TaskModel, cells: TokenCells, memory: IntegrationMemory, *, rows: NDArray[np.int64] | None = None, **how: Any
) -> CellOutput:
    """Run the network on cells, with the adapters of query batches for their cells."""
    rows = np.arange(cells.n_obs) if rows is None else rows
    codes, own = cells.conditions["batches"][rows], model.network
    group = np.zeros(len(rows), dtype=np.int64)
    for place, adapter in enumerate(memory.adapters, start=1):
        group[np.isin(codes, [memory.batches.index(name) for name in adapter.batches])] = place
    parts: list[tuple[NDArray[np.int64], CellOutput]] = []
    try:
        for place in np.unique(group):
            model.network = own if place == 0 else memory.adapters[place - 1].applied(own)
            at = np.flatnonzero(group == place)
            parts.append((at, model.run(cells, rows=rows[at], **how)))
    finally:
        model.network = own
    order = np.argsort(np.concatenate([at for at, _ in parts]))
    embedding = np.concatenate([output.embedding for _, output in parts])[order]
    heads = {name: np.concatenate([output.heads[name] for _, output in parts])[order] for name in parts[0][1].heads}
    return replace(parts[0][1], embedding=embedding, heads=heads)


def _report_new(names: Sequence[str], codes: NDArray[np.int64], memory: IntegrationMemory) -> None:
    """Log how cells of new batches are treated."""
    if not names:
        return
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    logg.info(
        f"    new batches: {few(names)} ({counts.sum():,} cells); their batch effects are estimated from these cells"
    )
    small = [name for name, n in zip(names, counts, strict=True) if n < FEW]
    if small and memory.map is not None and memory.map.correction is not None:
        logg.warning(
            f"The batches {few(small)} have fewer than {FEW} cells each, so their correction may remove biological differences. Embed them together "
            "with other cells of the same batch."
        )


@contextmanager
def _with_new_batches(
    model: TaskModel, cells: Any, codes: NDArray[np.int64], n_batches: int, n_known: int
) -> Iterator[None]:
    """Let the network normalise cells of new batches, with statistics estimated from these cells."""
    own = model.network
    if not own.reads_batches or n_batches == n_known:
        yield
        return
    model.network = own.with_batches(n_batches)
    try:
        for batch in range(n_known, n_batches):
            model.network.estimate_norm(batch, _tokens(cells, np.flatnonzero(codes == batch)))
        yield
    finally:
        model.network = own


def _tokens(cells: Any, rows: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
    for window in cells.windows(rows, size=256):
        yield torch.from_numpy(window.genes), torch.from_numpy(window.values)
