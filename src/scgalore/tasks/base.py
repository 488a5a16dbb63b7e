"""What a task is: everything that training, the pipeline and saved models ask of it, in one class.

To add a task, subclass :class:`Task` (or :class:`~scgalore.tasks.cells.CellTask`, where each cell has its own target) in one
file and put an instance into :data:`~scgalore.tasks.TASKS`. No other file names it.
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
    """What a model keeps of its training data in addition to the weights, so that it can predict for other cells."""

    @property
    def task(self) -> str:
        """Name of the task."""
        ...

    @property
    def outlives_training(self) -> bool:
        """Whether it still holds after the network has been trained for a task that keeps nothing itself."""
        ...

    def to_config(self) -> dict[str, Any]:
        """What goes into ``config.json``, as JSON has it."""
        ...

    def files(self, provenance: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, str | bytes]:
        """Further files of a saved model, by name.

        Parameters
        ----------
        provenance
            Where the weights come from.
        evaluation
            Test scores for a model card, if there are some.
        """
        ...


class TaskModel(Protocol):
    """What a task may ask of a model; :class:`scgalore.model.CellModel` has it."""

    network: CellNetwork
    vocab: GeneVocab
    provenance: Any

    @property
    def can(self) -> frozenset[str]:
        """What the model's family can do."""
        ...

    @property
    def memory(self) -> Any:
        """What the model keeps of its last task, a :class:`TaskMemory`; ``None`` before training."""
        ...

    @property
    def result(self) -> TrainResult | None:
        """What the last training left; ``None`` before."""
        ...

    def keys(self, uns: str, key_added: str | None = None) -> CellKeys:
        """Names of the slots that results of this model are written to."""
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
        """Cells of an AnnData as tokens of this model."""
        ...

    @property
    def run(self) -> Callable[..., CellOutput]:
        """Embed cells and read the cell heads; see :meth:`scgalore.model.CellModel.run`."""
        ...


