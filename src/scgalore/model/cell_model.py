"""Model: a network with its vocabulary, family and the result of its last training."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgalore import _logging as logg
from scgalore._keys import CellKeys
from scgalore._rng import seed_from
from scgalore.data.cells import TokenCells
from scgalore.data.reading import Reading
from scgalore.errors import OptionError, WeightsError
from scgalore.model.adapter_files import write_adapter
from scgalore.model.card import public_name
from scgalore.model.distributed import gather, process_group, share
from scgalore.model.files import memory_config, write_model
from scgalore.model.identity import embedding_identity, run_identity
from scgalore.model.inference import RunOptions, run_network
from scgalore.model.loading import load_model
from scgalore.model.training import trainable
from scgalore.nn.base import CellOutput, set_last_layer
from scgalore.nn.device import pick_device
from scgalore.tasks.base import refuse_batches
from scgalore.tasks.registry import resolve_call, task_named
from scgalore.weights.hub import check_repo_id, publish, require_hub

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scgalore._typing import PathLike, Rng
    from scgalore.data.source import CellSource, TokenSource
    from scgalore.data.split import Split
    from scgalore.data.streaming import TokenStream
    from scgalore.data.tokens import TokenizerConfig
    from scgalore.data.vocab import GeneVocab
    from scgalore.model.family import Family
    from scgalore.model.files import Provenance
    from scgalore.model.training import Trainable
    from scgalore.nn.base import CellNetwork, NetworkConfig
    from scgalore.tasks.base import Prepared, TaskMemory
    from scgalore.train.config import Accelerator, Precision
    from scgalore.train.loggers import Loggers
    from scgalore.train.result import TrainResult
    from scgalore.weights import LoadReport

__all__ = ["CellModel"]


class CellModel:
    """A network of any family with its vocabulary; :func:`scgalore.model.load` loads one from a name or a folder.

    Method names are those of scvi-tools.

    Parameters
    ----------
    network
        The network.
    vocab
        Genes and special tokens.
    family
        Entry of :data:`scgalore.model.FAMILIES`; by default that of the class.
    provenance
        Provenance of the weights.
    load_report
        Tensors that a checkpoint filled, left random, and contained in addition.

    See Also
    --------
    scgalore.model.load : Load a model of any family.
    scgalore.model.SCGPT : scGPT models.
    scgalore.model.SCBERT : scBERT models.

    Examples
    --------
    >>> import scgalore as sg
    >>> model = sg.model.load("scgpt-mini")
    >>> model.save("copy")
    >>> sg.model.load("copy").embedding_identity == model.embedding_identity
    True
    """

    def __init__(
        self,
        network: CellNetwork,
        vocab: GeneVocab,
        *,
        family: Family | None = None,
        provenance: Provenance | None = None,
        load_report: LoadReport | None = None,
    ) -> None:
        if len(vocab) > network.config.n_tokens:
            msg = (
                f"The vocabulary has {len(vocab):,} tokens but the network has {network.config.n_tokens:,}; "
                "vocab.json and the weights do not match."
            )
            raise WeightsError(msg)
        if network.config.pad_id != vocab.pad_id:
            msg = (
                f"<pad> is token {vocab.pad_id} of the vocabulary, but the network's pad_id is {network.config.pad_id}."
            )
            raise WeightsError(msg)
        self.network = network.eval()
        self.vocab = vocab
        self.family = family or self.own_family()
        self.provenance: Provenance = provenance or {"name": "random", "sha256": "", "layout": "none", "base": ""}
        self.load_report = load_report
        #: Result of the last training: history, split, best epoch, steps, bytes, task memory; ``None`` before training.
        self.result: TrainResult | None = None
        #: Licence of the weights, which that of weights trained from them follows; empty if it is not known.
        self.licence: str = ""

    @classmethod
    def own_family(cls) -> Family:
        """Entry of :data:`scgalore.model.FAMILIES` of this class.

        Raises
        ------
        OptionError
            If the class is for models of any family.
        """
        msg = f"{cls.__name__} is for any family. Pass family=, or use a specific class, such as sg.model.SCGPT."
        raise OptionError(msg)

    @classmethod
    def from_config(
        cls, config: NetworkConfig, vocab: GeneVocab, *, rng: Rng = 0, family: Family | None = None
    ) -> Self:
        """Create a model with random weights.

        Parameters
        ----------
        config
            Sizes and parts of the network, without cell heads.
        vocab
            Genes and special tokens; ``config.n_tokens`` must be their number.
        rng
            Seed of the weights.
        family
            By default that of the class.
        """
        family = family or cls.own_family()
        if config.heads:
            msg = (
                f"{type(config).__name__}.heads={dict(config.heads)}: heads are added by training, for example with labels_key=. Omit "
                "them."
            )
            raise WeightsError(msg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(rng))
            return cls(family.network(config), vocab, family=family)

    @classmethod
    def load(cls, folder: PathLike) -> Self:
        """Read a model written by :meth:`save`.

        Parameters
        ----------
        folder
            Folder of the checkpoint.
        """
        family = cls.own_family()
        loaded: Self = load_model(folder, base=None, families={family.name: family})
        return loaded

    def __repr__(self) -> str:
        n_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        trained = "" if self.memory is None else f", trained for {self.memory.task}"
        return (
            f"{type(self).__name__} {self.provenance['name']}: {self.network.config.d_model} dimensions, "
            f"{len(self.vocab):,} tokens, {n_parameters / 1e6:.1f} M parameters{trained}"
        )

    # Result of the last training --------------------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch of the last training; empty before training."""
        return pd.DataFrame() if self.result is None else self.result.history

    @property
    def split(self) -> Split | None:
        """Training, validation and test cells of the last training."""
        return None if self.result is None else self.result.split

    @property
    def is_trained(self) -> bool:
        """Whether the model was fine-tuned."""
        return self.result is not None

    @property
    def memory(self) -> Any:
        """Memory of its task, a :class:`scgalore.tasks.TaskMemory`, or ``None``."""
        return None if self.result is None else self.result.memory

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the predicted classes, in the order of the outputs; empty if the model predicts none."""
        return getattr(self.memory, "classes", ())

    @property
    def can(self) -> frozenset[str]:
        """Capabilities of the family; see :class:`scgalore.model.Family`."""
        return self.family.can

    def require_memory(self) -> Any:
        """Memory of its task; raises :class:`~scgalore.errors.OptionError` if it was not trained for one."""
        if self.memory is None:
            msg = (
                f"{self.provenance['name']!r} was not trained to predict labels or values of cells. Fine-tune it first: "
                "model = sg.tl.finetune(adata, labels_key=...)."
            )
            raise OptionError(msg)
        return self.memory

    def keys(self, uns: str, key_added: str | None = None) -> CellKeys:
        """Names of the slots for results of this model.

        Parameters
        ----------
        uns
            Key in ``uns`` if ``key_added`` is ``None``: the name of the function.
        key_added
            As for the functions of :mod:`scgalore.tl`.
        """
        return CellKeys.from_key_added(key_added, uns=uns, embedding=self.family.embedding, stem=self.family.stem)

    # Cells ------------------------------------------------------------------------------------------------------------

    def tokenizer_config(self, *, max_length: int | None = None, rng: Rng = 0) -> TokenizerConfig:
        """Tokenizer settings of this network, for a :func:`scgalore.data.stream`.

        Parameters
        ----------
        max_length, rng
            As for :meth:`cells`.
        """
        return self.family.tokenizer(self.network.config, max_length=max_length, seed=seed_from(rng))

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
        rng: Rng = 0,
    ) -> TokenCells:
        """Check an AnnData, match its genes and prepare it for the network.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised.
        layer
            Layer to read; ``None`` reads ``X``.
        gene_symbols
            Column of ``adata.var`` with gene names; ``None`` reads ``var_names``.
        data_type, species, min_matched
            As for :func:`scgalore.tl.embed`.
        max_length
            Maximum number of tokens per cell; by default the length the weights were trained with.
        rng
            Seed for sampling genes of longer cells.
        """
        reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
        tokens = self.tokenizer_config(max_length=max_length, rng=rng)
        cells = TokenCells.from_adata(adata, self.vocab, config=tokens, reading=reading)
        if cells.seen.suffices(cells.match, min_matched):  # otherwise a warning has shown it
            logg.result(f"    {cells.match.summary()}")
        return cells

    def get_latent_representation(
        self,
        adata: AnnData | TokenStream,
        *,
        layer: str | None = None,
        gene_symbols: str | None = None,
        data_type: str | None = None,
        species: str = "human",
        min_matched: float | None = None,
        max_length: int | None = None,
        rng: Rng = 0,
        batch_key: str | None = None,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Cell embeddings with unit norm, float32 ``(n_obs, d_model)``; of an integrated model, its components.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Or many files, as a :func:`scgalore.data.stream` with
            ``shuffle=False`` and ``config=model.tokenizer_config()``, which then determines the other parameters.
        layer, gene_symbols, data_type, species, min_matched, max_length, rng
            As for :meth:`cells`.
        batch_key
            As for :func:`scgalore.tl.embed`.
        batch_size
            Maximum number of cells per batch; affects speed and memory, not results.
        """
        if not isinstance(adata, AnnData):
            if self.knows_batches:
                msg = f"{self.provenance['name']} needs the batch of each cell, which a stream does not provide. Pass an AnnData."
                raise OptionError(msg)
            return self.run(adata, batch_size=batch_size).embedding
        reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
        cells = self.cells(adata, **reading.of_tokens(), max_length=max_length, rng=rng)
        return self.embed(cells, adata, reading, batch_key=batch_key, batch_size=batch_size).embedding

    @property
    def embedding_identity(self) -> str:
        """Hash of everything that embeddings depend on, 16 hexadecimal digits: identical in memory and in files.

        It does not include heads and decoders, nor batches that were added to a model of task ``"integration"``, which
        do not change the embeddings of the others.
        """
        added = () if self.memory is None else task_named(self.memory.task).arrays_of_embedding(self.memory)
        return embedding_identity(self.network, self.vocab, added)

    @property
    def knows_batches(self) -> bool:
        """Whether its embeddings are batch-corrected, so that it needs the batch of each cell."""
        return self.memory is not None and task_named(self.memory.task).gives_batches

    def embed(
        self, cells: TokenCells, adata: AnnData, reading: Reading, *, batch_key: str | None = None, **how: Any
    ) -> CellOutput:
        """Embed cells as defined by the model's task; :meth:`run` returns the outputs of the network.

        Parameters
        ----------
        cells
            Result of :meth:`cells`.
        adata, reading
            The same cells, and how they were read.
        batch_key
            As for :func:`scgalore.tl.embed`.
        **how
            Parameters of :meth:`run`.
        """
        if self.memory is None:
            refuse_batches(batch_key, "was not trained for that")
            return self.run(cells, **how)
        return task_named(self.memory.task).embed(self, cells, adata, reading, batch_key=batch_key, **how)

    def predict(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        gene_symbols: str | None = None,
        data_type: str | None = None,
        species: str = "human",
        min_matched: float | None = None,
        max_length: int | None = None,
        rng: Rng = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Predictions for cells, one row per cell: the probability of each class, or a value.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Its genes may differ from those of the training data.
        layer, gene_symbols, data_type, species, min_matched, max_length, rng
            As for :meth:`cells`.
        batch_size
            Maximum number of cells per batch.

        Raises
        ------
        OptionError
            If the model was not trained to predict labels or values of cells.
        """
        memory = self.require_memory()
        if not hasattr(memory, "table"):
            msg = f"A model trained for task={memory.task!r} has no predictions for single cells. Use sg.tl.embed(adata, model)."
            raise OptionError(msg)
        reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
        cells = self.cells(adata, **reading.of_tokens(), max_length=max_length, rng=rng)
        output = self.run(cells, batch_size=batch_size)
        output = task_named(memory.task).complete(output, memory, adata, reading)
        return pd.DataFrame(memory.table(output), index=adata.obs_names)

    def run(
        self,
        cells: TokenSource,
        *,
        rows: NDArray[np.int64] | None = None,
        precision: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        accelerator: str | None = None,
        devices: int | str | None = None,
    ) -> CellOutput:
        """Compute embeddings and outputs of the cell heads in one pass.

        Several processes started together (torchrun, SLURM) share the cells, and all of them get the complete
        result.

        Parameters
        ----------
        cells
            Result of :meth:`cells`, or a stream of many files without shuffling.
        rows
            Row numbers of the cells to run; ``None`` runs all.
        precision
            ``"32-true"``, ``"bf16-true"`` or ``"auto"``.
        batch_size, batch_tokens
            Maximum numbers of cells and tokens per batch; they affect speed and memory, not results.
        accelerator
            Device, as in Lightning.

            By default, all of these are from ``sg.settings``.
        devices
            Expected number of processes on this machine; ``None`` uses all of them.
        """
        options = RunOptions.of(
            precision=precision,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            accelerator=accelerator,
            devices=devices,
        )
        device = options.device
        with process_group() as world:
            if world.size > 1:
                every = np.arange(cells.n_obs) if rows is None else rows
                rows = every[share(len(every), world)]
            if device.type == "cuda" and world.size > 1:
                device = torch.device("cuda", world.local_rank)
            output = run_network(
                self.network,
                cells,
                encoder=self.family.encoder,
                rows=rows,
                batch_size=options.batch_size,
                batch_tokens=options.batch_tokens,
                device=device,
                dtype=options.dtype,
                label="cells",
            )
            heads = {name: gather(outputs, world) for name, outputs in output.heads.items()}
            return replace(output, embedding=gather(output.embedding, world), heads=heads)

    # Training ---------------------------------------------------------------------------------------------------------

    def train(
        self,
        adata: AnnData | TokenStream,
        *,
        task: str | None = None,
        layer: str | None = None,
        gene_symbols: str | None = None,
        data_type: str | None = None,
        depth_key: str | None = None,
        species: str = "human",
        min_matched: float | None = None,
        validation: AnnData | CellSource | None = None,
        split: Split | None = None,
        split_key: str | None = None,
        validation_size: float = 0.1,
        test_size: float = 0.0,
        genes_key: str | None = None,
        max_epochs: int | None = None,
        batch_size: int | Literal["auto"] | None = None,
        lr: float | None = None,
        max_length: int | None = None,
        patience: int | None = None,
        precision: Precision = "32-true",
        curriculum: bool | Sequence[int] | Mapping[int, int] | None = None,
        accelerator: Accelerator | None = None,
        rng: Rng = 0,
        checkpoint_dir: PathLike | None = None,
        resume: bool = False,
        logger: Loggers = None,
        **options: Any,
    ) -> None:
        """Train the model in place; :func:`scgalore.tl.finetune` also writes results to the AnnData.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Or many files, as a :func:`scgalore.data.stream` with
            ``config=model.tokenizer_config()``; all of its cells are training cells, in the batches of the stream.
        task
            Entry of :data:`scgalore.tasks.TASKS`; by default the task whose key argument is given (``labels_key=`` for
            classes), else masked expression. A stream has its own labels.
        layer, gene_symbols, data_type, depth_key, species, min_matched
            As for :func:`scgalore.tl.finetune`; with a stream, they apply to ``validation``.
        validation
            For a stream: cells for selecting the best epoch, or another stream. Otherwise these are part of ``adata``.
        split
            Training, validation and test cells; by default ``split_key``, a column of ``adata.obs``, or a random split.
        split_key, validation_size, test_size, genes_key
            As for :func:`scgalore.tl.finetune`.
        max_epochs, batch_size, lr, max_length, patience, precision, curriculum, accelerator
            As for :func:`scgalore.tl.finetune`.
        rng
            Random seed.
        checkpoint_dir
            Folder for a checkpoint after each epoch and, with ``checkpoint_every``, within epochs.
        resume
            Whether to resume from the checkpoint in that folder, if any; with a larger ``max_epochs``, as for
            :func:`scgalore.tl.finetune`.
        logger
            As for :func:`scgalore.tl.finetune`.
        **options
            Arguments of the task, and further fields of :class:`~scgalore.train.TrainConfig`.

        Raises
        ------
        DataError, MissingKeyError, OptionError
            If data or options cannot be used; the model is then unchanged.
        """
        implied = {} if isinstance(adata, AnnData) else adata.arguments
        chosen, call = resolve_call(
            {
                **implied,
                "max_epochs": max_epochs,
                "batch_size": batch_size,
                "lr": lr,
                "max_length": max_length,
                "patience": patience,
                "precision": precision,
                "curriculum": curriculum,
                "accelerator": accelerator,
                **options,
            },
            task=task,
            seed=seed_from(rng),
            function=self.train,
            reading=Reading(layer, gene_symbols, data_type, depth_key, species, min_matched),
            validation=validation,
            split=split,
            split_key=split_key,
            validation_size=validation_size,
            test_size=test_size,
            genes_key=genes_key,
        )
        reading = chosen.read(adata, call)
        chosen.require(self)
        self.fit(chosen.prepare(reading, self, call), checkpoint_dir=checkpoint_dir, resume=resume, logger=logger)

    def fit(
        self,
        prepared: Prepared,
        *,
        checkpoint_dir: PathLike | None = None,
        resume: bool = False,
        logger: Loggers = None,
        keep_best: int | None = None,
    ) -> None:
        """Train with the preparation of a task; the last step of :meth:`train`.

        The model changes only at the end of training.

        Parameters
        ----------
        prepared
            Result of :meth:`scgalore.tasks.Task.prepare`.
        checkpoint_dir, resume, logger
            As for :meth:`train`.
        keep_best
            As for :func:`scgalore.tl.pretrain`.
        """
        from scgalore.train.budget import settle_budget
        from scgalore.train.checkpoint import saved_run
        from scgalore.train.extension import extended_config
        from scgalore.train.kept import Keeping
        from scgalore.train.memory import settle_memory
        from scgalore.train.processes import training_processes
        from scgalore.train.runner import fit
        from scgalore.train.steps import settle_steps

        source, split, objective, config = prepared.source, prepared.split, prepared.objective, prepared.config
        pick_device(config.accelerator)
        training_processes(config)
        if split is not None:
            split.check(source.n_obs)
        network = self.network if prepared.network is None else prepared.network
        heads = network.cell_heads
        run: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume}
        try:
            if objective.heads:
                keep = prepared.memory == self.memory and not prepared.start
                self._put_heads(network, objective.heads, keep=keep, at_zero=prepared.heads_at_zero, seed=config.seed)
                for name, layer in prepared.start.items():
                    set_last_layer(network.cell_heads[name], *layer)
            begun = saved_run(checkpoint_dir, resume=resume)
            n_cells = source.n_obs if split is None else len(split.train)
            validated = prepared.validation is not None or (split is not None and len(split.validation) > 0)
            config = settle_budget(
                config, None if source.lengths is None else n_cells, validated=validated, begun=begun
            )
            config = extended_config(config, begun)
            config = settle_steps(config, source, None if split is None else split.train)
            config = settle_memory(network, source, split, objective, config, **run)
            validation = prepared.validation
            identity = None
            if checkpoint_dir is not None:
                identity = run_identity(source, split, objective, config, network, validation=validation)
                identity |= memory_config(prepared.memory)  # names of classes, which are not in the codes
                identity |= {"keep_best": keep_best, **prepared.identity}
            tokens = source.tokens() if validation is None else np.union1d(source.tokens(), validation.tokens())
            with trainable(network, config, tokens) as ready:
                if keep_best is not None:
                    run["keeping"] = Keeping(keep_best, partial(self._write_as_trained, prepared, ready))
                run |= {"validation": validation, "adapter": ready.adapter, "identity": identity, "logger": logger}
                result = fit(network, source, split, objective, config, **run)
                learned = ready.adapter_weights()
        except BaseException:
            network.put_heads(heads)
            raise
        finally:
            network.eval().cpu()
        memory = self._memory_after(prepared, result, learned)
        # An adapter alone does not include changes of the network by a task, other than heads.
        adapter = None if learned is None or prepared.network is not None else (learned, self.provenance)
        self.network, self.vocab = network, self.vocab if prepared.vocab is None else prepared.vocab
        self.result = replace(result, adapter=adapter, memory=memory)
        self.provenance = self._provenance_after()
        if memory is not None:
            owner = prepared.task if prepared.task.name == memory.task else task_named(memory.task)
            self.result = replace(self.result, memory=owner.measured(memory, self, prepared))

    def _memory_after(self, prepared: Prepared, result: TrainResult, adapter: Any) -> TaskMemory | None:
        memory = prepared.task.remember(prepared, result, adapter)
        if memory is None and self.memory is not None and self.memory.outlives_training:
            kept: TaskMemory = self.memory  # its head is still in the network
            return kept
        return memory

    def _provenance_after(self) -> Provenance:
        # These weights are not in a file yet, and the hash of the initial weights is no longer valid.
        base = self.provenance["base"] if self.provenance["layout"] == "memory" else self.provenance["name"]
        return {"name": f"fine-tuned {base}", "sha256": "", "layout": "memory", "base": base}

    def _write_as_trained(self, prepared: Prepared, ready: Trainable, folder: Path, result: TrainResult) -> None:
        """Write the model with the current weights of training."""
        write_model(
            folder,
            family=self.family,
            network=ready.whole(),
            vocab=self.vocab if prepared.vocab is None else prepared.vocab,
            provenance=self._provenance_after(),
            result=replace(result, memory=self._memory_after(prepared, result, ready.adapter_weights())),
            licence=self.licence,
            overwrite=True,
        )

    def put_heads(self, sizes: Mapping[str, int], *, seed: int) -> None:
        """Replace the cell heads of the network by new heads.

        Parameters
        ----------
        sizes
            Number of outputs of each head by name.
        seed
            Seed for their weights.
        """
        self._put_heads(self.network, sizes, keep=False, at_zero=False, seed=seed)

    @staticmethod
    def _put_heads(network: CellNetwork, sizes: Mapping[str, int], *, keep: bool, at_zero: bool, seed: int) -> None:
        """Set the heads of a network: existing heads of the same name and size if these are kept, otherwise new ones."""
        own = network.cell_heads if keep else {}
        kept = {name: head for name, head in own.items() if network.config.heads[name] == sizes.get(name)}
        fresh = network.fresh_heads({name: n for name, n in sizes.items() if name not in kept}, seed=seed)
        if at_zero:
            for head in fresh.values():
                set_last_layer(head, 0.0, 0.0)
        network.put_heads({name: kept[name] if name in kept else fresh[name] for name in sizes})

    # Files ------------------------------------------------------------------------------------------------------------

    def save(
        self,
        folder: PathLike,
        *,
        evaluation: Mapping[str, Any] | Sequence[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write ``config.json``, ``vocab.json``, ``model.safetensors``, ``history.csv`` and a model card ``README.md``.

        Files are written completely or not at all. A model trained by :func:`scgalore.tl.finetune` also has
        ``finetune.json``, with the settings and scores shown in the card. Some tasks have additional files, such as the
        prior and ``training_stats.json`` of a perturbation model.

        Parameters
        ----------
        folder
            Folder to create.
        evaluation
            Test scores for the card: ``adata.uns["evaluate_perturbation"]`` or ``adata.uns["evaluate_integration"]``, or sections of your own
            in Markdown.
        overwrite
            Whether a checkpoint in the folder may be replaced.
        """
        self._write(folder, evaluation=evaluation, overwrite=overwrite)

    def _write(
        self, folder: PathLike, *, provenance: Provenance | None = None, licence: str | None = None, **how: Any
    ) -> None:
        write_model(
            folder,
            family=self.family,
            network=self.network,
            vocab=self.vocab,
            provenance=provenance or self.provenance,
            result=self.result,
            licence=self.licence if licence is None else licence,
            **how,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        licence: str | None = None,
        evaluation: Mapping[str, Any] | Sequence[str] | None = None,
        card: str | None = None,
    ) -> str:
        """Publish the model on the Hugging Face Hub: the files of :meth:`save` and ``SHA256SUMS``, in one commit.

        Requires the extra ``hub`` and a token with write access: log in once (``hf auth login``), set ``HF_TOKEN``, or
        pass ``token``. The token is neither stored nor logged.

        Parameters
        ----------
        repo_id
            ``"owner/name"``; made if it does not exist. Files that a model left there before and that this one does not have are
            deleted, and no others.
        private
            Whether a repository that is made is private; ``None`` leaves it to the settings of its owner. With ``True`` a public
            repository is refused.
        token
            Of the hub; ``None`` takes that of the login.
        revision
            Branch to publish to, made if it does not exist; ``None`` is ``main``.
        commit_message
            Of the commit.
        licence
            Licence of the weights, such as ``"cc-by-4.0"``; ``None`` takes that of the weights the model was trained from, where it is known.
        evaluation
            As for :meth:`save`.
        card
            Model card in Markdown, in place of the one that is made.

        Returns
        -------
        Address with the commit, for :func:`scgalore.model.load`: ``"hf://owner/name@3f2a..."``.

        Raises
        ------
        OptionError
            If ``repo_id`` is not a name, or huggingface_hub is not installed.
        UploadError
            If the hub refuses or cannot be reached. Nothing has been published then.

        Examples
        --------
        >>> model.push_to_hub("my-lab/pbmc-types", licence="cc-by-4.0")  # doctest: +SKIP
        'hf://my-lab/pbmc-types@3f2a...'
        >>> sg.model.load("hf://my-lab/pbmc-types")  # doctest: +SKIP
        """
        check_repo_id(repo_id)
        require_hub()
        if not (licence or self.licence):
            logg.warning(
                "No licence of the weights is known, so nobody may use them. Pass licence=, for example 'cc-by-4.0'."
            )
        shown = self.provenance.copy()
        shown["name"], shown["base"] = public_name(shown["name"]), public_name(shown["base"])
        with TemporaryDirectory() as place:
            folder = Path(place) / "model"
            content: dict[str, Any] = {"evaluation": evaluation, "card": card, "address": f"hf://{repo_id}"}
            self._write(folder, provenance=shown, licence=licence, **content, overwrite=False)
            how: dict[str, Any] = {"private": private, "token": token, "revision": revision}
            return str(publish(folder, repo_id, commit_message=commit_message, **how))

    def save_adapter(self, folder: PathLike, *, overwrite: bool = False) -> None:
        """Write the adapter of the last training: ``adapter.json, adapter.safetensors``, completely or not at all.

        :func:`scgalore.model.load` reads it together with the base weights from their original location.

        Parameters
        ----------
        folder
            Folder to create.
        overwrite
            Whether an adapter in the folder may be replaced.

        Raises
        ------
        OptionError
            If there was no adapter, other weights were also trained, or the base weights are not in a file.
        """
        adapter = None if self.result is None else self.result.adapter
        weights, base = (None, self.provenance) if adapter is None else adapter
        heads = self.network.config.heads
        write_adapter(folder, weights, base=base, heads=heads, memory=self.memory, overwrite=overwrite)
