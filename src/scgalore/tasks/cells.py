"""Base class of tasks in which each cell has its own target."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from anndata import AnnData

from scgalore import _logging as logg
from scgalore.data.results import Results
from scgalore.data.split import PARTS, Split, split_from_labels
from scgalore.errors import DataError, OptionError
from scgalore.tasks.base import Prepared, Task
from scgalore.tasks.correction import last_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.data.cells import TokenCells
    from scgalore.data.streaming import TokenStream
    from scgalore.nn.base import CellNetwork, CellOutput
    from scgalore.objectives import Objective
    from scgalore.tasks.base import LastLayer, TaskMemory, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.correction import Correction
    from scgalore.tasks.linear import LinearFit

__all__ = ["CellTargets", "CellTask", "refuse_empty"]


@dataclass(frozen=True)
class CellTargets:
    """Targets of each cell.

    Attributes
    ----------
    split
        Training, validation and test cells.
    arrays
        Targets by the name used in the objective, shape ``(n_obs,)`` each.
    memory
        Memory of a fitted model.
    """

    split: Split
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    memory: TaskMemory | None = None


@dataclass(frozen=True)
class CellReading:
    """Result of :meth:`CellTask.read`.

    Attributes
    ----------
    data
        The cells.
    targets
        Targets of the cells; for a stream, of its validation cells.
    ranks
        Rank of each gene for a curriculum.
    memory
        Memory of a fitted model.
    title
        Description of the cells, for messages.
    """

    data: AnnData | TokenStream = field(repr=False)
    targets: CellTargets | None
    ranks: NDArray[np.float64] | None
    memory: TaskMemory | None
    title: str


class CellTask(Task):
    """A task with cells that are split at random or by a column, and with tokens of an AnnData or a stream as source."""

    needs: ClassVar[frozenset[str]] = frozenset({"cell heads"})
    splits_cells: ClassVar[bool] = True
    predicts: ClassVar[bool] = True
    head: ClassVar[str]
    """Name of the head that corrects a linear model, if the task has one."""
    heads_at_zero: ClassVar[bool] = False
    """Whether new heads predict 0 for every cell until they are trained."""

    # Methods of subclasses
    # -------------------------------------------------------------------------------------------------

    @abstractmethod
    def targets(self, adata: AnnData, call: TrainingCall) -> CellTargets:
        """Read the target of each cell, and split cells with ``call.split_of``.

        Raises
        ------
        DataError, MissingKeyError
            If the targets cannot be used.
        """

    @abstractmethod
    def objective(self, network: CellNetwork, memory: Any) -> Objective:
        """The loss, for a network and the memory of the model."""

    def objective_of(self, reading: CellReading, network: CellNetwork, call: TrainingCall) -> Any:
        """:meth:`objective` of a training run."""
        return self.objective(network, reading.memory)

    def stream_memory(self, stream: TokenStream, call: TrainingCall) -> TaskMemory | None:
        """Memory of a model fitted to a stream; raises :class:`~scgalore.errors.OptionError` without such targets."""
        msg = f"task={self.name!r} cannot train on a stream of files. Pass an AnnData."
        raise OptionError(msg)

    def fit_prior(self, reading: CellReading, call: TrainingCall) -> LinearFit | None:
        """The linear model that the network corrects, fitted to the training cells, or ``None``."""
        return None

    @staticmethod
    def prior_report(prepared: Prepared, metrics: pd.DataFrame) -> dict[str, Any]:
        """Entry of ``uns`` on the linear model: candidates, its scores, and the initial correction."""
        fit, correction = prepared.state["prior"]
        shown = {"gain": correction.gain, "gain_se": correction.gain_error, "used": correction.helps}
        learned = {"unlabelled": fit.unlabelled} if fit.unlabelled else {}
        corrected = {**shown, "penalty": correction.penalty}
        return {"candidates": fit.table, "metrics": metrics, "correction": corrected, **learned}

    def fit_correction(self, reading: CellReading, fit: LinearFit, features: NDArray[np.float32]) -> Correction:
        """Fit the last layer of the head to the errors of the linear model, if the task has one.

        Parameters
        ----------
        reading
            Targets of all cells.
        fit
            The linear model.
        features
            Inputs of the layer for ``fit.cells``, ``(n, n_features)``.
        """
        raise NotImplementedError

    def validation_arrays(self, adata: AnnData, memory: Any, call: TrainingCall) -> dict[str, NDArray[Any]]:
        """Targets of the validation cells of a stream."""
        return {}

    def scores(
        self, adata: AnnData, output: CellOutput, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Additional results after training, such as metrics in ``uns[keys.uns]``.

        ``output`` is the output of the network alone.
        """
        return Results()

    # Training ---------------------------------------------------------------------------------------------------------

    def read(self, data: AnnData | TokenStream, call: TrainingCall) -> CellReading:
        """Targets, split and ranking of the genes."""
        if not isinstance(data, AnnData):
            return self._read_stream(data, call)
        if call.validation is not None:
            msg = "validation= is for streams. For an AnnData, use validation_size= or split_key=."
            raise OptionError(msg)
        targets = self.targets(data, call)
        _warn_empty(targets.split.sizes(), call)
        train = np.isin(np.arange(data.n_obs), targets.split.train)
        ranks = call.ranks_of(data, train, gene_strategy=self.gene_strategy)
        title = f"{data.n_obs:,} cells"
        return CellReading(data, targets, ranks, targets.memory, title)

    def _read_stream(self, stream: TokenStream, call: TrainingCall) -> CellReading:
        if call.split is not None or call.split_key is not None:
            msg = "A stream trains on all of its cells. Omit the split, and pass validation= for selecting the epoch."
            raise OptionError(msg)
        if "batch_size" in call.given:
            msg = "batch_size= cannot be used with a stream, which makes its own batches. Pass it when creating the stream."
            raise OptionError(msg)
        if call.config.curriculum is not None:
            msg = "curriculum= needs cells in one AnnData; a stream makes its own batches."
            raise OptionError(msg)
        memory = self.stream_memory(stream, call)
        targets = None
        if isinstance(call.validation, AnnData):
            arrays = self.validation_arrays(call.validation, memory, call)
            n = call.validation.n_obs
            targets = CellTargets(Split(np.empty(0, np.int64), np.arange(n), np.empty(0, np.int64)), arrays, memory)
        return CellReading(stream, targets, None, memory, f"{stream.n_obs:,} cells of a stream")

    def refuse_network(self, model: TaskModel) -> None:
        """Raise :class:`~scgalore.errors.OptionError` if the network needs inputs that this task does not provide."""
        network, decodes = model.network, "expression" in self.needs
        if network.reads_batches and not self.gives_batches:
            how, task = "normalises its inputs within batches", "integration"
        elif decodes and network.decodes_batches and not self.gives_batches:
            how, task = "has decoders that receive the batch", "integration"
        elif decodes and network.reads_modalities and "modalities" not in self.needs:
            how, task = "has decoders that receive the modality of each token", "multiomic"
        else:
            return
        msg = (
            f"{model.provenance['name']} {how}, which task={self.name!r} does not provide. Start from the weights it was "
            f"fine-tuned from, or use task={task!r}."
        )
        raise OptionError(msg)

    def prepare(self, reading: CellReading, model: TaskModel, call: TrainingCall) -> Prepared:
        """Tokens with targets, and the objective."""
        self.refuse_network(model)
        read: dict[str, Any] = {**call.reading.of_tokens(), "rng": call.seed}
        objective = self.objective_of(reading, model.network, call)
        known: dict[str, Any] = {"memory": reading.memory, "heads_at_zero": self.heads_at_zero}
        arrays = {} if reading.targets is None else reading.targets.arrays
        if not isinstance(reading.data, AnnData):
            validation = call.validation
            if isinstance(validation, AnnData):
                validation = model.cells(validation, **read).with_targets(**arrays)
            return Prepared(self, reading.data, None, objective, call.config, validation=validation, **known)
        assert reading.targets is not None
        cells = model.cells(reading.data, **read).with_targets(**arrays)
        if reading.ranks is not None:
            cells = cells.with_ranks(reading.ranks)
        split = reading.targets.split
        state: dict[str, Any] = {"genes": cells.genes_report()}
        fit = self.fit_prior(reading, call)
        if fit is not None:
            cells, known["start"], correction = self._start(model, cells, reading, fit, call)
            state["prior"] = fit, correction
            known["identity"] = {"cells without labels": fit.unlabelled.get("cells", "none")}
            known["memory"] = replace(known["memory"], prior=fit.model)
            if len(split.validation):
                objective = objective.after_prior(cells.targets, split.validation)
        return Prepared(self, cells, split, objective, call.config, state=state, **known)

    def _start(
        self, model: TaskModel, cells: TokenCells, reading: CellReading, fit: LinearFit, call: TrainingCall
    ) -> tuple[TokenCells, dict[str, LastLayer], Correction]:
        """Fit the last layer of the head, and return the prior of each cell and the initial outputs.

        The layer is fitted to training and validation cells. So that training starts from held-out predictions, the
        gain of the layer from having seen a cell is subtracted from the prior of that cell.
        """
        assert reading.targets is not None
        rows = np.union1d(fit.cells, reading.targets.split.validation)  # of many cells, only a sample is fitted
        n_outputs = fit.predicted.shape[1]
        features = last_inputs(model, cells, rows, self.head, n_outputs, call.config)
        fitted = np.isin(rows, fit.cells)
        correction = self.fit_correction(reading, fit, features[fitted])
        logg.info(
            f"    the embedding lowers the loss of the linear model on left-out cells by {correction.gain:.3f} ± "
            f"{correction.gain_error:.3f}, so the network starts {'with this' if correction.helps else 'without'} correction"
        )
        if not correction.helps:
            zeros = (np.zeros_like(correction.weight), np.zeros_like(correction.bias))
            return cells.with_targets(prior=fit.predicted, start=fit.predicted), {self.head: zeros}, correction
        added = features @ correction.weight.T + correction.bias
        start, prior = fit.predicted.copy(), fit.predicted.copy()
        start[rows] += added
        start[fit.cells] = fit.predicted[fit.cells] + correction.held_out
        prior[rows] = start[rows] - added
        layer = {self.head: (correction.weight, correction.bias)}
        return cells.with_targets(prior=prior, start=start), layer, correction

    def writes(self, keys: CellKeys, call: TrainingCall) -> Mapping[str, Sequence[str]]:
        """All slots of cells, except a split of an earlier run that is used again."""
        slots = super().writes(keys, call)
        return {**slots, "obs": [key for key in slots["obs"] if key != keys.split or call.split_key != keys.split]}

    def results(
        self, adata: AnnData, model: TaskModel, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Embeddings of all cells, predictions of the heads, the split, and scores of each split."""
        assert prepared.split is not None
        source: Any = prepared.source
        output = self.embed(model, source, adata, call.reading, accelerator=call.config.accelerator)
        is_own = model.memory is not None and model.memory.task == self.name  # heads of an earlier task may remain
        if model.result is not None and model.result.best_epoch == -1:
            started = (
                "linear model and its corrected head" if prepared.state["prior"][1].helps else "linear model alone"
            )
            logg.result(
                f"    no epoch predicted the validation cells better than the {started} by more than a standard error: the "
                "model consists of that, and embeddings are those of the initial weights"
            )
        found = Results()
        if is_own and self.predicts:
            found = self.predictions(self.complete(output, model.memory, adata, call.reading), model.memory, keys)
        known = replace(prepared, memory=model.memory) if is_own else prepared  # completed after training
        scores = self.scores(adata, output, known, call, keys)
        split = pd.Categorical(prepared.split.labels(), categories=list(PARTS))
        sizes = {} if call.split_key else {"validation_size": call.validation_size, "test_size": call.test_size}
        content = {
            "params": {"split_key": call.split_key} if call.split_key else sizes,
            "split": prepared.split.sizes(),
            "genes": prepared.state["genes"],
            **found.uns.pop(keys.uns, ({}, ""))[0],
            **scores.uns.pop(keys.uns, ({}, ""))[0],
        }
        return Results(
            obs={**found.obs, **scores.obs, keys.split: (split, "split of the cells")},
            obsm={keys.embedding: (output.embedding, "cell embeddings"), **found.obsm, **scores.obsm},
            uns={**found.uns, **scores.uns, keys.uns: (content, "parameters, history, metrics, provenance")},
        )

    def objective_for(self, network: CellNetwork, sizes: Mapping[str, Any]) -> Objective:
        """The objective; overridden by tasks with heads of variable size."""
        return self.objective(network, None)

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def split(self, adata: AnnData, call: TrainingCall, key: str) -> None:
        """Hold out cells, at random within strata or by a column."""
        split = self.targets(adata, call).split
        adata.obs[key] = pd.Categorical(split.labels(), categories=list(PARTS))
        refuse_empty(split.sizes(), "cell")

    def check_cells(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> None:
        """Read the cells once, as in training."""
        model.cells(adata, **call.reading.of_tokens(), rng=call.seed)

    @staticmethod
    def split_in(adata: AnnData, key: str) -> Split:
        """The split in a column of ``obs``."""
        return split_from_labels(adata.obs[key])


def _warn_empty(sizes: Mapping[str, int], call: TrainingCall) -> None:
    """Warn if the split has no validation or test cells, unless this was requested."""
    missed = {"validation": "the last epoch is kept instead of the best", "test": "the model cannot be evaluated"}
    asked = {"validation": call.validation_size, "test": call.test_size}
    empty = {part: lost for part, lost in missed.items() if not sizes[part] and (call.split_key or asked[part])}
    if not empty or call.split is not None:
        return
    where, hint = "The split", "Use more cells or larger fractions."
    if call.split_key:
        where, hint = f"adata.obs[{call.split_key!r}]", "Assign some cells to these, which are then not trained on."
    logg.warning(f"{where} has no {' or '.join(empty)} cells, so {', and '.join(empty.values())}. {hint}")


def refuse_empty(sizes: Mapping[str, int], what: str) -> None:
    """Raise :class:`~scgalore.errors.DataError` if the training or test split is empty.

    Parameters
    ----------
    sizes
        Size of each split.
    what
        Unit of these sizes, in the singular.
    """
    if not sizes["test"] or not sizes["train"]:
        msg = (
            f"A run needs {what}s for training and for testing, but the split has {dict(sizes)}. Use more {what}s, other "
            "fractions, or your own split_key."
        )
        raise DataError(msg)
