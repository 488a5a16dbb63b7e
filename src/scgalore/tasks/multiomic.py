"""Model RNA and proteins of the same cells together, and predict proteins of cells with RNA only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from scgalore import _logging as logg
from scgalore._options import TEXT, Option, number
from scgalore.data.proteins import PROTEIN_KEY, PROTEIN_KIND, read_proteins
from scgalore.data.results import Results
from scgalore.data.split import PARTS
from scgalore.data.tokens import MODALITIES
from scgalore.errors import DataError, OptionError
from scgalore.objectives import MaskedExpression
from scgalore.objectives import Multiomic as Objective
from scgalore.objectives.multiomic import HEAD
from scgalore.tasks.base import Prepared
from scgalore.tasks.cells import CellTargets, CellTask
from scgalore.tasks.expression import RATIO
from scgalore.tasks.figures import on_axes, umap
from scgalore.tasks.findings import Findings, held_out, markdown_table, with_error
from scgalore.tasks.linear_model import PRIOR_FILE, LinearModel, read_part
from scgalore.tasks.proteins import (
    PREFIX,
    MultiomicMemory,
    helped,
    score_proteins,
    start_layer,
    with_measured,
    with_proteins,
)
from scgalore.tasks.ridge import fit_ridge

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scgalore._keys import CellKeys
    from scgalore.data.cells import TokenCells
    from scgalore.data.proteins import Proteins
    from scgalore.data.reading import Reading
    from scgalore.nn.base import CellNetwork, CellOutput
    from scgalore.tasks.base import TaskMemory, TaskModel
    from scgalore.tasks.call import TrainingCall
    from scgalore.tasks.cells import CellReading
    from scgalore.tasks.ridge import RidgeFit

__all__ = ["Multiomic"]

WEIGHT = number("it must be a non-negative number", lambda value: 0 <= value < np.inf)


@dataclass(frozen=True)
class MultiomicTargets(CellTargets):
    """Targets of each cell, with the protein counts that tokens are made from.

    Attributes
    ----------
    measured
        The proteins.
    """

    measured: Proteins | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _State:
    """Objects of a run that are needed after training: gene report, ridge regressions, tokens of RNA only."""

    genes: dict[str, Any]
    fit: RidgeFit
    rna: TokenCells
    controls: tuple[str, ...]


class Multiomic(CellTask):
    """Masked expression of RNA and proteins, and prediction of proteins from RNA."""

    name = "multiomic"
    summary = "to embed RNA and proteins together, and to predict proteins from RNA"
    key = "protein"
    head = HEAD
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-3}  # as in scGPT's multi-omic tutorial
    needs = frozenset({"cell heads", "expression", "modalities"})
    arguments: ClassVar[tuple[Option, ...]] = (
        Option(
            "protein",
            PROTEIN_KIND,
            "Antibody counts: a key of obsm, or an AnnData with the same cells. For a MuData, pass the modality in ``mod=[...]``.",
            shown_default=PROTEIN_KEY,
            column="obsm",
        ),
        Option("protein_layer", TEXT, "Layer of the AnnData with the proteins; its X by default."),
        Option("mask_ratio", RATIO, "Fraction of the genes, and of the proteins, of a cell to mask.", 0.4),
        Option("masked_weight", WEIGHT, "Weight of the loss on masked RNA and proteins.", 1.0),
        Option("joint_weight", WEIGHT, "Weight of the loss on proteins predicted from the joint embedding.", 1.0),
        Option("protein_weight", WEIGHT, "Weight of the loss on proteins predicted from RNA alone.", 1.0),
    )
    next_steps = (
        "`sg.tl.predict_protein(other_cells, model)` predicts proteins of cells with RNA only; `sc.pp.neighbors(adata, "
        'use_rep="X_scGPT_multi")` uses the joint embedding.'
    )

    def check(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete the arguments; by default, proteins are in the key used by totalVI."""
        return super().check(
            {"protein": PROTEIN_KEY, **{name: value for name, value in arguments.items() if value is not None}}
        )

    # Training ---------------------------------------------------------------------------------------------------------

    def read(self, data: Any, call: TrainingCall) -> CellReading:
        """Proteins, and the split."""
        if call.config.curriculum is not None:
            msg = "curriculum= ranks genes and is not available for proteins. Omit it with task='multiomic'."
            raise OptionError(msg)
        return super().read(data, call)

    def targets(self, adata: AnnData, call: TrainingCall) -> MultiomicTargets:
        """Centred log-ratios, standardised with the training cells."""
        measured = read_proteins(adata, call.arguments["protein"], call.arguments["protein_layer"])
        split = call.split_of(adata)
        abundance = measured.abundance
        mean, std = abundance[split.train].mean(axis=0), abundance[split.train].std(axis=0)
        if not (std > 0).all():
            same = [name for name, spread in zip(measured.names, std, strict=True) if not spread > 0]
            msg = f"The abundance of {same} is constant over the training cells. Exclude these proteins."
            raise DataError(msg)
        values = ((abundance - mean) / std).astype(np.float32)
        tokens = tuple(PREFIX + name for name in measured.cleaned)
        scale = (tuple(mean.astype(float).tolist()), tuple(std.astype(float).tolist()))
        memory = MultiomicMemory(measured.names, tokens, measured.genes, *scale)
        return MultiomicTargets(split, {"proteins": values}, memory, measured)

    def objective(self, network: CellNetwork, memory: MultiomicMemory | None) -> Objective:
        """The objective with default weights."""
        masked = MaskedExpression(mask_value=network.config.mask_value)
        return Objective(1 if memory is None else len(memory.proteins), masked, network.config.n_bins)

    def objective_of(self, reading: CellReading, network: CellNetwork, call: TrainingCall) -> Objective:
        """The objective with the requested weights."""
        assert isinstance(reading.memory, MultiomicMemory)
        usual, asked = self.objective(network, reading.memory), call.arguments
        weights = {name: asked[name] for name in ("masked_weight", "joint_weight", "protein_weight")}
        if not any(weights.values()):
            msg = f"{', '.join(weights)} are all 0, so there is no loss. Set one of them to a positive number."
            raise OptionError(msg)
        masked = replace(usual.masked, mask_ratio=asked["mask_ratio"])
        return replace(usual, masked=masked, **weights)

    def prepare(self, reading: CellReading, model: TaskModel, call: TrainingCall) -> Prepared:
        """A network with tokens of proteins, the cells, and the ridge regressions that the head corrects."""
        targets, memory = reading.targets, reading.memory
        assert isinstance(targets, MultiomicTargets)
        assert isinstance(memory, MultiomicMemory)
        assert targets.measured is not None
        self.refuse_network(model)
        objective = self.objective_of(reading, model.network, call)
        n, most = len(memory.proteins), call.config.max_length
        if most is not None and most < n + 2:
            msg = f"max_length={most} leaves no tokens for genes, since all {n} proteins are always included. Pass {2 * n} or more."
            raise OptionError(msg)
        rna = model.cells(reading.data, **call.reading.of_tokens(), rng=call.seed)
        vocab, rows = with_proteins(model, memory, call.seed)
        network = model.network.multiomic_variant(rows, len(MODALITIES), seed=call.seed)
        values = targets.arrays["proteins"]
        fit = fit_ridge(reading.data, call.reading, values, targets.split, seed=call.seed)
        prior, layer = start_layer(model, rna, values, fit, targets.split.validation, call)
        cells = with_measured(rna, targets.measured, vocab).with_targets(proteins=values, prior=prior)
        memory = replace(memory, prior=fit.model, corrects=(False,) * len(memory.proteins))
        state = _State(rna.genes_report(), fit, rna, targets.measured.controls)
        return Prepared(
            self, cells, targets.split, objective, call.config, network=network, vocab=vocab, memory=memory,
            start={HEAD: layer}, state=state,
        )  # fmt: skip

    def measured(self, memory: MultiomicMemory, model: TaskModel, prepared: Prepared) -> TaskMemory:
        """Determine on validation cells which proteins the trained network corrects."""
        assert prepared.split is not None
        state, rows = prepared.state, prepared.split.validation
        if len(rows) < 2:
            return memory
        truth, prior = (prepared.source.targets[name][rows] for name in ("proteins", "prior"))  # type: ignore[attr-defined]
        found = prior + model.run(state.rna, rows=rows, accelerator=prepared.config.accelerator).heads[HEAD]
        started = bool(prepared.start[HEAD][0].any())
        corrects = helped(truth - state.fit.predicted[rows], truth - found, expected=started)
        logg.info(
            f"    the network corrects {corrects.sum()} of {len(corrects)} proteins, chosen on {len(rows):,} validation cells"
        )
        return replace(memory, corrects=tuple(corrects.tolist()))

    def load(self, folder: Path, config: Mapping[str, Any]) -> TaskMemory | None:
        """Proteins and ridge regressions."""
        kept = config.get("memory", {})
        if "corrects" not in kept:
            return None
        tuples: dict[str, Any] = {name: tuple(value) for name, value in kept.items()}
        memory = MultiomicMemory(**tuples)
        prior = read_part(folder / PRIOR_FILE, partial(LinearModel.from_bytes, n_outputs=len(memory.proteins)))
        return replace(memory, prior=prior)

    # Results ----------------------------------------------------------------------------------------------------------

    def complete(self, output: CellOutput, memory: MultiomicMemory, adata: AnnData, reading: Reading) -> CellOutput:
        """Ridge regression of each protein, plus the correction by the network for proteins that it improves."""
        assert memory.prior is not None
        added = output.heads[HEAD] * np.asarray(memory.corrects)
        return replace(output, heads={**output.heads, HEAD: memory.prior.predict(adata, reading) + added})

    def predictions(self, output: CellOutput, memory: MultiomicMemory, keys: CellKeys) -> Results:
        """Centred log-ratios of all proteins."""
        return Results(obsm={keys.protein: (memory.values(output.heads[HEAD]), "proteins predicted from RNA")})

    def results(
        self, adata: AnnData, model: TaskModel, prepared: Prepared, call: TrainingCall, keys: CellKeys
    ) -> Results:
        """Joint embeddings, proteins predicted from RNA, the split, and scores of each split."""
        assert prepared.split is not None
        state, memory = prepared.state, model.memory
        source: Any = prepared.source
        joint = model.run(source, accelerator=call.config.accelerator)
        of_rna = model.run(state.rna, accelerator=call.config.accelerator)
        completed = self.complete(of_rna, memory, adata, call.reading)
        targets = source.targets
        both, ridge = targets["prior"] + of_rna.heads[HEAD], state.fit.predicted
        parts, proteins = score_proteins(memory, both, ridge, targets["proteins"], prepared.split)
        sizes = {} if call.split_key else {"validation_size": call.validation_size, "test_size": call.test_size}
        content = {
            "params": {"split_key": call.split_key} if call.split_key else sizes,
            "split": prepared.split.sizes(),
            "genes": state.genes,
            "proteins": proteins,
            "isotype_controls": list(state.controls),
            "metrics": parts,
        }
        found = self.predictions(completed, memory, keys)
        return Results(
            obs={keys.split: (pd.Categorical(prepared.split.labels(), categories=list(PARTS)), "split of the cells")},
            obsm={keys.joint: (joint.embedding, "embeddings of RNA and proteins together"), **found.obsm},
            uns={keys.uns: (content, "parameters, history, metrics, provenance")},
        )

    def headline(self, content: Mapping[str, Any]) -> str:
        """Mean correlation of proteins predicted from RNA, by the model and by ridge regression."""
        part, row = held_out(content["metrics"])
        return (
            f"mean Pearson correlation of proteins on {int(row['n']):,} {part} cells: {row['pearson']:.3f}; "
            f"ridge regression: {row['pearson_ridge']:.3f}"
        )

    def network_for(self, network: CellNetwork) -> CellNetwork:
        """The network with modalities; the few protein tokens are neglected."""
        return network.multiomic_variant(network.gene_table.weight.detach(), len(MODALITIES), seed=0)

    # Pipeline ---------------------------------------------------------------------------------------------------------

    def predict(self, adata: AnnData, model: TaskModel, call: TrainingCall) -> str:
        """Fine-tuning has written both."""
        return f"joint embeddings and predicted proteins of {adata.n_obs:,} cells, written by fine-tuning"

    def evaluate(self, adata: AnnData, model: TaskModel, call: TrainingCall, *, name: str) -> Findings:
        """Pearson correlation of each protein in test cells, compared with ridge regression."""
        keys = model.keys("finetune")
        table, n = adata.uns[keys.uns]["proteins"], len(self.split_in(adata, keys.split).test)
        mine, ridge = table["pearson"].to_numpy(), table["pearson_ridge"].to_numpy()
        found = {method: _mean_and_error(values) for method, values in ((name, mine), ("ridge regression", ridge))}
        rows = [(method, with_error(*both), str(n)) for method, both in found.items()]
        section = "\n\n".join(
            [
                "## Proteins of held-out cells from their RNA",
                markdown_table(("method", "Pearson", "test cells"), rows),
                f"Pearson correlation across test cells, mean over {len(table)} proteins ± standard error over the proteins. "
                f"The network corrects the ridge regression of {int(table['corrected'].sum())} proteins, which it improves on "
                "validation cells. `uns['finetune']['proteins']` has the correlation of each protein.",
            ]
        )

        def scatter(adata: AnnData, ax: Any) -> None:
            ax.plot(ridge, mine, ".", ms=5)
            ax.axline((0, 0), slope=1, color="0.6", lw=1)
            ax.set(xlabel="Pearson of ridge regression", ylabel=f"Pearson of {name}")
            ax.spines[["top", "right"]].set_visible(False)

        scores = {method: {"pearson": both[0], "pearson_se": both[1]} for method, both in found.items()}
        return Findings(
            {"test": {"n": n, **scores[name]}, "baselines": {"ridge regression": scores["ridge regression"]}},
            f"Pearson {found[name][0]:.3f} (ridge regression {found['ridge regression'][0]:.3f}) of {len(table)} proteins on {n:,} test cells",
            [section],
            {
                "proteins.png": (
                    "Pearson correlation of each protein in test cells.",
                    on_axes(scatter, size=(4.5, 4.5)),
                ),
                **umap([keys.split], ["split"], adata.n_obs, use_rep=keys.joint),
            },
        )


def _mean_and_error(values: NDArray[np.floating]) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
