"""The code of the README and of every page of the documentation runs, in order, with what a reader has.

The Python blocks of a page share their names, as a reader's session does, and import what they use. What a page takes for granted, such as
"your" ``adata``, is named in its text and is in :data:`READERS`: small stand-ins for the reader's data, and for weights that they have
downloaded, nothing else. Commands of scgalore run as they are typed. A block that cannot run here has the reason in a comment above it,
``<!-- not run: needs a connection -->``; the reasons are those of ``tests/pages.py``, and are checked. ``<!-- takes minutes -->`` leaves a
block to the slow tests. A block of text is what the Python block above it prints. Anything else on a page fails.
"""

import doctest
import importlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from tests.dosed_screens import dosed
from tests.hub import Hub
from tests.pages import REPOSITORY, Block, blocks_of, read, run_blocks
from tests.scberts import small_model
from tests.tiny_plugin import few_cells

import scgalore as sg
import scgalore.weights.registry as registry
from scgalore.train import budget
from scgalore.weights.fetch import BUNDLED
from scgalore.weights.registry import _packaged

GENERATED = {"_build", "_generated", "generated", "tutorials"}
PAGES = [
    page
    for path in sorted({*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md"), *REPOSITORY.glob("src/**/*.md")})
    if not GENERATED & set(path.parts) and blocks_of(read(page := path.relative_to(REPOSITORY).as_posix()))
]
SLOW = [page for page in PAGES if any(block.comment == "takes minutes" for block in blocks_of(read(page)))]
MODULES = [
    ".".join(path.relative_to(REPOSITORY / "src").with_suffix("").parts)
    for path in sorted(REPOSITORY.glob("src/**/*.py"))
    if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
]
ELSEWHERE = {"docs/fit-your-card.md"}  # is run by its own test, which reads what it defines

# What a reader has -------------------------------------------------------------------------------------------------------

_whole = sc.datasets.pbmc68k_reduced


def reduced() -> AnnData:
    """``sc.datasets.pbmc68k_reduced()`` with fewer cells and genes, so that training takes seconds."""
    adata = _whole()
    few = few_cells(adata, n_obs=60, n_vars=100)
    genes = adata.raw.var_names[::5].union(["CD3D", "CD8A", "CD79A", "CD74"])
    few.raw = adata.raw.to_adata()[few.obs_names, genes].copy()
    return few


def cells(rows: slice = slice(0, 40)) -> AnnData:
    """Blood cells with the columns that pages name."""
    adata = reduced().raw.to_adata()[rows].copy()
    adata.obs["cell_type"] = adata.obs["bulk_labels"]
    adata.obs["is_primary_data"] = True
    return adata


def batches() -> AnnData:
    """Cells of two assays."""
    adata = cells()
    adata.obs["assay"] = ["3p", "5p"] * (adata.n_obs // 2)
    return adata


def with_proteins(adata: AnnData) -> AnnData:
    """The cells with counts of antibodies."""
    counts = np.random.default_rng(0).poisson(9, (adata.n_obs, 3))
    adata.obsm["protein_expression"] = pd.DataFrame(counts, adata.obs_names, ["CD3_TotalSeqB", "CD4", "CD19"])
    return adata


def blood() -> AnnData:
    """Monocytes and dendritic cells with all genes, so that factors have targets among them."""
    whole = _whole()
    adata = whole.raw.to_adata()
    adata.obs["cell_type"] = whole.obs["bulk_labels"].astype(str)
    return adata[adata.obs["cell_type"].isin(["CD14+ Monocyte", "Dendritic"])][:160].copy()


def mouse() -> AnnData:
    """Cells whose genes have names of a mouse."""
    adata = cells()
    adata.var_names = adata.var_names.str.capitalize()
    adata.var["feature_name"] = adata.var_names
    return adata


def screen(pert_key: str = "perturbation") -> AnnData:
    """Log-normalised cells with genes perturbed one and two at a time, among them KLF1 and MAP2K6."""
    rng = np.random.default_rng(0)
    genes = ["KLF1", "MAP2K6", *_whole().raw.var_names[:58]]
    singles = [*genes[:2], *genes[40:48]]
    doubles = [f"{a}+{b}" for a, b in zip(singles[:-1], singles[1:], strict=True)]
    effect = {gene: rng.normal(0, 0.8, len(genes)) * (rng.random(len(genes)) < 0.4) for gene in singles}
    names, rows = [], []
    for name in ["control"] * 4 + singles + doubles:
        shift = sum((effect[gene] for gene in name.split("+") if gene in effect), np.zeros(len(genes)))
        rows.append(rng.poisson(4 * np.exp(shift), (6, len(genes))))
        names += [name] * 6
    obs = pd.DataFrame({pert_key: names}, index=[f"cell{i}" for i in range(len(names))])
    adata = AnnData(sp.csr_matrix(np.concatenate(rows), dtype=np.float32), obs=obs, var=pd.DataFrame(index=genes))
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


def split_screen() -> AnnData:
    adata = screen()
    sg.pp.split_perturbations(adata, "custom", parts={"test": ["KLF1+MAP2K6"]})
    return adata


def drugs() -> AnnData:
    """Compounds at doses in two lines, with vectors, on genes that the small weights know."""
    adata = dosed(compounds=["dexamethasone", "(+)-JQ1", "IL6", "drug a/b"], contexts=("A549", "K562"), n_cells=5)
    adata.var_names = _whole().raw.var_names[: adata.n_vars]
    return adata


def annotated() -> AnnData:
    adata = cells()
    sg.tl.annotate(adata, sg.tl.finetune(adata, "scgpt-mini", labels_key="cell_type", max_epochs=1))
    return adata


def small() -> sg.model.SCGPT:
    return sg.model.SCGPT.from_pretrained("scgpt-mini")


def small_scbert() -> dict[str, Any]:
    """Write a file in scBERT's layout with few genes to the working directory; no name stands for it."""
    small_model(cells().var_names[:60], gene2vec=True).export_scbert("small")
    Path("small/scbert.pth").rename("panglao_pretrain.pth")
    Path("small/vocab.json").rename("vocab.json")
    return {}


def in_folder() -> dict[str, Any]:
    """Write cells to the folder ``cells`` and to a file next to it; no name stands for them."""
    Path("cells").mkdir()
    return in_files("cells/a.h5ad", "cells/b.h5ad", "lung.h5ad")


def in_files(*names: str, cells: Callable[[], AnnData] = cells) -> dict[str, Any]:
    """Write cells to files of the working directory; no name stands for them."""
    for name in names:
        (cells().write_zarr if name.endswith(".zarr") else cells().write_h5ad)(name)
    return {}


def in_weights(folder: str) -> dict[str, Any]:
    """Write weights to a folder of the working directory; no name stands for it."""
    shutil.copytree(BUNDLED / "scgpt-mini", folder)
    return {}


READERS: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/api/data.md": lambda: {"model": small(), **in_files("lung.h5ad", "blood.zarr")},
    "docs/api/perturb.md": lambda: {"adata": split_screen()},
    "docs/concepts/curriculum.md": lambda: {"adata": cells()},
    "docs/concepts/galore.md": lambda: {"adata": cells(), "network": small().network},
    "docs/concepts/gene-selection.md": lambda: {"adata": screen()},
    "docs/concepts/integration-scores.md": lambda: {"adata": batches()},
    "docs/concepts/keys.md": lambda: {"adata": annotated()},
    "docs/concepts/large-data.md": lambda: {
        "held_out": cells(slice(40, 60)),
        **in_files("atlas.h5ad", "lung.h5ad", "blood.h5ad", "brain.zarr"),
    },
    "docs/concepts/compounds.md": lambda: {"adata": drugs()},
    "docs/concepts/perturbation-splits.md": lambda: {"adata": screen("condition")},
    "docs/integration.md": lambda: {"adata": batches(), "query": batches(), **in_files("cells.h5ad", cells=batches)},
    "docs/genes.md": lambda: {"adata": blood()},
    "docs/pretraining.md": in_folder,
    "docs/concepts/tokens.md": lambda: {"adata": mouse()},
    "docs/concepts/weights.md": lambda: {"adata": cells(), **in_weights("path/to/folder")},
    "docs/distributed.md": lambda: in_files("cells.h5ad"),
    "docs/optimizers.md": lambda: {"adata": cells(), "network": small().network},
    "docs/scbert.md": lambda: {"adata": cells(), "query": cells(slice(40, 60)), **small_scbert()},
    "docs/protein.md": lambda: {"adata": with_proteins(cells()), "query": cells(slice(40, 60))},
    "docs/pipeline.md": lambda: in_files("cells.h5ad", "data.h5ad"),
    "docs/sharing.md": lambda: {
        "adata": batches(),
        "query": cells(slice(40, 60)),
        "folder": shutil.copytree(BUNDLED / "scgpt-mini", "runs/types"),
    },
}
"""What the reader of a page has before its first block; by page, and nothing on the others."""


@cache
def screen_and_model() -> tuple[AnnData, sg.model.CellModel]:
    """A screen with predictions and scores of the pair held out, and its model, which examples find in memory."""
    adata = split_screen()
    model = sg.tl.finetune(adata, "scgpt-mini", task="perturbation", max_epochs=1, optimizer="adamw")
    sg.tl.predict_perturbation(adata)
    sg.tl.evaluate_perturbation(adata, de=False, n_bootstrap=20)
    return adata, model


def fitted_screen() -> AnnData:
    return screen_and_model()[0]


@cache
def fitted_drugs() -> AnnData:
    """Compounds at doses with predictions, on genes that the examples name."""
    adata = drugs()
    adata.var_names = ["FKBP5", "TSC22D3", *adata.var_names[2:]]
    columns: dict[str, Any] = {
        "pert_key": "drug",
        "pert_kind": "compound",
        "dose_key": "dose",
        "context_key": "cell_line",
    }
    sg.pp.split_perturbations(adata, "dose", **columns)
    model = sg.tl.finetune(adata, "scgpt-mini", task="perturbation", **columns, max_epochs=1, optimizer="adamw")
    sg.tl.predict_perturbation(adata, ["dexamethasone@0.1", "dexamethasone@1"], model=model)
    return adata


@cache
def shifted() -> AnnData:
    """Cells with in-silico perturbations of some genes."""
    adata = cells()
    sg.tl.perturb_in_silico(adata, ["CD74", "CD3D"], model="scgpt-mini", n_cells=20, n_null=7)
    return adata


@cache
def integrated() -> AnnData:
    """Cells of two assays with scores of their embedding."""
    adata = batches()
    sg.tl.embed(adata, "scgpt-mini")
    sg.tl.evaluate_integration(adata, "assay", "cell_type", embeddings=["X_scGPT"])
    return adata


@cache
def connected() -> AnnData:
    """Cells of two types with a network of each, and its scores."""
    adata = blood()
    truth = pd.DataFrame({"source": ["SPI1", "SPI1", "IRF8"], "target": ["CTSS", "LYZ", "CD74"]})
    sg.tl.gene_network(adata, method="coexpression", groupby="cell_type", n_edges=None)
    sg.tl.evaluate_gene_network(adata, truth, min_targets=1, baselines=["correlation"], n_shuffles=2)
    return adata


HELD: dict[str, Callable[[], AnnData]] = {
    "get._gene_network": connected,
    "get._gene_network_scores": connected,
    "get._in_silico_effects": shifted,
    "get._in_silico_shifts": shifted,
    "get._integration_scores": integrated,
    "get._perturbation_effects": fitted_screen,
    "get._perturbation_scores": fitted_screen,
    "get._perturbed_cells": fitted_screen,
    "pl._attention": connected,
    "pl._dose_response": fitted_drugs,
    "pl._gene_network": connected,
    "pl._in_silico_shifts": shifted,
    "pl._integration_scores": integrated,
    "pl._perturbation_effect": fitted_screen,
    "pl._perturbation_embedding": fitted_screen,
    "pl._perturbation_scores": fitted_screen,
    "tl._evaluate_gene_network": blood,
    "tl._evaluate_integration": batches,
    "tl._evaluate_perturbation": fitted_screen,
    "tl._predict_perturbation": split_screen,
    "tl._rank_perturbations": fitted_screen,
}
"""``adata`` in the examples of a module; they describe it in words."""

FILES = {"model.scbert", "weights.save", "weights.scbert"}
"""Modules whose examples read ``panglao_pretrain.pth``."""


def names_of_examples(module: str) -> dict[str, Any]:
    """What the examples of a module take for granted."""
    name = module.removeprefix("scgalore.")
    if name in FILES:
        return {"adata": cells(), **small_scbert()}
    return {"adata": HELD[name]().copy()} if name in HELD else {}


FIRST_STEPS = ("README.md", "docs/index.md", "docs/quickstart.md")
"""Pages that a reader copies before having anything."""


@pytest.fixture
def session(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Begin a session in an empty folder, where small weights and cells stand in for large ones, and a server for the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sc.datasets, "pbmc68k_reduced", reduced)
    monkeypatch.setattr(budget, "STEPS", 1)
    monkeypatch.setattr(budget, "FEWEST_EPOCHS", 2)
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setitem(_packaged(), "scgpt", _packaged()["scgpt-mini"])
    with registries_as_they_were():
        yield lambda page: {"__name__": "__main__", **READERS.get(page, dict)()}


@contextmanager
def registries_as_they_were() -> Iterator[None]:
    """Take out again what a page registers."""
    with ExitStack() as stack:
        for entries in (sg.tasks.TASKS, sg.model.FAMILIES, sg.optim.OPTIMIZERS):
            stack.enter_context(patch.dict(entries))
        yield


LONG = {"docs/pipeline.md"}  # two runs, as in tests/pipeline


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page in LONG else ()) for page in PAGES if page not in ELSEWHERE],
)
def test_a_page_runs_as_it_is_read(page: str, session: Callable[[str], dict[str, Any]]) -> None:
    names = session(page)
    check_names(read(page), names.keys() - {"__name__"})
    run_blocks(page, blocks_of(read(page)), names)


