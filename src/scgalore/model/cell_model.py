"""A model as users hold it: a network with its vocabulary, its family and what its last training left."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

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
    from scgalore.train.loggers import Loggers
    from scgalore.train.result import TrainResult
    from scgalore.weights import LoadReport

__all__ = ["CellModel"]


class CellModel:
    """A network with its vocabulary, of any family; :func:`scgalore.model.load` makes one from a name or a folder.

    Method names are those of scvi-tools.

    Parameters
    ----------
    network
        The network.
    vocab
        Its genes and special tokens.
    family
        Row of :data:`scgalore.model.FAMILIES`; that of the class where it has one.
    provenance
        Where the weights come from.
    load_report
        What a checkpoint filled, left random, and held beyond the network.
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
                f"The vocabulary has {len(vocab):,} tokens but the network embeds {network.config.n_tokens:,}; "
                "vocab.json and the weights do not belong together."
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
        #: What the last training left: history, split, best epoch, steps, bytes, task memory; ``None`` before.
        self.result: TrainResult | None = None
        #: Licence of the weights, which that of weights trained from them follows; empty if it is not known.
        self.licence: str = ""

    @classmethod
    def own_family(cls) -> Family:
        """Row of :data:`scgalore.model.FAMILIES` that the class belongs to.

        Raises
        ------
        OptionError
            If it is a class of models of any family.
        """
        msg = f"{cls.__name__} is of any family. Pass family=, or use the class of one, such as sg.model.SCGPT."
        raise OptionError(msg)

    @classmethod
    def from_config(
        cls, config: NetworkConfig, vocab: GeneVocab, *, rng: Rng = 0, family: Family | None = None
    ) -> Self:
        """Make a model with random weights.

        Parameters
        ----------
        config
            Sizes and parts of the network, without cell heads.
        vocab
            Genes and special tokens; ``config.n_tokens`` must be their number.
        rng
            Seed of the weights.
        family
            That of the class when left out.
        """
        family = family or cls.own_family()
        if config.heads:
            msg = (
                f"{type(config).__name__}.heads={dict(config.heads)}: training puts heads in place, for example with labels_key=. Leave "
                "them out."
            )
            raise WeightsError(msg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(rng))
            return cls(family.network(config), vocab, family=family)

    @classmethod
    def load(cls, folder: PathLike) -> Self:
        """Read what :meth:`save` wrote.

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

    # What the last training left --------------------------------------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch of the last training; empty before."""
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
        """What the model keeps of its task, a :class:`scgalore.tasks.TaskMemory`; ``None`` without one."""
        return None if self.result is None else self.result.memory

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that the model predicts, in the order of the outputs; empty if it predicts none."""
        return getattr(self.memory, "classes", ())

    @property
    def can(self) -> frozenset[str]:
        """What networks of the family can do; see :class:`scgalore.model.Family`."""
        return self.family.can

    def require_memory(self) -> Any:
        """What the model keeps of its task; raise :class:`~scgalore.errors.OptionError` if it was trained for none."""
        if self.memory is None:
            msg = (
                f"{self.provenance['name']!r} was not trained to predict anything for cells. Fine-tune it first: "
                "model = sg.tl.finetune(adata, labels_key=...)."
            )
            raise OptionError(msg)
        return self.memory

    def keys(self, uns: str, key_added: str | None = None) -> CellKeys:
        """Names of the slots that results of this model are written to.

        Parameters
        ----------
        uns
            Name in ``uns`` if ``key_added`` is ``None``: that of the function.
        key_added
            As for the functions of :mod:`scgalore.tl`.
        """
        return CellKeys.from_key_added(key_added, uns=uns, embedding=self.family.embedding, stem=self.family.stem)

    # Cells ------------------------------------------------------------------------------------------------------------

    def tokenizer_config(self, *, max_length: int | None = None, rng: Rng = 0) -> TokenizerConfig:
        """How cells become tokens of this network, for a :func:`scgalore.data.stream`.

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
        """Check an AnnData, match its genes and make it ready for the network.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised.
        layer
            Layer to read; ``X`` when left out.
        gene_symbols
            Column of ``adata.var`` with gene names; ``var_names`` when left out.
        data_type, species, min_matched
            As for :func:`scgalore.tl.embed`.
        max_length
            Most tokens of a cell; what the weights were trained with when left out.
        rng
            Seed of the sampling of longer cells.
        """
        reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
        tokens = self.tokenizer_config(max_length=max_length, rng=rng)
        cells = TokenCells.from_adata(adata, self.vocab, config=tokens, reading=reading)
        logg.info(f"    {cells.match.summary()}")
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
        """Cell embeddings with unit norm, float32 ``(n_obs, d_model)``; of a model of batches, components without the batch.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Or many files, as a :func:`scgalore.data.stream` with
            ``shuffle=False`` and ``config=model.tokenizer_config()``; the other parameters are then the stream's own.
        layer, gene_symbols, data_type, species, min_matched, max_length, rng
            As for :meth:`cells`.
        batch_key
            As for :func:`scgalore.tl.embed`.
        batch_size
            Cells in a batch; it changes speed and memory, not the numbers.
        """
        if not isinstance(adata, AnnData):
            if self.knows_batches:
                msg = f"{self.provenance['name']} takes batches out, and a stream does not tell them. Pass an AnnData."
                raise OptionError(msg)
            return self.run(adata, batch_size=batch_size).embedding
        reading = Reading(layer, gene_symbols, data_type, None, species, min_matched)
        cells = self.cells(adata, **reading.of_tokens(), max_length=max_length, rng=rng)
        return self.embed(cells, adata, reading, batch_key=batch_key, batch_size=batch_size).embedding

    @property
    def embedding_identity(self) -> str:
        """Hash of what its embeddings depend on, 16 hexadecimal digits: the same in memory and in any file.

        Heads and decoders do not matter, and neither do batches that were added to a model of task ``"integration"``, which leave the
        embeddings of the others as they are.
        """
        added = () if self.memory is None else task_named(self.memory.task).arrays_of_embedding(self.memory)
        return embedding_identity(self.network, self.vocab, added)

    @property
    def knows_batches(self) -> bool:
        """Whether its embeddings are without the batch, which it is therefore told of each cell."""
        return self.memory is not None and task_named(self.memory.task).gives_batches

    def embed(
        self, cells: TokenCells, adata: AnnData, reading: Reading, *, batch_key: str | None = None, **how: Any
    ) -> CellOutput:
        """Embed cells as the model's task does; :meth:`run` gives what the network says.

        Parameters
        ----------
        cells
            From :meth:`cells`.
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
        """What the model was trained to predict, one row per cell: a probability for each class, or a number.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Its genes need not be those of the training data.
        layer, gene_symbols, data_type, species, min_matched, max_length, rng
            As for :meth:`cells`.
        batch_size
            Maximum number of cells per batch.

        Raises
        ------
        OptionError
            If the model was not trained to predict anything for cells.
        """
        memory = self.require_memory()
        if not hasattr(memory, "table"):
            msg = f"A model that was trained for task={memory.task!r} predicts nothing for single cells. Use sg.tl.embed(adata, model)."
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
        """Embed cells and read the cell heads, in one pass.

        Several processes that were started together (torchrun, SLURM) each run a share of the cells, and all get the whole
        result.

        Parameters
        ----------
        cells
            From :meth:`cells`, or a stream of many files that does not shuffle.
        rows
            Row numbers of the cells to run; all when left out.
        precision
            ``"32-true"``, ``"bf16-true"`` or ``"auto"``.
        batch_size, batch_tokens
            Most cells and most tokens in a batch; they change speed and memory, not the numbers.
        accelerator
            Where to compute, in Lightning's words.

            All of these are from ``sg.settings`` when left out.
        devices
            Number of processes on this machine, to be sure of it; ``None`` takes as many as there are.
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
            ``config=model.tokenizer_config()``; all of its cells are trained on, in its own batches.
        task
            Entry of :data:`scgalore.tasks.TASKS`; by default the task whose key argument is given (``labels_key=`` for
            classes), else masked expression. A stream has its own labels.
        layer, gene_symbols, data_type, depth_key, species, min_matched
            As for :func:`scgalore.tl.finetune`; of ``validation`` with a stream.
        validation
            For a stream: cells that choose the best epoch, or another stream. Otherwise they are part of ``adata``.
        split
            Training, validation and test cells; by default ``split_key``, a column of ``adata.obs``, or a random split.
        split_key, validation_size, test_size, genes_key
            As for :func:`scgalore.tl.finetune`.
        rng
            Seed of everything random.
        checkpoint_dir
            Folder for a checkpoint after each epoch, and with ``checkpoint_every`` inside epochs too.
        resume
            Whether to continue from the checkpoint there, if any; with a larger ``max_epochs``, as for
            :func:`scgalore.tl.finetune`.
        logger
            As for :func:`scgalore.tl.finetune`.
        **options
            Arguments of the task, and fields of :class:`~scgalore.train.TrainConfig`.

        Raises
        ------
        DataError, MissingKeyError, OptionError
            If data or options cannot be used; nothing has changed then.
        """
        implied = {} if isinstance(adata, AnnData) else adata.arguments
        chosen, call = resolve_call(
            {**implied, **options},
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
        """Train on what a task has prepared; :meth:`train` in steps.

        The model changes when training has ended, and only then.

        Parameters
        ----------
        prepared
            From :meth:`scgalore.tasks.Task.prepare`.
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
                identity |= memory_config(prepared.memory)  # names of classes, which codes do not tell
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
        # An adapter alone does not hold what a task changes in the network beyond heads.
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
        # No file holds these weights yet, and those they started from did not make what comes next.
        base = self.provenance["base"] if self.provenance["layout"] == "memory" else self.provenance["name"]
        return {"name": f"fine-tuned {base}", "sha256": "", "layout": "memory", "base": base}

    def _write_as_trained(self, prepared: Prepared, ready: Trainable, folder: Path, result: TrainResult) -> None:
        """Write the model as training has made it so far."""
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
        """Give the network exactly these cell heads, with fresh weights.

        Parameters
        ----------
        sizes
            Outputs of each head by name.
        seed
            Seed of their weights.
        """
        self._put_heads(self.network, sizes, keep=False, at_zero=False, seed=seed)

    @staticmethod
    def _put_heads(network: CellNetwork, sizes: Mapping[str, int], *, keep: bool, at_zero: bool, seed: int) -> None:
        """Give a network exactly these heads: its own of these names and sizes if they are to be kept, else fresh ones."""
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
        """Write ``config.json, vocab.json, model.safetensors``, ``history.csv`` and a model card, ``README.md``, all or nothing.

        A model that :func:`scgalore.tl.finetune` trained also has ``finetune.json``, with the settings and scores that the card shows.
        Tasks have further files, such as the prior and ``training_stats.json`` of a model of perturbations.

        Parameters
        ----------
        folder
            Made by this call.
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
        """Publish the model on the Hugging Face Hub: the files of :meth:`save`, a model card and ``SHA256SUMS``, in one commit.

        Needs the extra ``hub`` and a token that may write: log in once (``hf auth login``), set ``HF_TOKEN``, or pass it here. The
        token is neither stored nor logged.

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
        """Write what the adapter of the last training learned: ``adapter.json, adapter.safetensors``, all or nothing.

        :func:`scgalore.model.load` reads it, and the weights it belongs to from where they were.

        Parameters
        ----------
        folder
            Made by this call.
        overwrite
            Whether an adapter in the folder may be replaced.

        Raises
        ------
        OptionError
            If there was no adapter, other weights were trained too, or no file holds those it belongs to.
        """
        adapter = None if self.result is None else self.result.adapter
        weights, base = (None, self.provenance) if adapter is None else adapter
        heads = self.network.config.heads
        write_adapter(folder, weights, base=base, heads=heads, memory=self.memory, overwrite=overwrite)
