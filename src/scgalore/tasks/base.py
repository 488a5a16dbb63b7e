"""Base class of tasks: the interface to training, the pipeline and saved models.

To add a task, subclass :class:`Task` (or :class:`~scgalore.tasks.cells.CellTask`, if each cell has its own target) in
one file and add an instance to :data:`~scgalore.tasks.TASKS`. No other file needs to be changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from scgalore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore._options import Option
    from scgalore.data.cells import TokenCells
    from scgalore.data.reading import Reading
    from scgalore.data.results import Read, Results
    from scgalore.data.source import CellSource
    from scgalore.data.split import Split
    from scgalore.data.vocab import GeneVocab
    from scgalore.nn.base import CellNetwork, CellOutput
    from scgalore.objectives import Objective
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.findings import Findings
    from scgalore.tasks.unknown import UnknownRule
    from scgalore.train.config import TrainConfig
    from scgalore.train.result import TrainResult

    LastLayer = tuple[NDArray[np.float32], NDArray[np.float32]]

__all__ = ["Prepared", "Task", "TaskMemory", "TaskModel", "refuse_batches"]


class TaskMemory(Protocol):
    """Information on the training data that a model stores with its weights, to predict other cells."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def outlives_training(self) -> bool:
        """Whether it remains valid after training for another task that has no memory."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Content for ``config.json``, in JSON types."""
        ...

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """Additional files of a saved model, by name.

        Parameters
        ----------
        provenance
            Provenance of the weights.
        evaluation
            Test scores for a model card, if any.
        """
        ...


class TaskModel(Protocol):
    """Interface of a model for tasks, implemented by :class:`scgalore.model.CellModel`."""

    network: CellNetwork
    vocab: GeneVocab
    provenance: Any

    @property
    def can(self) -> frozenset[str]:
        """Capabilities of the model's family."""
        ...

    @property
    def memory(self) -> Any:
        """The :class:`TaskMemory` of the last task; ``None`` before training."""
        ...

    @property
    def result(self) -> TrainResult | None:
        """Result of the last training; ``None`` before training."""
        ...

    def keys(self, uns: str, key_added: str | None = None) -> CellKeys:
        """Names of the slots for results of this model."""
        ...

    def cells(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        gene_symbols: str | None = None,
        data_type: str | None = None,
        species: str = "human",
        min_matched: float | None = None,
        max_length: int | None = None,
        rng: Any = 0,
    ) -> TokenCells:
        """Tokenise the cells of an AnnData for this model."""
        ...

    @property
    def run(self) -> Callable[..., CellOutput]:
        """Compute embeddings and outputs of the cell heads; see :meth:`scgalore.model.CellModel.run`."""
        ...


@dataclass(frozen=True)
class Prepared:
    """Everything a training run needs, prepared by a task.

    Attributes
    ----------
    task
        Task to train for.
    source
        Training data.
    split
        Training, validation and test cells; ``None`` if the source has only training cells.
    objective
        The loss.
    config
        Training configuration.
    network, vocab
        Network and vocabulary to train, if they differ from the model's own: a modified copy.
    validation
        Cells for selecting the best epoch, if they are not in ``source``.
    memory
        Memory of the task, if it does not depend on the run.
    heads_at_zero
        Whether new heads predict 0 for every cell until they are trained.
    start
        Initial weight and bias of the last layer of heads, by name; such heads are always new.
    identity
        Values that must agree when a run is resumed, in addition to those of source and configuration.
    state
        Objects that the task needs again after training.
    """

    task: Task
    source: CellSource
    split: Split | None
    objective: Objective
    config: TrainConfig
    network: CellNetwork | None = None
    vocab: GeneVocab | None = None
    validation: CellSource | None = None
    memory: TaskMemory | None = None
    heads_at_zero: bool = False
    start: Mapping[str, LastLayer] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    state: Any = field(default=None, repr=False)