@dataclass(frozen=True)
class Prepared:
    """All that a training run needs, made by a task.

    Attributes
    ----------
    task
        What is trained for.
    source
        What training reads.
    split
        Training, validation and test cells; ``None`` where the source has training cells only.
    objective
        The loss.
    config
        How to train.
    network, vocab
        What is trained, where that is not the model's own: a copy with other parts.
    validation
        Cells that choose the best epoch, where they are not among the cells of ``source``.
    memory
        What is known before training of what the model will keep, for tasks whose memory does not depend on the run.
    heads_at_zero
        Whether fresh heads predict 0 for every cell until they are trained.
    start
        Weight and bias of the last layer of a head, by its name, that training starts from; such heads are always fresh.
    identity
        What must agree when a run is resumed, besides what the source and the configuration tell.
    state
        What the task itself needs again after training.
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
    """One thing that a model can be trained for."""

    name: ClassVar[str]
    """What users write as ``task=``."""
    summary: ClassVar[str]
    """What the model learns, as the end of a sentence: "to predict the class of each cell"."""
    key: ClassVar[str | None] = None
    """Argument that chooses this task where ``task`` is left out."""
    arguments: ClassVar[tuple[Option, ...]] = ()
    """Arguments of the task, for Python, the pipeline and the command line."""
    training: ClassVar[Mapping[str, Any]] = {}
    """Its own defaults of :class:`~scgalore.train.TrainConfig`."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What a model family must be able to do; see :attr:`scgalore.model.Family.can`."""
    predicts: ClassVar[bool] = False
    """Whether a trained model predicts something for single cells, with :meth:`predictions`."""
    gives_batches: ClassVar[bool] = False
    """Whether its cells come with their sequencing batches."""
    gene_strategy: ClassVar[str] = "biological"
    """How genes are ranked for a curriculum or a pipeline run, where that is left open."""
    splits_cells: ClassVar[bool] = False
    """Whether single cells are held out, so that a fraction of them can be asked for."""
    split_note: ClassVar[str] = "drawn at random"
    """How a split is made, for the report."""
    next_steps: ClassVar[str] = ""
    """What can be done with the fitted model, in Markdown, for the report."""

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the arguments with their defaults and refuse what does not go together.

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
        """Checked arguments as they are written down, such as in ``uns``."""
        kinds = {option.name: option.kind for option in self.arguments}
        return {name: None if value is None else kinds[name].record(value) for name, value in arguments.items()}

    def require(self, model: TaskModel) -> None:
        """Raise :class:`~scgalore.errors.OptionError` if the model's family cannot be trained for this task."""
        missing = sorted(self.needs - model.can)
        if missing:
            msg = f"task={self.name!r} needs a network with {' and '.join(missing)}, which {model.provenance['name']} lacks. Choose another model."
            raise OptionError(msg)

    # Training ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def read(self, data: Any, call: TrainingCall) -> Any:
        """Read all that can be read and refused without a model: targets, split, ranking of genes.

        Parameters
        ----------
        data
            An AnnData, or a stream of many files.
        call
            How to read it and how to train.

        Returns
        -------
        What :meth:`prepare` continues with; it has an attribute ``title``, such as "560 of 700 cells".
        """

    @abstractmethod
    def prepare(self, reading: Any, model: TaskModel, call: TrainingCall) -> Prepared:
        """Make source, objective and, if needed, another network.

        Parameters
        ----------
        reading
            From :meth:`read`.
        model
            To start from; it is not changed.
        call
            As for :meth:`read`.
        """

    def remember(self, prepared: Prepared, result: TrainResult, adapter: Any = None) -> TaskMemory | None:
        """What the model keeps of this run in addition to the weights.

        Parameters
        ----------
        prepared, result
            Of the run.
        adapter
            What its adapter learned: ``name``, ``options`` and ``tensors``; ``None`` without one.
        """
        return prepared.memory

    def measured(self, memory: Any, model: TaskModel, prepared: Prepared) -> TaskMemory | None:
        """What the model keeps of this task, with what the network says once it is trained.

        Parameters
        ----------
        memory
            From :meth:`remember`; or of an earlier run for this task, after one for a task that keeps nothing itself.
        model
            Trained.
        prepared
            Of the run.
        """
        return memory

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """Read what a saved model keeps of this task; ``None`` if it was not trained for it.

        Parameters
        ----------
        folder
            Folder of the model.
        config
            Content of its ``config.json``; ``config["memory"]`` is what :meth:`TaskMemory.to_config` gave.
        """
        return None

    # Results ----------------------------------------------------------------------------------------------------------

    def predictions(self, output: CellOutput, memory: Any, keys: CellKeys) -> Results:
        """What the heads predict for each cell, as slots of an AnnData; :func:`scgalore.tl.annotate` writes it.

        Parameters
        ----------
        output
            Embeddings, and raw outputs of the cell heads.
        memory
            What the model keeps of this task.
        keys
            Names of the slots.
        """
        raise NotImplementedError

    def unknown_rule(self, memory: Any, unknown: float) -> UnknownRule:
        """When a cell gets no label; :func:`scgalore.tl.annotate` asks before it reads anything.

        Parameters
        ----------
        memory
            What the model keeps of this task.
        unknown
            Wanted share of wrong labels.

        Raises
        ------
        OptionError
            If the task has no labels, or the model cannot tell.
        """
        msg = (
            f"unknown={unknown!r}: a model that was trained for task={self.name!r} gives no labels. Leave unknown out."
        )
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
        """Run a model of this task over cells; its embeddings are what :func:`scgalore.tl.embed` writes.

        Parameters
        ----------
        model
            Trained for this task.
        cells
            Tokens of the cells.
        adata, reading
            The same cells, and how to read them.
        batch_key
            Column of ``adata.obs`` with their batches, for models that know batches.
        **how
            Parameters of :meth:`scgalore.model.CellModel.run`.

        Raises
        ------
        OptionError
            If batches are named and the model knows none.
        """
        refuse_batches(batch_key, f"was trained for task={self.name!r}")
        return model.run(cells, **how)

    def arrays_of_embedding(self, memory: Any) -> Sequence[NDArray[Any]]:
        """What embeddings depend on in addition to the network, for the hash that tells models of references apart.

        Parameters
        ----------
        memory
            What the model keeps of this task.
        """
        return ()

    def complete(self, output: CellOutput, memory: Any, adata: AnnData, reading: Reading) -> CellOutput:
        """Outputs of the network with what the model adds to them, such as a linear model that they correct.

        Parameters
        ----------
        output
            Of the network.
        memory
            What the model keeps of this task.
        adata, reading
            The same cells, and how to read them.
        """
        return output

    @abstractmethod
    def results(
        self, adata: AnnData, model: TaskModel, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """What :func:`scgalore.tl.finetune` writes, with the task's part of ``uns`` under ``keys.uns``.

        Parameters
        ----------
        adata
            Cells that were trained on; nothing is written to it here.
        model
            Fitted.
        prepared, call
            Of the run.
        keys
            Names of the slots.
        """

    def reads(self, call: TrainingCall) -> list[Read]:
        """Slots that training reads: what no result may be written over."""
        given = ((one.column, one.name, call.arguments[one.name]) for one in self.arguments)
        named = [
            (slot, f"{name}=", key)
            for slots, name, key in given
            if slots and isinstance(key, str)
            for slot in slots.split(" or ")
        ]
        return [*call.reading.reads(), *named, ("obs", "split_key=", call.split_key)]

    def writes(self, keys: CellKeys, call: TrainingCall) -> Mapping[str, Sequence[str]]:
        """Names that :meth:`results` may write, by slot.

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
    """Arguments of :func:`scgalore.estimate_memory` that say how large the heads are."""

    @abstractmethod
    def objective_for(self, network: CellNetwork, sizes: Mapping[str, Any]) -> Objective:
        """The objective of a run whose data are not known yet.

        Parameters
        ----------
        network
            Whose sizes are known; its weights may not exist.
        sizes
            Values of :attr:`sizes`.
        """

    def network_for(self, network: CellNetwork) -> CellNetwork:
        """The network as it is trained; another one where the task changes more than its cell heads."""
        return network

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def goal(self, arguments: Mapping[str, Any]) -> str:
        """:attr:`summary` with the names of the columns, for the report."""
        return self.summary

    def settle(self, obs: pd.DataFrame, genes: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that were left open and that ``obs`` and the names of the genes decide."""
        return {}

    def own_split_key(self, data: Any, arguments: Mapping[str, Any]) -> str | None:
        """Column with a split that was made for this task, if there is one.

        Parameters
        ----------
        data
            Cells, with ``obs`` and ``uns``.
        arguments
            Of the task.
        """
        return None

    def draw_keys(self, arguments: Mapping[str, Any]) -> list[str]:
        """Columns of ``obs`` within whose values cells are drawn; cells without a value in the first are left out."""
        return []

    @abstractmethod
    def split(self, adata: AnnData, call: TrainingCall, key: str) -> None:
        """Write the split that ``call`` asks for to ``obs[key]``, and check that something is held out.

        Raises
        ------
        DataError
            If nothing is left to train or to test on.
        """

    def check_cells(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> None:  # noqa: B027 -- most have nothing to add
        """Refuse cells that training would refuse, before anything is written."""

    def predict(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> str:
        """Write predictions that training has not written, and say what they are in a few words."""
        return f"embeddings of {adata.n_obs:,} cells, written by fine-tuning"

    @abstractmethod
    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Score what was held out, with baselines that know the same cells.

        Parameters
        ----------
        adata
            With the results of :func:`scgalore.tl.finetune` and :meth:`predict`.
        model, call
            Fitted, and how.
        name
            What to call the model in tables, such as "scgpt-mini + galore".
        """


def refuse_batches(batch_key: str | None, why: str) -> None:
    """Raise :class:`~scgalore.errors.OptionError` if batches are named for a model that knows none.

    Parameters
    ----------
    batch_key
        As passed.
    why
        What the model is, as the end of a sentence: "was not trained".
    """
    if batch_key is not None:
        msg = (
            f"batch_key={batch_key!r} is for models that take batches out, and this one {why}. Leave it out, or train one: "
            "sg.tl.finetune(adata, task='integration', batch_key=...)."
        )
        raise OptionError(msg)
