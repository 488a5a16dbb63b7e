"""A model as users hold it: network, vocabulary and what it was trained for, with scvi-tools' names for what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch

from scgalore import _logging as logg
from scgalore._rng import seed_from
from scgalore.data.cells import TokenCells, gene_ranks
from scgalore.data.labels import encode_labels
from scgalore.data.split import random_split
from scgalore.data.streaming import TokenStream
from scgalore.errors import OptionError, WeightsError
from scgalore.model.adapter_files import is_adapter_folder, read_adapter, write_adapter
from scgalore.model.distributed import gather, process_group, share
from scgalore.model.families import family_of_network
from scgalore.model.files import read_model, write_model
from scgalore.model.identity import run_identity
from scgalore.model.inference import RunOptions, class_probabilities, pick_device, run_network
from scgalore.model.streams import check_stream_options, with_labels_of
from scgalore.model.training import apply_adapter, trainable
from scgalore.nn import CellOutput
from scgalore.objectives import Classification, MaskedExpression
from scgalore.train.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._typing import PathLike, Rng
    from scgalore.data.perturbations import PerturbationCells
    from scgalore.data.split import Split
    from scgalore.data.tokens import TokenizerConfig
    from scgalore.data.vocab import GeneVocab
    from scgalore.model.distributed import World
    from scgalore.model.family import Family
    from scgalore.model.files import Provenance
    from scgalore.model.screens import ScreenMemory
    from scgalore.model.training import AdapterWeights
    from scgalore.nn import CellNetwork
    from scgalore.objectives import Objective
    from scgalore.weights import LoadReport

__all__ = ["CellModel", "load"]


class CellModel:
    """A single-cell foundation model of any family.

    Made by :func:`scgalore.model.load`, or from a network with random weights.

    Parameters
    ----------
    network
        The network.
    vocab
        Its genes and special tokens.
    family
        Row of :data:`scgalore.model.FAMILIES`; that of the network's class when left out.
    classes
        Names of the classes its classification head predicts, in the order of the logits.
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
        classes: tuple[str, ...] = (),
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
            msg = f"<pad> is token {vocab.pad_id} of the vocabulary, but pad_id of the network is {network.config.pad_id}."
            raise WeightsError(msg)
        n_classes = network.config.heads.get("classes", 0)
        if n_classes != len(classes):
            msg = (
                f"The classification head has {n_classes} classes and {len(classes)} names. Leave it out of "
                "the configuration's heads and train with labels_key=, which sets both."
            )
            raise WeightsError(msg)
        self.family = family or family_of_network(network)
        self.network: Any = network.eval()
        self.vocab = vocab
        self.classes = classes
        self.provenance: Provenance = provenance or {
            "name": "random",
            "sha256": "",
            "layout": "none",
            "base": "",
        }
        self.load_report = load_report
        #: One row an epoch of the last training; empty before.
        self.history = pd.DataFrame()
        self.is_trained = False
        #: Parts of the last training's cells.
        self.split: Split | None = None
        #: Best epoch, bytes of optimizer state, steps, and cells in a batch of the last training.
        self.training: dict[str, Any] = {}
        #: What the adapter of the last training learnt and the weights it belongs to, if it can be saved alone.
        self.adapter: tuple[AdapterWeights, Provenance] | None = None
        #: What is known of the perturbation screen of the last training, if it was one.
        self.screen: ScreenMemory | None = None

    @classmethod
    def from_pretrained(cls, model: PathLike, *, base: PathLike | None = None) -> Self:
        """Load weights of any family; see :func:`scgalore.model.load`.

        Raises
        ------
        WeightsError
            As :func:`scgalore.model.load`, and if the weights belong to another family than this class.
        """
        if is_adapter_folder(model):
            return cls._from_adapter(model, base)
        if base is not None:
            msg = f"base={str(base)!r} belongs to an adapter, and {str(model)!r} is none. Leave base out."
            raise OptionError(msg)
        stored = read_model(model)
        if not issubclass(stored.family.model, cls):
            msg = f"{model} holds a {stored.family.title} model, not {cls.__name__}. Read it with sg.model.load."
            raise WeightsError(msg)
        loaded: Self = stored.family.model(
            stored.network,
            stored.vocab,
            family=stored.family,
            classes=stored.classes,
            provenance=stored.provenance,
            load_report=stored.report,
        )
        loaded.history = stored.history
        loaded.is_trained, loaded.screen = not stored.history.empty, stored.screen
        return loaded

    @classmethod
    def _from_adapter(cls, folder: PathLike, base: PathLike | None) -> Self:
        stored = read_adapter(folder)
        loaded = cls.from_pretrained(stored.base["name"] if base is None else base)
        if loaded.provenance["sha256"] != stored.base["sha256"]:
            msg = (
                f"The adapter in {folder} was trained on {stored.base['name']} (sha256 {stored.base['sha256'][:12]}), and "
                f"{loaded.provenance['name']} holds other weights ({loaded.provenance['sha256'][:12]}). Name the right ones "
                "with base=."
            )
            raise WeightsError(msg)
        loaded._put_heads(stored.heads, keep=stored.classes == loaded.classes, seed=0)
        apply_adapter(loaded.network, stored.weights)
        loaded.classes, loaded.adapter, loaded.is_trained = stored.classes, (stored.weights, stored.base), True
        loaded.provenance = {**loaded.provenance, "name": str(folder), "sha256": "", "layout": "adapter"}
        loaded.provenance["base"] = stored.base["name"]
        return loaded

    def __repr__(self) -> str:
        network = self.network
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        return (
            f"{self.family.title} {self.provenance['name']}: {len(network.blocks)} layers x {network.config.d_model}, "
            f"{len(self.vocab):,} tokens, {n_parameters / 1e6:.1f} M parameters, "
            f"{len(self.classes)} classes"
        )

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
        max_length
            Most tokens of a cell; what the weights were trained with when left out.
        rng
            Seed of the sampling of longer cells.
        """
        tokens = self.tokenizer_config(max_length=max_length, rng=rng)
        cells = TokenCells.from_adata(adata, self.vocab, config=tokens, layer=layer, gene_symbols=gene_symbols)
        logg.info(f"    {cells.match.summary()}")
        return cells

    def train(
        self,
        adata: AnnData | TokenStream,
        *,
        labels_key: str | None = None,
        objective: Objective | None = None,
        layer: str | None = None,
        gene_symbols: str | None = None,
        validation: AnnData | None = None,
        split: Split | None = None,
        validation_size: float = 0.1,
        test_size: float = 0.0,
        genes_key: str = "selected",
        rng: Rng = 0,
        checkpoint_dir: PathLike | None = None,
        resume: bool = False,
        **options: Any,
    ) -> None:
        """Train all parameters, or an adapter.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Or many files, as a :func:`scgalore.data.stream` with
            ``config=model.tokenizer_config()``; all of its cells are trained on, in its own batches.
        labels_key
            Column of ``adata.obs`` with classes to learn. Without it the model learns masked expression. A stream has its own.
        objective
            What to train for; chosen by ``labels_key`` when left out.
        layer, gene_symbols
            As for :meth:`cells`; of ``validation`` with a stream.
        validation
            For a stream: cells that choose the best epoch. Otherwise they are part of ``adata``.
        split
            Parts of the cells; drawn with ``validation_size`` and ``test_size`` when left out, within the classes.
        validation_size, test_size
            Shares of the cells that choose the best epoch and that are held out.
        genes_key
            For a ``curriculum=``: what :func:`scgalore.tl.select_genes` has ranked the genes under.
        rng
            Seed of everything random.
        checkpoint_dir
            Folder that gets a checkpoint after each epoch.
        resume
            Whether to continue from the checkpoint there, if any.
        **options
            Fields of :class:`~scgalore.train.TrainConfig`.

        Raises
        ------
        DataError, MissingKeyError, OptionError
            If data or options cannot be used; nothing has changed then.
        """
        seed = seed_from(rng)
        config = TrainConfig.from_call(options, seed=seed, function=self.train)
        resuming: dict[str, Any] = {"objective": objective, "checkpoint_dir": checkpoint_dir, "resume": resume}
        if isinstance(adata, TokenStream):
            check_stream_options(adata, options, split=split, labels_key=labels_key, validation=validation)
            held = None
            if validation is not None:
                held = self.cells(validation, layer=layer, gene_symbols=gene_symbols, rng=seed)
                held = with_labels_of(held, validation, adata, labels_key)
            self.fit(adata, None, config, validation=held, **resuming)
            return
        if validation is not None:
            msg = "validation= goes with a stream. Cells to validate on are a part of adata: see validation_size and split."
            raise OptionError(msg)
        codes, classes = (None, ()) if labels_key is None else encode_labels(adata, labels_key)
        ranks = None if config.curriculum is None else gene_ranks(adata, genes_key)
        cells = self.cells(adata, layer=layer, gene_symbols=gene_symbols, rng=seed)
        if ranks is not None:
            cells = cells.with_ranks(ranks)
        if split is None:
            split = random_split(
                cells.n_obs, validation_size=validation_size, test_size=test_size, strata=codes, seed=seed
            )
        if codes is not None:
            cells = cells.with_labels(codes, classes)
        self.fit(cells, split, config, **resuming)

    def fit(
        self,
        cells: TokenCells | TokenStream | PerturbationCells,
        split: Split | None,
        config: TrainConfig,
        *,
        validation: TokenCells | None = None,
        objective: Objective | None = None,
        checkpoint_dir: PathLike | None = None,
        resume: bool = False,
    ) -> None:
        """Train on cells that are already made ready; :meth:`train` in steps.

        Parameters
        ----------
        cells
            From :meth:`cells`, with labels if classes are to be learnt and ranks if there is a curriculum; or a stream; or
            perturbed cells.
        split
            Parts of the cells; ``None`` for a stream.
        config
            How to train.
        validation
            Cells to validate a stream on.
        objective
            What to train for: classes if the cells have labels, masked expression otherwise, when left out.
        checkpoint_dir, resume
            As for :meth:`train`.
        """
        from scgalore.train.memory import settle_memory
        from scgalore.train.processes import training_processes
        from scgalore.train.runner import fit

        pick_device(config.accelerator)
        training_processes(config)
        if split is not None:
            split.check(cells.n_obs)
        if objective is None:
            masked = MaskedExpression(mask_value=self.network.config.mask_value)
            objective = Classification(len(cells.classes)) if cells.classes else masked
        config = settle_memory(
            self.network, cells, split, objective, config, checkpoint_dir=checkpoint_dir, resume=resume
        )
        network, classes = self.network, cells.classes if objective.heads else self.classes
        identity = None
        if checkpoint_dir is not None:
            identity = run_identity(cells, split, objective, config, network, validation=validation)
        heads = network.cell_heads
        try:
            if objective.heads:
                self._put_heads(objective.heads, keep=classes == self.classes, seed=config.seed)
            tokens = cells.tokens() if validation is None else np.union1d(cells.tokens(), validation.tokens())
            with trainable(network, config, tokens) as ready:
                result = fit(
                    network,
                    cells,
                    split,
                    objective,
                    config,
                    validation=validation,
                    adapter=ready.adapter,
                    checkpoint_dir=checkpoint_dir,
                    resume=resume,
                    identity=identity,
                )
                learnt = ready.adapter_weights()
        except BaseException:
            network.put_heads(heads)
            raise
        finally:
            network.eval().cpu()
        self.classes, self.history, self.split, self.is_trained = classes, result.history, split, True
        self.adapter = None if learnt is None else (learnt, self.provenance)
        self.screen = None  # what was known of an earlier screen no longer belongs to these weights
        # No file holds these weights yet, and those they started from did not make what comes next.
        base = self.provenance["base"] if self.provenance["layout"] == "memory" else self.provenance["name"]
        self.provenance = {"name": f"fine-tuned {base}", "sha256": "", "layout": "memory", "base": base}
        self.training = {
            "best_epoch": result.best_epoch,
            "optimizer_bytes": result.optimizer_bytes,
            "steps": result.steps,
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
        }

    def _put_heads(self, sizes: Mapping[str, int], *, keep: bool, seed: int) -> None:
        """Give the network exactly these heads: its own of these names and sizes if they are to be kept, fresh ones otherwise."""
        network = self.network
        own = {
            name: head
            for name, head in network.cell_heads.items()
            if keep and network.config.heads[name] == sizes.get(name)
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.put_heads({name: own[name] if name in own else network.make_head(n) for name, n in sizes.items()})

    def run(
        self,
        cells: TokenCells | TokenStream,
        *,
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
            rows = None
            if world.size > 1:
                rows = _rows_of_process(cells, world)
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
            return CellOutput(gather(output.embedding, world), heads, output.precision)

    def get_latent_representation(
        self,
        adata: AnnData | TokenStream,
        *,
        layer: str | None = None,
        gene_symbols: str | None = None,
        max_length: int | None = None,
        rng: Rng = 0,
        batch_size: int | None = None,
    ) -> NDArray[np.float32]:
        """Cell embeddings with unit norm, float32 ``(n_obs, d_model)``.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Or many files, as a :func:`scgalore.data.stream` with
            ``shuffle=False`` and ``config=model.tokenizer_config()``; the other parameters are then the stream's own.
        layer, gene_symbols, max_length, rng
            As for :meth:`cells`.
        batch_size
            Cells in a batch; it changes speed and memory, not the numbers.
        """
        if isinstance(adata, TokenStream):
            return self.run(adata, batch_size=batch_size).embedding
        cells = self.cells(adata, layer=layer, gene_symbols=gene_symbols, max_length=max_length, rng=rng)
        return self.run(cells, batch_size=batch_size).embedding

    def predict(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        gene_symbols: str | None = None,
        max_length: int | None = None,
        rng: Rng = 0,
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """Class probabilities, one row a cell and one column a class.

        Parameters
        ----------
        adata
            Cells by genes; counts or log-normalised. Its genes need not be those of the training data.
        layer, gene_symbols, max_length, rng
            As for :meth:`cells`.
        batch_size
            Cells in a batch.

        Raises
        ------
        OptionError
            If the model was never trained on labels.
        """
        self.require_classes()
        cells = self.cells(adata, layer=layer, gene_symbols=gene_symbols, max_length=max_length, rng=rng)
        probabilities = class_probabilities(self.run(cells, batch_size=batch_size))
        return pd.DataFrame(probabilities, index=adata.obs_names, columns=list(self.classes))

    def require_perturbation(self) -> None:
        """Raise :class:`~scgalore.errors.OptionError` unless the network reads perturbation flags."""
        if not self.network.reads_flags:
            msg = (
                f"{self.provenance['name']} was not trained on perturbations. Call sg.tl.finetune(adata, "
                "task='perturbation', pert_key=..., control=...) first."
            )
            raise OptionError(msg)

    def require_classes(self) -> None:
        """Raise :class:`~scgalore.errors.OptionError` if the model cannot name classes."""
        if not self.classes:
            msg = (
                f"{self.provenance['name']!r} has not learnt any classes. Fine-tune it on labelled cells first: "
                "model = sg.tl.finetune(adata, labels_key=...)."
            )
            raise OptionError(msg)

    def save(self, folder: PathLike, *, evaluation: Mapping[str, Any] | None = None, overwrite: bool = False) -> None:
        """Write ``config.json, vocab.json, model.safetensors`` and ``history.csv``, all or nothing.

        A model of perturbations has, beside these, what it knows of its screen, ``training_stats.json`` and a model card,
        ``README.md``.

        Parameters
        ----------
        folder
            Made by this call.
        evaluation
            Test scores for the card: ``adata.uns["evaluate_perturbation"]``.
        overwrite
            Whether a checkpoint that is there may be replaced.
        """
        write_model(
            folder,
            family=self.family,
            network=self.network,
            vocab=self.vocab,
            classes=self.classes,
            provenance=self.provenance,
            history=self.history,
            screen=self.screen,
            evaluation=evaluation,
            overwrite=overwrite,
        )

    def save_adapter(self, folder: PathLike, *, overwrite: bool = False) -> None:
        """Write what the adapter of the last training learnt: ``adapter.json, adapter.safetensors``, all or nothing.

        :meth:`from_pretrained` reads it, and the weights it belongs to from where they were.

        Parameters
        ----------
        folder
            Made by this call.
        overwrite
            Whether an adapter that is there may be replaced.

        Raises
        ------
        OptionError
            If there was no adapter, other weights were trained beside it, or no file holds those it belongs to.
        """
        if self.screen is not None:
            msg = "A model of perturbations has more than its base and an adapter: flags, a decoder and its prior. Use save()."
            raise OptionError(msg)
        weights, base = (None, self.provenance) if self.adapter is None else self.adapter
        write_adapter(
            folder, weights, base=base, heads=self.network.config.heads, classes=self.classes, overwrite=overwrite
        )

    @classmethod
    def load(cls, folder: PathLike) -> Self:
        """Read what :meth:`save` wrote; the same as :meth:`from_pretrained`.

        Parameters
        ----------
        folder
            Folder of the checkpoint.
        """
        return cls.from_pretrained(folder)


def _rows_of_process(cells: TokenCells | TokenStream, world: World) -> NDArray[np.int64]:
    if isinstance(cells, TokenStream):
        msg = f"A stream is embedded by one process, and there are {world.size}. Give each process files of its own."
        raise OptionError(msg)
    return np.arange(cells.n_obs)[share(cells.n_obs, world)]


def load(model: PathLike, *, base: PathLike | None = None) -> CellModel:
    """Load a model of any family.

    Parameters
    ----------
    model
        Name in the registry (:func:`scgalore.weights.list_weights`), or folder: one that :meth:`CellModel.save` or
        :meth:`CellModel.save_adapter` wrote, or one that a family of :data:`scgalore.model.FAMILIES` recognises.
    base
        Where the weights are that an adapter belongs to, when that is no longer where its folder says.

    Returns
    -------
    The model in evaluation mode, on the CPU, of the class of its family; ``load_report`` accounts for every tensor.

    Raises
    ------
    OptionError
        If ``model`` is neither a name nor a folder.
    WeightsError
        If the folder is incomplete or damaged, belongs to no known family, a required tensor would stay random, or ``base``
        holds other weights than the adapter was trained on.
    DownloadError
        If the weights must be fetched and cannot be.

    Examples
    --------
    >>> import scgalore as sg
    >>> type(sg.model.load("scgpt-mini")).__name__
    'SCGPT'
    """
    return CellModel.from_pretrained(model, base=base)