class Task(ABC):
    """A task that models can be trained for."""

    name: ClassVar[str]
    """Value of ``task=``."""
    summary: ClassVar[str]
    """Goal as the end of a sentence: "to predict the class of each cell"."""
    key: ClassVar[str | None] = None
    """Argument that selects this task if ``task`` is not given."""
    arguments: ClassVar[tuple[Option, ...]] = ()
    """Arguments of the task, for Python, the pipeline and the command line."""
    training: ClassVar[Mapping[str, Any]] = {}
    """Defaults of :class:`~scgalore.train.TrainConfig` for this task."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """Required capabilities of a model family; see :attr:`scgalore.model.Family.can`."""
    predicts: ClassVar[bool] = False
    """Whether a trained model has :meth:`predictions` for single cells."""
    gives_batches: ClassVar[bool] = False
    """Whether the task uses sequencing batches."""
    gene_strategy: ClassVar[str] = "biological"
    """Default strategy for ranking genes for a curriculum or a pipeline run."""
    splits_cells: ClassVar[bool] = False
    """Whether single cells are held out, so that the held-out fraction is an option."""
    split_note: ClassVar[str] = "drawn at random"
    """Description of the split, for the report."""
    next_steps: ClassVar[str] = ""
    """Uses of the fitted model, in Markdown, for the report."""

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the arguments with defaults and check their combination.

        Raises
        ------
        OptionError
            If a value is of the wrong kind or an argument is missing.
        """
        complete = {option.name: option.default for option in self.arguments}
        complete |= {name: value for name, value in arguments.items() if value is not None}
        complete = {option.name: option.check(complete[option.name]) for option in self.arguments}
        if self.key is not None and complete[self.key] is None:
            msg = f"task={self.name!r} needs {self.key}=, a column of adata.obs."
            raise OptionError(msg)
        return complete

    def record(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Checked arguments in the form in which they are recorded, for example in ``uns``."""
        kinds = {option.name: option.kind for option in self.arguments}
        return {name: None if value is None else kinds[name].record(value) for name, value in arguments.items()}

    def require(self, model: TaskModel) -> None:
        """Raise :class:`~scgalore.errors.OptionError` if the model's family cannot be trained for this task."""
        missing = sorted(self.needs - model.can)
        if missing:
            msg = f"task={self.name!r} needs a network with {' and '.join(missing)}, which {model.provenance['name']} does not have. Choose another model."
            raise OptionError(msg)

    # Training ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, data: Any, call: TrainingCall) -> Any:
        """Read and check everything that does not need a model: targets, split, ranking of genes.

        Parameters
        ----------
        data
            An AnnData, or a stream of many files.
        call
            Arguments for reading and training.

        Returns
        -------
        Input of :meth:`prepare`, with an attribute ``title``, such as "700 cells".
        """

    @abstractmethod
    def prepare(self, reading: Any, model: TaskModel, call: TrainingCall) -> Prepared:
        """Create source, objective and, if needed, a modified network.

        Parameters
        ----------
        reading
            Result of :meth:`read`.
        model
            Initial model; not modified.
        call
            As for :meth:`read`.
        """

    def remember(self, prepared: Prepared, result: TrainResult, adapter: Any = None) -> TaskMemory | None:
        """Create the memory that the model stores with its weights.

        Parameters
        ----------
        prepared, result
            Preparation and result of the run.
        adapter
            Trained adapter: ``name``, ``options`` and ``tensors``; ``None`` without one.
        """
        return prepared.memory

    def measured(self, memory: Any, model: TaskModel, prepared: Prepared) -> TaskMemory | None:
        """Complete the memory with measurements on the trained network.

        Parameters
        ----------
        memory
            Result of :meth:`remember`; or the memory of an earlier run, after training for a task without memory.
        model
            Trained model.
        prepared
            Preparation of the run.
        """
        return memory

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """Read the memory of a saved model; ``None`` if it was not trained for this task.

        Parameters
        ----------
        folder
            Folder of the model.
        config
            Content of its ``config.json``; ``config["memory"]`` is the result of :meth:`TaskMemory.to_config`.
        """
        return None

    # Results ----------------------------------------------------------------------------------------------------------

    def predictions(self, output: CellOutput, memory: Any, keys: CellKeys) -> Results:
        """Predictions of the heads for each cell, as slots of an AnnData, written by :func:`scgalore.tl.annotate`.

        Parameters
        ----------
        output
            Embeddings, and raw outputs of the cell heads.
        memory
            Memory of this task.
        keys
            Names of the slots.
        """
        raise NotImplementedError

    def unknown_rule(self, memory: Any, unknown: float) -> UnknownRule:
        """Rule for unknown cells, which :func:`scgalore.tl.annotate` creates before it reads data.

        Parameters
        ----------
        memory
            Memory of this task.
        unknown
            Accepted fraction of wrong labels.

        Raises
        ------
        OptionError
            If the task has no labels, or the model does not support it.
        """
        msg = f"unknown={unknown!r}: a model trained for task={self.name!r} predicts no labels. Omit unknown=."
        raise OptionError(msg)

    def embed(
        self,
        model: TaskModel,
        cells: TokenCells,
        adata: AnnData,
        reading: Reading,
        *,
        batch_key: str | None = None,
        **how: Any,
    ) -> CellOutput:
        """Run a model of this task on cells; :func:`scgalore.tl.embed` writes the embeddings.

        Parameters
        ----------
        model
            Model trained for this task.
        cells
            Tokens of the cells.
        adata, reading
            The same cells, and how to read them.
        batch_key
            Column of ``adata.obs`` with their batches, for models that use batches.
        **how
            Parameters of :meth:`scgalore.model.CellModel.run`.

        Raises
        ------
        OptionError
            If batches are given for a model that does not use them.
        """
        refuse_batches(batch_key, f"was trained for task={self.name!r}")
        return model.run(cells, **how)

    def arrays_of_embedding(self, memory: Any) -> Sequence[NDArray[Any]]:
        """Arrays that embeddings depend on in addition to the network, for the hash that identifies models.

        Parameters
        ----------
        memory
            Memory of this task.
        """
        return ()

    def complete(self, output: CellOutput, memory: Any, adata: AnnData, reading: Reading) -> CellOutput:
        """Add other parts of the model to the outputs of the network, such as a linear model that they correct.

        Parameters
        ----------
        output
            Outputs of the network.
        memory
            Memory of this task.
        adata, reading
            The same cells, and how to read them.
        """
        return output

    @abstractmethod
    def results(
        self, adata: AnnData, model: TaskModel, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Results written by :func:`scgalore.tl.finetune`, including ``uns[keys.uns]``.

        Parameters
        ----------
        adata
            Training data; not modified here.
        model
            Fitted model.
        prepared, call
            Preparation and call of the run.
        keys
            Names of the slots.
        """

    def headline(self, content: Mapping[str, Any]) -> str:
        """Held-out score next to its baselines in one line, or ``""`` if the task has none.

        Parameters
        ----------
        content
            What :meth:`results` writes to ``uns``.
        """
        return ""

    def reads(self, call: TrainingCall) -> list[Read]:
        """Slots that training reads, which results must not overwrite."""
        given = ((one.column, one.name, call.arguments[one.name]) for one in self.arguments)
        named = [
            (slot, f"{name}=", key)
            for slots, name, key in given
            if slots and isinstance(key, str)
            for slot in slots.split(" or ")
        ]
        return [*call.reading.reads(), *named, ("obs", "split_key=", call.split_key)]

    def writes(self, keys: CellKeys, call: TrainingCall) -> Mapping[str, Sequence[str]]:
        """Keys that :meth:`results` may write, by slot.

        Parameters
        ----------
        keys
            Names of the slots.
        call
            As for :meth:`read`.
        """
        return keys.slots

    # Memory estimate --------------------------------------------------------------------------------------------------

    sizes: ClassVar[tuple[Option, ...]] = ()
    """Arguments of :func:`scgalore.estimate_memory` for the sizes of the heads."""

    @abstractmethod
    def objective_for(self, network: CellNetwork, sizes: Mapping[str, Any]) -> Objective:
        """Objective of a run without data, for estimates.

        Parameters
        ----------
        network
            Network of known size; its weights may be on the meta device.
        sizes
            Values of :attr:`sizes`.
        """

    def network_for(self, network: CellNetwork) -> CellNetwork:
        """The network as it is trained, which may differ in more than its cell heads."""
        return network

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def goal(self, arguments: Mapping[str, Any]) -> str:
        """:attr:`summary` with the names of the columns, for the report."""
        return self.summary

    def infer_arguments(self, obs: pd.DataFrame, genes: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Determine open arguments from ``obs`` and the gene names."""
        return {}

    def own_split_key(self, data: Any, arguments: Mapping[str, Any]) -> str | None:
        """Column with a split made for this task, if any.

        Parameters
        ----------
        data
            Cells, with ``obs`` and ``uns``.
        arguments
            Arguments of the task.
        """
        return None

    def draw_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Columns of ``obs`` by which sampling of cells is stratified; cells without a value in the first are excluded."""
        return []

    @abstractmethod
    def split(self, adata: AnnData, call: TrainingCall, key: str) -> None:
        """Write the requested split to ``obs[key]``, and check that something is held out.

        Raises
        ------
        DataError
            If there are no cells to train or to test on.
        """

    def check_cells(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> None:  # noqa: B027 -- most have nothing to add
        """Raise the errors of training before anything is written."""

    def predict(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> str:
        """Write predictions that training did not write, and return a short description of them."""
        return f"embeddings of {adata.n_obs:,} cells, written by fine-tuning"

    @abstractmethod
    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Score held-out cells, with baselines fitted to the same cells.

        Parameters
        ----------
        adata
            With the results of :func:`scgalore.tl.finetune` and :meth:`predict`.
        model, call
            Fitted model, and the call of the run.
        name
            Name of the model in tables, such as "scgpt-mini + galore".
        """


def refuse_batches(batch_key: str | None, why: str) -> None:
    """Raise :class:`~scgalore.errors.OptionError` if batches are given for a model that does not use them.

    Parameters
    ----------
    batch_key
        Argument of the caller.
    why
        Description of the model, as the end of a sentence: "was not trained".
    """
    if batch_key is not None:
        msg = (
            f"batch_key={batch_key!r} is for models that remove batch effects, but this one {why}. Omit it, or train one: "
            "sg.tl.finetune(adata, task='integration', batch_key=...)."
        )
        raise OptionError(msg)
