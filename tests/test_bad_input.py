"""What the user gets wrong is named, before any work, and nothing is changed: neither their object, the model nor the disk."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError, WeightsError
from scgalore.model import SCGPT
from scgalore.train import runner
from scgalore.train.checkpoint import last_checkpoint

# Nothing changes ---------------------------------------------------------------------------------------------------


def fingerprint(value: Any) -> Any:
    """A comparable picture of everything in an object, values included."""
    if isinstance(value, MuData):
        return {"obs": fingerprint(value.obs), **{mod: fingerprint(adata) for mod, adata in value.mod.items()}}
    if isinstance(value, AnnData):
        slots = ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
        return {"view": value.is_view, **{slot: fingerprint(getattr(value, slot)) for slot in slots}}
    if isinstance(value, SCGPT):
        weights = {name: fingerprint(tensor.numpy()) for name, tensor in value.network.state_dict().items()}
        return [weights, value.classes, value.is_trained, value.network.training, fingerprint(value.history)]
    if isinstance(value, pd.DataFrame):
        return [(name, str(column.dtype), repr(column.tolist())) for name, column in value.items()], list(value.index)
    if sp.issparse(value):
        arrays = (value.data, value.indices, value.indptr)
        return type(value).__name__, [fingerprint(array) for array in arrays]
    if isinstance(value, np.ndarray):
        content = value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
        return str(value.dtype), value.shape, hashlib.sha256(content).hexdigest()
    if hasattr(value, "items"):
        return {key: fingerprint(item) for key, item in value.items()}
    return type(value).__name__, repr(value)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class World:
    """A good data set, a good model, a folder; and the call that is to be refused."""

    def __init__(self, adata: AnnData, model: SCGPT, folder: Path) -> None:
        self.adata, self.model, self.folder = adata, model, folder
        self.refused = False

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Call a function that must raise, and see that it has changed nothing."""
        things = [thing for thing in (*args, self.adata, self.model) if isinstance(thing, AnnData | MuData | SCGPT)]
        before = [fingerprint(thing) for thing in things], files(self.folder), sorted(self.folder.rglob("*"))
        try:
            function(*args, **options)
        finally:
            after = [fingerprint(thing) for thing in things], files(self.folder), sorted(self.folder.rglob("*"))
            assert after == before
            self.refused = True

    def finetune(self, adata: Any = None, model: Any = None, **options: Any) -> None:
        self.call(
            sg.tl.finetune,
            self.adata if adata is None else adata,
            self.model if model is None else model,
            **{"labels_key": "bulk_labels", "max_epochs": 1, **options},
        )

    def embed(self, adata: Any = None, model: Any = None, **options: Any) -> None:
        self.call(
            sg.tl.embed, self.adata if adata is None else adata, self.model if model is None else model, **options
        )

    def finetune_screen(self, **options: Any) -> None:
        self.finetune(**{"labels_key": None, "task": "perturbation", **options})

    def predict(self, model: SCGPT | None = None, **options: Any) -> None:
        self.call(sg.tl.predict_perturbation, self.adata, model=model, **options)

    def perturbed(self) -> SCGPT:
        """Make the data a screen, and give a model that reads flags."""
        genes = self.adata.var_names[:3]
        labels = ["control", genes[0], f"{genes[1]}+{genes[2]}", genes[1], genes[2]]
        parts = ["train", "train", "test", "train", "validation"]
        self.adata.obs["perturbation"] = labels * (self.adata.n_obs // 5)
        self.adata.obs["split"] = parts * (self.adata.n_obs // 5)
        network = self.model.network.perturbation_variant(len(self.model.vocab), len(self.model.vocab), seed=0)
        return SCGPT(network, self.model.vocab)

    def saved(self) -> Path:
        self.model.save(self.folder / "model")
        return self.folder / "model"

    def exported(self) -> Path:
        self.model.export_scgpt(self.folder / "model")
        return self.folder / "model"


@pytest.fixture
def world(
    few: AnnData, model: SCGPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_empty_folder: Callable[[], None]
) -> World:
    def no_training(*_: Any, **__: Any) -> None:
        pytest.fail("Training began before the input was refused.")

    monkeypatch.setattr(runner.TrainRunner, "__call__", no_training)
    del few.uns, few.obsm, few.obsp
    return World(few, model, tmp_path)


# What can be wrong -------------------------------------------------------------------------------------------------

CASES: list[Any] = []


def wrong(error: type[Exception], *messages: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    """Add a case: the error and what its message must say."""

    def add(case: Callable[[World], None]) -> Callable[[World], None]:
        CASES.append(pytest.param(case, error, messages, id=case.__name__))
        return case

    return add


@wrong(DataError, "None of the 150 gene names is in the vocabulary", "gene0", "gene_symbols=")
def no_gene_matched(world: World) -> None:
    world.adata.var_names = [f"gene{i}" for i in range(150)]
    world.embed()


@wrong(DataError, "look like mouse or rat genes", "Hes4", "orthologs")
def mouse_genes(world: World) -> None:
    world.adata.var_names = [name.capitalize() for name in world.adata.var_names]
    world.embed()


@wrong(DataError, "adata.X", "negative values", "looks scaled", r"adata\.raw\.to_adata\(\)")
def scaled_matrix(world: World) -> None:
    x = world.adata.X.toarray()
    world.adata.X = (x - x.mean(axis=0)) / (x.std(axis=0) + 1)
    world.finetune()


@wrong(DataError, "1 NaN", "layer=")
def nan_value(world: World) -> None:
    world.adata.X.data[7] = np.nan
    world.finetune()


@wrong(DataError, "1 infinite")
def infinite_value(world: World) -> None:
    world.adata.X.data[7] = np.inf
    world.embed()


@wrong(DataError, "1 of 90 cells", "are empty in adata.X", r"sc\.pp\.filter_cells\(adata, min_genes=1\)")
def cell_of_zeros(world: World) -> None:
    x = world.adata.X.toarray()
    x[3] = 0
    world.adata.X = x
    world.finetune()


@wrong(DataError, "90 of 90 cells", "are empty")
def matrix_of_zeros(world: World) -> None:
    world.adata.X = sp.csr_matrix(world.adata.shape, dtype=np.float32)
    world.embed()


@wrong(DataError, "express no gene of the model's vocabulary")
def cell_of_unknown_genes(world: World) -> None:
    x = world.adata.X.toarray()
    x[3], x[3, 0] = 0, 1
    world.adata.X = x
    world.adata.var_names = ["unheard-of", *world.adata.var_names[1:]]
    world.finetune()


@wrong(DataError, "0 cells x 150 genes")
def no_cells(world: World) -> None:
    world.embed(world.adata[:0].copy())


@wrong(DataError, "90 cells x 0 genes|no genes")
def no_genes(world: World) -> None:
    world.embed(world.adata[:, :0].copy())


@wrong(DataError, "No training cell is left|0 cells|one class")
def no_cells_to_train_on(world: World) -> None:
    world.finetune(world.adata[:0].copy(), labels_key=None)


@wrong(DataError, "adata.X is not set", "layer=")
def no_matrix(world: World) -> None:
    world.embed(AnnData(obs=world.adata.obs, var=world.adata.var))


@wrong(DataError, "adata.X has dtype", "expected numbers")
def matrix_of_text(world: World) -> None:
    world.adata.layers["text"] = np.full(world.adata.shape, "a", dtype=object)
    with pytest.raises(DataError, match="layers"):
        world.embed(layer="text")
    world.adata.X = np.full(world.adata.shape, "a", dtype=object)
    world.embed()


@wrong(DataError, "more than one column", r"var_names_make_unique\(\) does not help")
def gene_twice(world: World) -> None:
    names = world.adata.var_names.tolist()
    world.adata.var_names = [*names[:-1], names[0]]
    world.finetune()


@wrong(MissingKeyError, r"No column 'bulk_label' in adata\.obs; it has \['bulk_labels'")
def labels_missing(world: World) -> None:
    world.finetune(labels_key="bulk_label")


@wrong(DataError, "only one class, 'same'")
def one_class(world: World) -> None:
    world.adata.obs["same"] = "same"
    world.finetune(labels_key="same")


@wrong(DataError, "2 of 90 cells have no label", r"\.notna\(\)", "annotate")
def label_nan(world: World) -> None:
    world.adata.obs["bulk_labels"] = world.adata.obs["bulk_labels"].astype(object)
    world.adata.obs.iloc[:2, 0] = np.nan
    world.finetune()


@wrong(DataError, "different numbers in 90 cells; expected classes")
def labels_are_a_score(world: World) -> None:
    world.finetune(labels_key="percent_mito")


@wrong(DataError, "90 different names in 90 cells; expected classes")
def labels_are_barcodes(world: World) -> None:
    world.adata.obs["barcode"] = world.adata.obs_names
    world.finetune(labels_key="barcode")


@wrong(MissingKeyError, "'counts'", "'logged'", "layer=")
def layer_missing(world: World) -> None:
    world.adata.layers["logged"] = world.adata.X
    world.finetune(layer="counts")


@wrong(MissingKeyError, r"No column 'symbol' in adata\.var", "Omit gene_symbols=")
def gene_symbols_missing(world: World) -> None:
    world.embed(gene_symbols="symbol")


@wrong(OptionError, "'scgtp' is neither an existing folder nor the name of weights", "Did you mean 'scgpt'")
def model_unknown(world: World) -> None:
    world.finetune(model="scgtp")


@wrong(OptionError, "model is a Linear; pass a name, a folder, or a model such as scgalore.model.SCGPT")
def model_of_wrong_type(world: World) -> None:
    world.embed(model=torch.nn.Linear(2, 2))


@wrong(OptionError, "best_model.pt' is a file; pass the folder")
def model_is_a_file(world: World) -> None:
    world.embed(model=world.exported() / "best_model.pt")


@wrong(WeightsError, "lacks args.json", r"holds \['best_model.pt', 'vocab.json'\]")
def folder_without_args(world: World) -> None:
    folder = world.exported()
    (folder / "args.json").unlink()
    world.finetune(model=folder)


@wrong(WeightsError, "lacks vocab.json")
def folder_without_vocabulary(world: World) -> None:
    folder = world.exported()
    (folder / "vocab.json").unlink()
    world.embed(model=folder)


@wrong(WeightsError, "holds no weights")
def folder_without_weights(world: World) -> None:
    (world.folder / "empty").mkdir()
    world.embed(model=world.folder / "empty")


@wrong(WeightsError, "best_model.pt is damaged or incomplete", "Download or save it again")
def weights_cut_off(world: World) -> None:
    path = world.exported() / "best_model.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    world.finetune(model=path.parent)


@wrong(WeightsError, "model.safetensors is damaged or incomplete")
def own_weights_cut_off(world: World) -> None:
    path = world.saved() / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    world.finetune(model=path.parent)


class _Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


@wrong(WeightsError, "was refused: loading it would run code")
def weights_with_code(world: World) -> None:
    path = world.exported() / "best_model.pt"
    torch.save({"encoder.embedding.weight": _Evil()}, path)
    world.embed(model=path.parent)


@wrong(WeightsError, r"args\.json has n_layers=2.*best_model\.pt have n_layers=1", "do not match")
def weights_of_another_network(world: World) -> None:
    path = world.exported() / "best_model.pt"
    tensors = torch.load(path, weights_only=True)
    torch.save({name: t for name, t in tensors.items() if "layers.1." not in name}, path)
    world.embed(model=path.parent)


@wrong(WeightsError, "vocab.json is not valid JSON", "Download or save it again")
def vocabulary_cut_off(world: World) -> None:
    path = world.exported() / "vocab.json"
    path.write_text(path.read_text()[:500])
    world.finetune(model=path.parent)


@wrong(WeightsError, "vocabulary", "cut off|Expected")
def vocabulary_with_a_hole(world: World) -> None:
    path = world.exported() / "vocab.json"
    content = json.loads(path.read_text())
    del content[next(iter(content))]
    path.write_text(json.dumps(content))
    world.finetune(model=path.parent)


@wrong(OptionError, "Unknown optimizer='galor'", "Did you mean 'galore'")
def optimizer_unknown(world: World) -> None:
    world.finetune(model="never looked at", optimizer="galor")


@wrong(OptionError, "adapter='lor'", "Did you mean 'lora'")
def adapter_unknown(world: World) -> None:
    world.finetune(model="never looked at", adapter="lor")


@wrong(OptionError, "embedding='row'", "'rows', 'full', 'frozen'")
def embedding_unknown(world: World) -> None:
    world.finetune(model="never looked at", embedding="row")


@wrong(OptionError, "optimizer='galore' has no option 'rnk'", "Did you mean 'rank'")
def optimizer_option_unknown(world: World) -> None:
    world.finetune(model="never looked at", optimizer_options={"rnk": 8})


@wrong(OptionError, "rank=-8")
def optimizer_option_out_of_range(world: World) -> None:
    world.finetune(model="never looked at", optimizer_options={"rank": -8})


@wrong(OptionError, "Unknown training option 'max_epoch'", "Did you mean 'max_epochs'")
def option_misspelt(world: World) -> None:
    world.finetune(model="never looked at", max_epoch=3)


@wrong(OptionError, "Unknown training option 'label_key'", "Did you mean 'labels_key'")
def parameter_misspelt(world: World) -> None:
    world.finetune(model="never looked at", label_key="bulk_labels")


@wrong(OptionError, "pass rng=3 instead")
def seed_for_rng(world: World) -> None:
    world.finetune(model="never looked at", seed=3)


@wrong(OptionError, "lr=-0.001", "positive")
def lr_negative(world: World) -> None:
    world.finetune(model="never looked at", lr=-1e-3)


@wrong(OptionError, "max_epochs=0", "at least 1")
def no_epochs(world: World) -> None:
    world.finetune(model="never looked at", max_epochs=0)


@wrong(
    OptionError,
    "devices=2, but the number of processes is 1",
    "torch.distributed.run --standalone --nproc_per_node=2",
)
def more_processes_than_there_are(world: World) -> None:
    world.embed(model="never looked at", devices=2)


@wrong(OptionError, "precision='half'", "'32-true', 'bf16-true'")
def precision_of_embedding_unknown(world: World) -> None:
    world.embed(model="never looked at", precision="half")


@wrong(OptionError, "batch_size=0", "at least 1")
def batches_of_nothing(world: World) -> None:
    with pytest.raises(OptionError, match="batch_size=0"):
        world.embed(model="never looked at", batch_size=0)
    with pytest.raises(OptionError, match="batch_tokens=-1: it must be at least 1"):
        world.embed(model="never looked at", batch_tokens=-1)
    world.finetune(model="never looked at", batch_size=0)


@wrong(OptionError, "precision='half'", "bf16-mixed")
def precision_unknown(world: World) -> None:
    world.finetune(model="never looked at", precision="half")


@wrong(OptionError, "accelerator='tpu'", "'cpu'")
def accelerator_unknown(world: World) -> None:
    with pytest.raises(OptionError, match="accelerator='gpuu' is not available on this machine"):
        world.embed(accelerator="gpuu")
    world.finetune(model="never looked at", accelerator="tpu")


@wrong(OptionError, "max_length=1", "at least 2|no room")
def no_room_for_a_gene(world: World) -> None:
    with pytest.raises(OptionError, match="max_length=1 is too small for a gene"):
        world.embed(max_length=1)
    world.finetune(max_length=1)


@wrong(OptionError, "rng is 'seven'", "integer")
def rng_of_wrong_type(world: World) -> None:
    world.finetune(model="never looked at", rng="seven")


@wrong(MissingKeyError, "no modality 'rna'; it has 'gex', 'prot'", "mod=")
def modality_missing(world: World) -> None:
    protein = AnnData(np.ones((90, 2)), obs=world.adata.obs[[]])
    world.finetune(MuData({"gex": world.adata, "prot": protein}))


@wrong(TypeError, "Expected an AnnData or a MuData, found str", "read_h5ad")
def path_for_data(world: World) -> None:
    world.embed("pbmc.h5ad")


@wrong(TypeError, "found Raw", r"adata\.raw\.to_adata\(\)")
def raw_for_data(world: World) -> None:
    world.adata.raw = world.adata
    raw = world.adata.raw
    world.adata.raw = None
    world.embed(raw)


@wrong(TypeError, "found csr_matrix")
def matrix_for_data(world: World) -> None:
    world.finetune(world.adata.X)


@wrong(OptionError, "validation_size=0.5 and test_size=0.5", "their sum below 1")
def nothing_left_to_train_on(world: World) -> None:
    world.finetune(validation_size=0.5, test_size=0.5)


@wrong(OptionError, "validation_size=-0.1")
def share_negative(world: World) -> None:
    world.finetune(validation_size=-0.1)


@wrong(MissingKeyError, r"No column 'split' in adata\.obs")
def split_missing(world: World) -> None:
    world.finetune(split_key="split")


@wrong(DataError, r"adata\.obs\['bulk_labels'\] is not a split", "must be 'train', 'validation' or 'test'")
def split_with_strange_values(world: World) -> None:
    world.finetune(split_key="bulk_labels")


@wrong(DataError, r"adata\.obs\['split'\] is not a split", "missing values for [0-9]+ cells")
def split_with_gaps(world: World) -> None:
    world.adata.obs["split"] = ["train", None] * 45
    world.finetune(split_key="split")


@wrong(DataError, "No training cell is left")
def split_without_training_cells(world: World) -> None:
    world.adata.obs["split"] = "test"
    world.finetune(split_key="split")


@wrong(OptionError, "patience requires validation cells", "validation_size")
def patience_without_validation(world: World) -> None:
    world.finetune(patience=2, validation_size=0.0)


@wrong(
    OptionError,
    "'random' was not trained to predict labels or values of cells",
    r"sg\.tl\.finetune\(adata, labels_key=\.\.\.\)",
)
def annotate_without_classes(world: World) -> None:
    world.call(sg.tl.annotate, world.adata, world.model)


@wrong(OptionError, "resume=True requires checkpoint_dir")
def resume_without_folder(world: World) -> None:
    world.finetune(resume=True)


@wrong(OptionError, r"last\.ckpt exists", "resume=True")
def checkpoint_in_the_way(world: World) -> None:
    last_checkpoint(world.folder).write_bytes(b"hours of work")
    world.finetune(checkpoint_dir=world.folder)


@wrong(WeightsError, r"last\.ckpt is damaged")
def checkpoint_damaged(world: World) -> None:
    last_checkpoint(world.folder).write_bytes(b"cut off")
    world.finetune(checkpoint_dir=world.folder, resume=True)


@wrong(
    OptionError,
    "belongs to another run: accumulate was None, now 1; .* and [0-9]+ more differences",
    "use another folder",
)
def checkpoint_of_another_run(world: World) -> None:
    torch.save({"scgalore_run": {}}, last_checkpoint(world.folder))
    world.finetune(checkpoint_dir=world.folder, resume=True)


@wrong(OptionError, "is a file; expected a folder")
def checkpoint_folder_is_a_file(world: World) -> None:
    (world.folder / "file").touch()
    world.finetune(checkpoint_dir=world.folder / "file")


@wrong(DataError, "view of a backed file", r"to_memory\(\)")
def view_of_a_backed_file(world: World) -> None:
    world.adata.write_h5ad(world.folder / "few.h5ad")
    backed = anndata.read_h5ad(world.folder / "few.h5ad", backed="r")
    try:
        backed[:50].obs.shape  # noqa: B018 -- a view, as the user would hold it
        with pytest.raises(DataError, match="view of a backed file"):
            sg.tl.embed(backed[:50], world.model)
        sg.tl.finetune(backed[:50], world.model, labels_key="bulk_labels")
    finally:
        backed.file.close()
        world.refused = True


@wrong(OptionError, "key_added=3", "expected a string")
def key_added_is_a_number(world: World) -> None:
    world.embed(key_added=3)


@wrong(OptionError, "key_added='a/b'", "'/'")
def key_added_is_a_path(world: World) -> None:
    world.finetune(model="never looked at", key_added="a/b")


@wrong(OptionError, "already contains a checkpoint", "overwrite=True")
def folder_taken(world: World) -> None:
    world.call(world.model.save, world.saved())


@wrong(MissingKeyError, r"pert_key='perturbation' is not a column of adata\.obs, which has \['bulk_labels'")
def perturbations_missing(world: World) -> None:
    world.finetune_screen()


@wrong(
    OptionError,
    "task='perturbations': choose one of 'classes', 'regression', 'expression', 'perturbation', 'integration', 'multiomic', or None",
)
def task_unknown(world: World) -> None:
    world.finetune_screen(model="never looked at", task="perturbations")


@wrong(OptionError, "labels_key='bulk_labels' is an argument of task='classes'.*, but the task is 'perturbation'")
def perturbations_with_labels(world: World) -> None:
    with pytest.raises(OptionError, match="task='classes' needs labels_key="):
        world.finetune_screen(model="never looked at", task="classes")
    world.finetune_screen(model="never looked at", labels_key="bulk_labels")


@wrong(OptionError, "context_key='phase' is an argument of task='perturbation'", "omit context_key=")
def option_of_another_task(world: World) -> None:
    world.finetune(model="never looked at", context_key="phase")


@wrong(
    OptionError,
    "prior='mean': choose one of 'chosen', 'mixed', 'additive', 'matching mean', 'ridge', 'linear', .*'none'",
)
def prior_unknown(world: World) -> None:
    world.finetune_screen(model="never looked at", prior="mean")


@wrong(OptionError, "genes_per_step=0: it must be a whole number, at least 1")
def steps_without_genes(world: World) -> None:
    world.finetune_screen(model="never looked at", genes_per_step=0)


@wrong(OptionError, "save_dir=.* already exists and is not empty", "Pass a new folder")
def folder_to_save_to_taken(world: World) -> None:
    world.finetune(model="never looked at", save_dir=world.saved())


@wrong(DataError, "No label of control among", "non-targeting", "Name it with control=")
def no_control_cells(world: World) -> None:
    world.perturbed()
    world.adata.obs["perturbation"] = world.adata.obs["perturbation"].replace("control", "untouched")
    world.finetune_screen()


@wrong(OptionError, "control='untouched' is none of the 5 labels")
def control_unknown(world: World) -> None:
    world.perturbed()
    world.finetune_screen(control="untouched")


@wrong(DataError, r"The label 'A\+A' names a gene twice", "Correct the label")
def gene_perturbed_twice(world: World) -> None:
    world.adata.obs["perturbation"] = ["control", "A+A"] * 45
    world.finetune_screen()


@wrong(DataError, r"adata\.obs\['bulk_labels'\] holds", "must be 'train', 'validation', 'test' or missing")
def split_of_perturbations_with_strange_values(world: World) -> None:
    world.perturbed()
    world.finetune_screen(split_key="bulk_labels")


@wrong(DataError, "No perturbed cell is in 'train'", "Choose another kind")
def no_perturbation_to_train_on(world: World) -> None:
    world.perturbed()
    world.adata.obs["split"] = "test"
    world.finetune_screen(split_key="split")


@wrong(DataError, r"adata\.obs\['line'\] is empty for 1 of 90 cells", "Fill or remove")
def context_with_a_gap(world: World) -> None:
    world.perturbed()
    world.adata.obs["line"] = [None, *["K562"] * 89]
    world.finetune_screen(context_key="line")


@wrong(DataError, "No control cells of context 'B'", "control=")
def context_without_control(world: World) -> None:
    world.perturbed()
    world.adata.obs["line"] = np.where(world.adata.obs["perturbation"] == "control", "A", "B")
    world.finetune_screen(context_key="line")


@wrong(DataError, r"adata\.X", "negative values")
def scaled_screen(world: World) -> None:
    world.perturbed()
    world.adata.X = world.adata.X.toarray() - 1
    world.finetune_screen()


@wrong(DataError, "The model has no token for the gene 'NOSUCH' and cannot predict", "Ensembl id")
def gene_that_no_model_knows(world: World) -> None:
    world.predict(world.perturbed(), perturbations=["NOSUCH"])


@wrong(OptionError, "perturbations is empty. Pass at least one", "None for those of the test split")
def nothing_to_predict(world: World) -> None:
    world.predict(world.perturbed(), perturbations=[])


@wrong(OptionError, "random was not trained on perturbations", r"task='perturbation', pert_key=\.\.\.")
def model_of_another_task(world: World) -> None:
    world.perturbed()
    world.predict(world.model)


@wrong(MissingKeyError, r"model= is missing, and adata\.uns records none", "pass model=")
def no_model_recorded(world: World) -> None:
    world.perturbed()
    world.predict()


@wrong(MissingKeyError, "per_cell='wanted' is not a column of adata")
def perturbation_of_each_cell_missing(world: World) -> None:
    world.predict(world.perturbed(), per_cell="wanted")


@wrong(OptionError, "n_controls=0", "at least one control cell")
def prediction_from_no_cell(world: World) -> None:
    world.predict(world.perturbed(), n_controls=0)


# Choosing genes ----------------------------------------------------------------------------------------------------


def choose(world: World, data: Any = None, **options: Any) -> None:
    world.call(sg.tl.select_genes, world.adata if data is None else data, **{"n_genes": 5, **options})


@wrong(OptionError, "did you mean 'biological'", "'hvg'")
def unknown_strategy(world: World) -> None:
    choose(world, gene_strategy="biologic")


@wrong(OptionError, "n_genes=0", "at least 1")
def no_gene_asked_for(world: World) -> None:
    choose(world, n_genes=0)


@wrong(OptionError, "n_genes=-3")
def fewer_genes_than_none(world: World) -> None:
    choose(world, n_genes=-3)


@wrong(OptionError, "gene_strategy='perturbation' needs pert_key=")
def responses_without_perturbations(world: World) -> None:
    choose(world, gene_strategy="perturbation")


@wrong(DataError, "No label of control", "control=")
def responses_without_control(world: World) -> None:
    world.perturbed()
    world.adata.obs["perturbation"] = "CD3D"
    choose(world, gene_strategy="perturbation", pert_key="perturbation")


@wrong(OptionError, "control='none' is none of the")
def control_of_no_cell(world: World) -> None:
    world.perturbed()
    choose(world, gene_strategy="perturbation", pert_key="perturbation", control="none")


@wrong(MissingKeyError, "pert_key='guide' is not a column")
def perturbations_of_no_column(world: World) -> None:
    choose(world, gene_strategy="perturbation", pert_key="guide")


@wrong(MissingKeyError, "adata.layers has no 'counts'")
def genes_of_a_missing_layer(world: World) -> None:
    choose(world, layer="counts")


@wrong(DataError, "negative values", "looks scaled")
def genes_of_scaled_data(world: World) -> None:
    world.adata.X = np.asarray(world.adata.X.todense() if sp.issparse(world.adata.X) else world.adata.X) - 1
    choose(world)


@wrong(DataError, "1 NaN")
def genes_of_nan(world: World) -> None:
    x = np.asarray(world.adata.X.todense() if sp.issparse(world.adata.X) else world.adata.X).copy()
    x[0, 0] = np.nan
    world.adata.X = x
    choose(world)


@wrong(DataError, r"gene_sets\['mine'\]", "gene_symbols=")
def list_that_matches_no_gene(world: World) -> None:
    choose(world, gene_sets={"fine": [world.adata.var_names[0]], "mine": ["NO1", "NO2"]})


@wrong(DataError, r"gene_sets\['mine'\]", "look like mouse symbols")
def list_of_a_mouse(world: World) -> None:
    choose(world, gene_sets={"mine": ["Actb", "Cd3e", "Gapdh"]})


@wrong(DataError, "look like mouse genes", "species='mouse'")
def mouse_without_a_word(world: World) -> None:
    world.adata.var_names = [name.capitalize() for name in world.adata.var_names]
    choose(world)


@wrong(OptionError, "must_include has", "Pass a larger n_genes")
def more_to_include_than_asked_for(world: World) -> None:
    choose(world, must_include=list(world.adata.var_names[:9]))


@wrong(DataError, "copy=True|view of a backed file")
def genes_of_a_view_of_a_file(world: World) -> None:
    world.adata.write_h5ad(world.folder / "x.h5ad")
    backed = anndata.read_h5ad(world.folder / "x.h5ad", backed="r")
    try:
        sg.tl.select_genes(backed[:10], 5)
    finally:
        backed.file.close()
        world.refused = True


@pytest.mark.parametrize(("case", "error", "messages"), CASES)
def test_is_refused(
    case: Callable[[World], None],
    error: type[Exception],
    messages: tuple[str, ...],
    world: World,
    in_empty_folder: Callable[[], None],
) -> None:
    with pytest.raises(error) as caught:
        case(world)
    assert world.refused
    assert type(caught.value) is error
    message = str(caught.value)
    for part in messages:
        assert re.search(part, message), message
    assert "\n" not in message[:20]
    in_empty_folder()


def test_table_is_long_enough() -> None:
    assert len(CASES) >= 20
    assert len({case.id for case in CASES}) == len(CASES)


def test_view_is_left_a_view(world: World) -> None:
    view = world.adata[:50]
    with pytest.raises(MissingKeyError):
        world.finetune(view, labels_key="no")
    assert view.is_view


def test_errors_are_those_a_scanpy_user_would_catch() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(OptionError, ValueError)
    assert issubclass(WeightsError, ValueError)
    assert issubclass(MissingKeyError, KeyError)
