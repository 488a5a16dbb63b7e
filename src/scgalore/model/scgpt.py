"""scGPT as users hold it: weights, vocabulary and classes, with scvi-tools' names for what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scgalore import _logging as logg
from scgalore._rng import seed_from
from scgalore.data.cells import TokenCells, gene_ranks
from scgalore.data.labels import encode_labels
from scgalore.data.split import random_split
from scgalore.data.tokens import TokenizerConfig
from scgalore.errors import OptionError, WeightsError
from scgalore.model.adapter_files import is_adapter_folder, read_adapter, write_adapter
from scgalore.model.distributed import gather, process_group, share
from scgalore.model.files import read_model, write_model
from scgalore.model.identity import run_identity
from scgalore.model.inference import CellOutput, RunOptions, pick_device, run_network
from scgalore.model.streams import check_stream_options, validation_labels
from scgalore.model.training import apply_adapter, trainable
from scgalore.nn import SCGPTConfig, SCGPTNetwork
from scgalore.objectives import Classification, MaskedExpression
from scgalore.train.config import TrainConfig
from scgalore.weights import export_scgpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scgalore._typing import PathLike, Rng
    from scgalore.data.source import CellSource, TokenSource
    from scgalore.data.split import Split
    from scgalore.data.streaming import TokenStream
    from scgalore.data.vocab import GeneVocab
    from scgalore.model.files import Provenance
    from scgalore.model.screens import ScreenMemory
    from scgalore.model.training import AdapterWeights
    from scgalore.objectives import Objective
    from scgalore.weights import LoadReport

__all__ = ["SCGPT"]


class SCGPT:
    """A scGPT model.

    Made by :meth:`from_pretrained` (released or fine-tuned weights) or :meth:`from_config` (random weights).

    Parameters
    ----------
    network
        The network.
    vocab
        Its genes and special tokens.
    classes
        Names of the classes its classification head predicts, in the order of the logits.
    provenance
        Where the weights come from.
    load_report
        What a checkpoint filled, left random, and held beyond the network.

    Examples
    --------
    >>> import scanpy as sc, scgalore as sg
    >>> adata = sc.datasets.pbmc68k_reduced().raw.to_adata()
    >>> model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    >>> model.get_latent_representation(adata).shape[0]
    700
    """

    def __init__(
        self,
        network: SCGPTNetwork,
        vocab: GeneVocab,
        *,
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
            msg = f"<pad> is token {vocab.pad_id} of the vocabulary, but SCGPTConfig.pad_id is {network.config.pad_id}."
            raise WeightsError(msg)
        if network.config.n_classes != len(classes):
            msg = (
                f"The classification head has {network.config.n_classes} classes and {len(classes)} names. Leave "
                "SCGPTConfig.n_classes at 0 and train with labels_key=, which sets both."
            )
            raise WeightsError(msg)
        self.network = network.eval()
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
    def from_pretrained(cls, model: PathLike = "scgpt", *, base: PathLike | None = None) -> Self:
        """Load weights.

        Parameters
        ----------
        model
            Name in the registry (:func:`scgalore.weights.list_weights`), or folder: one that :meth:`save` or
            :meth:`save_adapter` wrote, one in upstream's layout (``args.json, vocab.json, best_model.pt``), or a
            safetensors copy of it.
        base
            Where the weights are that an adapter belongs to, when that is no longer where its folder says.

        Returns
        -------
        The model in evaluation mode, on the CPU; ``load_report`` accounts for every tensor.

        Raises
        ------
        OptionError
            If ``model`` is neither a name nor a folder.
        WeightsError
            If the folder is incomplete or damaged, an encoder tensor would stay random, or ``base`` holds other weights
            than the adapter was trained on.
        DownloadError
            If the weights must be fetched and cannot be.
        """
        if is_adapter_folder(model):
            return cls._from_adapter(model, base)
        if base is not None:
            msg = f"base={str(base)!r} belongs to an adapter, and {str(model)!r} is none. Leave base out."
            raise OptionError(msg)
        stored = read_model(model)
        loaded = cls(
            stored.network,
            stored.vocab,
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
        if stored.classes != loaded.classes:
            loaded._set_classes(len(stored.classes), seed=0)
        apply_adapter(loaded.network, stored.weights)
        loaded.classes, loaded.adapter, loaded.is_trained = stored.classes, (stored.weights, stored.base), True
        loaded.provenance = {**loaded.provenance, "name": str(folder), "sha256": "", "layout": "adapter"}
        loaded.provenance["base"] = stored.base["name"]
        return loaded

    @classmethod
    def from_config(cls, config: SCGPTConfig, vocab: GeneVocab, *, rng: Rng = 0) -> Self:
        """Make a model with random weights.

        Parameters
        ----------
        config
            Sizes and parts of the network.
        vocab
            Genes and special tokens; ``config.n_tokens`` must be their number.
        rng
            Seed of the weights.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_from(rng))
            return cls(SCGPTNetwork(config), vocab)

    def __repr__(self) -> str:
        config = self.network.config
        n_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"SCGPT {self.provenance['name']}: {config.n_layers} layers x {config.d_model}, "
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
        config = self.network.config
        return TokenizerConfig(
            n_bins=config.n_bins,
            max_length=config.max_length if max_length is None else max_length,
            cls_value=config.pad_value,
            pad_value=config.pad_value,
            seed=seed_from(rng),
        )

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
        validation: AnnData | TokenStream | None = None,
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
            For a stream: cells that choose the best epoch, in an AnnData or another stream. Otherwise they are part of ``adata``.
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
        if not isinstance(adata, AnnData):
            check_stream_options(adata, split=split, labels_key=labels_key, validation=validation)
            held: CellSource | None = None
            if isinstance(validation, AnnData):
                held = self.cells(validation, layer=layer, gene_symbols=gene_symbols, rng=seed)
                held = held.with_targets(**validation_labels(validation, adata, labels_key))
            elif validation is not None:
                held = validation
            self.fit(adata, None, config, classes=adata.classes, validation=held, **resuming)
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
            cells = cells.with_targets(labels=codes)
        self.fit(cells, split, config, classes=classes, **resuming)

    def fit(
        self,
        cells: CellSource,
        split: Split | None,
        config: TrainConfig,
        *,
        classes: tuple[str, ...] = (),
        validation: CellSource | None = None,
        objective: Objective | None = None,
        checkpoint_dir: PathLike | None = None,
        resume: bool = False,
    ) -> None:
        """Train on cells that are already made ready; :meth:`train` in steps.

        Parameters
        ----------
        cells
            From :meth:`cells`, with ``labels`` among its targets if classes are to be learnt and ranks if there is a
            curriculum; or a stream; or perturbed cells.
        split
            Parts of the cells; ``None`` for a stream.
        config
            How to train.
        classes
            Names of the classes to learn, in the order of the codes.
        validation
            Cells that choose the best epoch, where they are not of the split.
        objective
            What to train for when it is neither ``classes`` nor, without these, masked expression.
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
            objective = Classification() if classes else masked
        network, classes = self.network, classes or self.classes
        head, sizes = network.cls_decoder, network.config
        try:
            if classes != self.classes:
                self._set_classes(len(classes), seed=config.seed)
            config = settle_memory(
                network, cells, split, objective, config, checkpoint_dir=checkpoint_dir, resume=resume
            )
            identity = None
            if checkpoint_dir is not None:
                identity = run_identity(cells, split, objective, config, network, validation=validation)
                identity["classes"] = ", ".join(classes)  # sources know their codes only
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
            network.cls_decoder, network.config = head, sizes
            raise
        finally:
            network.eval().cpu()
        self.classes, self.history, self.split, self.is_trained = classes, result.history, result.split, True
        self.adapter = None if learnt is None else (learnt, self.provenance)
        self.screen = None  # what was known of an earlier screen no longer belongs to these weights
        # No file holds these weights yet, and those they started from did not make what comes next.
        base = self.provenance["base"] if self.provenance["layout"] == "memory" else self.provenance["name"]
        self.provenance = {"name": f"fine-tuned {base}", "sha256": "", "layout": "memory", "base": base}
        self.training = {
            "best_epoch": result.best_epoch,
            "optimizer_bytes": result.optimizer_bytes,
            "steps": result.steps,
            "batch_size": result.batch_size,
            "accumulate": result.accumulate,
        }

    def _set_classes(self, n_classes: int, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network.set_classes(n_classes)

    def run(
        self,
        cells: TokenSource,
        *,
        precision: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        accelerator: str | None = None,
        devices: int | str | None = None,
    ) -> CellOutput:
        """Embed cells and, with a classification head, classify them, in one pass.

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
                rows = np.arange(cells.n_obs)[share(cells.n_obs, world)]
            if device.type == "cuda" and world.size > 1:
                device = torch.device("cuda", world.local_rank)
            output = run_network(
                self.network,
                cells,
                rows=rows,
                batch_size=options.batch_size,
                batch_tokens=options.batch_tokens,
                device=device,
                dtype=options.dtype,
                label="cells",
            )
            probabilities = None if output.probabilities is None else gather(output.probabilities, world)
            return CellOutput(gather(output.embedding, world), probabilities, output.precision)

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
        if not isinstance(adata, AnnData):
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
        probabilities = self.run(cells, batch_size=batch_size).probabilities
        return pd.DataFrame(probabilities, index=adata.obs_names, columns=list(self.classes))

    def require_perturbation(self) -> None:
        """Raise :class:`~scgalore.errors.OptionError` unless the network reads perturbation flags."""
        if not self.network.config.perturbation:
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
        write_adapter(folder, weights, base=base, classes=self.classes, overwrite=overwrite)

    @classmethod
    def load(cls, folder: PathLike) -> Self:
        """Read what :meth:`save` wrote; the same as :meth:`from_pretrained`.

        Parameters
        ----------
        folder
            Folder of the checkpoint.
        """
        return cls.from_pretrained(folder)

    def export_scgpt(self, folder: PathLike, *, overwrite: bool = False) -> None:
        """Write ``args.json, vocab.json, best_model.pt`` for the original program.

        Parameters
        ----------
        folder
            Made by this call.
        overwrite
            Whether a checkpoint that is there may be replaced.
        """
        export_scgpt(
            folder,
            args=self.network.config.to_args(),
            vocab=self.vocab.to_dict(),
            tensors=self.network.state_dict(),
            overwrite=overwrite,
        )