def check_names(text: str, names: Iterable[str]) -> None:
    """A page names what it takes for granted, before it uses it."""
    for name in names:
        used = re.search(rf"^```python\n(?:(?!```).*\n)*?.*\b{name}\b", text, flags=re.MULTILINE)
        assert used is None or f"`{name}`" in text[: used.start()], f"the page uses {name}, and does not say what it is"


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_a_page_runs_with_what_takes_minutes(page: str, session: Callable[[str], dict[str, Any]]) -> None:
    run_blocks(page, blocks_of(read(page)), session(page), slow=True)


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings_run(module: str, session: Callable[[str], dict[str, Any]]) -> None:
    names = {"sc": sc, "sg": sg, **session(module), **names_of_examples(module)}
    loaded = importlib.import_module(module)
    report, runner = StringIO(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(loaded, globs={**names, **vars(loaded)}):
        runner.run(test, out=report.write)
    plt.close("all")
    assert not runner.failures, report.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("page", FIRST_STEPS)
def test_first_steps_run_as_they_are(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    run_blocks(page, blocks_of(read(page)), {"__name__": "__main__"})


def test_every_reader_has_a_page() -> None:
    assert {*READERS, *ELSEWHERE} <= {*PAGES}
    assert not {*FIRST_STEPS} & {*READERS}
    assert {"README.md", "docs/pipeline.md", "docs/fit-your-card.md"} <= {*PAGES}


class TestWhatAPageMayNotDo:
    """The rules above can fail."""

    @staticmethod
    def run(text: str) -> None:
        run_blocks("a page", blocks_of(text), {"sg": sg})

    def test_names_are_those_of_blocks_above(self) -> None:
        self.run("```python\na = 1\n```\ntext\n```python\nassert a == 1\n```")
        with pytest.raises(NameError):
            self.run("```python\nb = a\n```\n```python\na = 1\n```")

    def test_what_is_taken_for_granted_is_named(self) -> None:
        check_names("With your `adata`:\n\n```python\nrun(adata)\n```\n", ["adata", "model"])
        with pytest.raises(AssertionError, match="uses adata"):
            check_names("With your cells:\n\n```python\nrun(adata)\n```\n", ["adata"])

    def test_what_is_shown_is_what_is_printed(self) -> None:
        self.run("```python\nprint(1 + 1)\n```\n```text\n2\n```")
        with pytest.raises(AssertionError, match="line 5: this is not what"):
            self.run("```python\nprint(1 + 1)\n```\n```text\n3\n```")
        with pytest.raises(AssertionError):
            self.run("```text\n3\n```")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("```\nls\n```", "no language"),
            ("    ls\n", "no language"),
            ("```r\nlibrary(Seurat)\n```", "'r'"),
            ("```bash\nls -l\n```", "no command of scgalore"),
            ("```bash\nscgalore run\n```", "Missing data"),
            ("<!-- not run: no wish to -->\n```bash\nls\n```", "none of the reasons"),
            ("<!-- not run: installs packages -->\n```bash\nls\n```", "nothing in the block"),
            ("<!-- not run: needs several processes -->\n```python\n1 / 0\n```", "nothing in the block"),
            ("<!-- not run: no code -->\n```bash\nls -l\n```", "is code"),
            ("<!-- not run: no code -->\n```\na = 1\n```", "DID NOT RAISE"),
            ("<!-- not run: needs a connection -->\n```python\na = 1\n```", "DID NOT RAISE"),
            ("<!-- a comment on the text -->\n```bash\nls\n```", "no command of scgalore"),
        ],
    )
    def test_is_refused(self, text: str, message: str) -> None:
        with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
            self.run(text)

    def test_a_reason_is_of_the_block_below_it(self) -> None:
        assert blocks_of("<!-- takes minutes -->\n\n```bash\na\n```\n```bash\nb\n```") == [
            Block("bash", "a\n", 4, "takes minutes"),
            Block("bash", "b\n", 7, ""),
        ]
