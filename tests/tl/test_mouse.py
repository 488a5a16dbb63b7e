"""Mouse data with a human vocabulary: read as human orthologs by every tool, and said so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from anndata import AnnData
from tests.screens import screen
from tests.tiny_plugin import tiny_model

import scgalore as sg
from scgalore.data.match import match_genes
from scgalore.data.vocab import GeneVocab
from scgalore.errors import DataError
from scgalore.genes.identifiers import _orthologs, other_names

MOUSE_OF = {human: name for name, human in _orthologs().items() if not name.startswith("ENSMUSG")}
ID_OF = {human: name for name, human in _orthologs().items() if name.startswith("ENSMUSG")}


def with_orthologs(few: AnnData) -> AnnData:
    """Cells with the genes that a mouse has, under their human names."""
    return few[:, [name in MOUSE_OF for name in few.var_names]].copy()


def as_mouse(adata: AnnData, names: dict[str, str] = MOUSE_OF) -> AnnData:
    found = adata.copy()
    found.var_names = [names[name] for name in adata.var_names]
    return found


@pytest.fixture
def human(few: AnnData) -> AnnData:
    return with_orthologs(few)


@pytest.mark.parametrize("names", [MOUSE_OF, ID_OF], ids=["symbols", "ids"])
def test_embedding_and_annotation_are_those_of_the_orthologs(human: AnnData, names: dict[str, str]) -> None:
    model, mouse = tiny_model(human.var_names), as_mouse(human, names)
    sg.tl.embed(human, model)
    sg.tl.embed(mouse, model, species="mouse")
    np.testing.assert_allclose(mouse.obsm["X_scGPT"], human.obsm["X_scGPT"], atol=1e-6)
    genes = mouse.uns["embed"]["genes"]
    assert (genes["species"], genes["with_ortholog"], genes["without_ortholog"]) == ("mouse", human.n_vars, 0)
    assert genes["share"] == 1
    mouse.var_names = [*mouse.var_names[:-2], "Gm1992", "Gm1993"]
    sg.tl.embed(mouse, model, species="mouse")
    assert mouse.uns["embed"]["genes"]["without_ortholog"] == 2
    assert mouse.uns["embed"]["genes"]["dropped"] == ["Gm1992", "Gm1993"]


def test_a_model_of_mouse_cells_reads_human_ones_and_says_what_mouse_ones_need(human: AnnData) -> None:
    mouse = as_mouse(human)
    model = sg.tl.finetune(
        mouse, tiny_model(human.var_names), labels_key="bulk_labels", species="mouse", max_epochs=1, batch_size=32
    )
    assert mouse.uns["finetune"]["params"]["species"] == mouse.uns["finetune"]["genes"]["species"] == "mouse"
    query, other = as_mouse(human, ID_OF), human.copy()
    with pytest.raises(DataError, match="pass species='mouse'"):
        sg.tl.annotate(query, model)
    sg.tl.annotate(query, model, species="mouse")
    sg.tl.annotate(other, model)
    assert query.uns["annotate"]["genes"]["with_ortholog"] == query.n_vars
    np.testing.assert_allclose(query.obsm["X_scGPT"], other.obsm["X_scGPT"], atol=1e-6)
    assert query.obs["scgpt_label"].tolist() == other.obs["scgpt_label"].tolist()


def test_of_several_columns_of_one_ortholog_the_id_keeps_the_token() -> None:
    vocab = GeneVocab.from_genes(["TP53", "POU5F1"])
    names = ["Trp53", ID_OF["TP53"], "Pou5f1", "Gm1992"]
    for order in (names, names[::-1]):
        match = match_genes(order, vocab, species="mouse")
        assert match.token_ids[order.index(ID_OF["TP53"])] == vocab["TP53"]
        assert match.token_ids[order.index("Trp53")] == -1
        assert (match.duplicates, match.without_ortholog) == (("Trp53",), ("Gm1992",))
    assert match.summary() == (
        "2 of 4 genes matched (2 by human ortholog), 1 without a human ortholog, "
        "1 omitted because another column is the same gene"
    )


def test_genes_are_selected_alike_by_symbols_and_ids_of_a_mouse(human: AnnData) -> None:
    found: dict[Any, Any] = {}
    for kind, adata, species in (
        ("human", human, "human"),
        ("symbols", as_mouse(human), "mouse"),
        ("ids", as_mouse(human, ID_OF), "mouse"),
    ):
        sg.tl.select_genes(adata, 40, species=species, must_include=["CD8A"])
        found[kind] = adata.var["selected"].to_numpy()
        matched = adata.uns["select_genes"]["sources"]["n_matched"]
        found[kind, "matched"] = matched.tolist()
        if species == "mouse":
            assert adata.uns["select_genes"]["genes"] == {"with_ortholog": human.n_vars, "without_ortholog": 0}
    assert found["human", "matched"] == found["symbols", "matched"] == found["ids", "matched"]
    assert found["symbols"].tolist() == found["ids"].tolist()


def test_names_that_stand_in_a_column_are_proposed_for_a_selection(human: AnnData) -> None:
    mouse = as_mouse(human)
    mouse.var["feature_name"] = mouse.var_names.astype("category")
    mouse.var_names = [str(i) for i in range(mouse.n_vars)]
    with pytest.raises(DataError, match="pass gene_symbols='feature_name', species='mouse'"):
        sg.tl.select_genes(mouse, 40)
    sg.tl.select_genes(mouse, 40, gene_symbols="feature_name", species="mouse")
    assert mouse.var["selected"].sum() == 40


def test_perturbations_of_mouse_genes_are_those_of_their_orthologs() -> None:
    human = screen(n_cells=6)
    sg.pp.split_perturbations(human, key_added="part")  # one for both, since a split depends on the names
    genes = sorted(set(MOUSE_OF) & set(other_symbols()))[: human.n_vars + 4]
    name_of = dict(zip(human.var_names, genes, strict=False))
    targets = sorted({part for label in human.obs["perturbation"] for part in label.split("+")} - {"ctrl", "control"})
    extra = iter(genes[human.n_vars :])
    name_of |= {target: next(extra) for target in targets if target not in name_of}

    def renamed(table: Callable[[str], str]) -> AnnData:
        adata = human.copy()
        adata.var_names = [table(name_of[name]) for name in human.var_names]
        adata.obs["perturbation"] = [
            "+".join(table(name_of[part]) if part in name_of else part for part in label.split("+"))
            for label in human.obs["perturbation"]
        ]
        return adata

    effects = {}
    for species, table in (("human", str), ("mouse", MOUSE_OF.__getitem__)):
        adata = renamed(table)
        model = sg.tl.finetune(
            adata,
            tiny_model(genes),
            task="perturbation",
            split_key="part",
            species=species,
            max_epochs=1,
            patience=None,
        )
        assert adata.uns["finetune"]["params"]["added_genes"] == []
        assert adata.uns["finetune"]["genes"]["share"] == 1
        sg.tl.predict_perturbation(adata, [table(genes[0])], model=model)
        effects[species] = adata.uns["predict_perturbation"]["effects"].to_numpy()
        assert adata.uns["predict_perturbation"]["genes"]["species"] == species
        by_ortholog = adata.copy()
        sg.tl.predict_perturbation(by_ortholog, [genes[0]], model=model)
        np.testing.assert_allclose(by_ortholog.uns["predict_perturbation"]["effects"], effects[species])
    np.testing.assert_allclose(effects["mouse"], effects["human"], atol=1e-5)


def other_symbols() -> list[str]:
    """Symbols whose mouse ortholog is spelled otherwise than by a capital, or not."""
    return [human for human in MOUSE_OF if other_names(human).kind == "current" and MOUSE_OF[human].isalnum()]


def test_the_mouse_brain_works_with_the_call_that_the_message_proposes(shared_data: Path) -> None:
    adata = anndata.read_h5ad(shared_data / "mouse_brain_1000cells.h5ad")
    model = tiny_model(sorted(set(_orthologs().values())))
    with pytest.raises(DataError, match=r"pass gene_symbols='\w+', species='mouse'") as refused:
        sg.tl.embed(adata, model)
    column = str(refused.value).split("gene_symbols='")[1].split("'")[0]
    sg.tl.embed(adata, model, gene_symbols=column, species="mouse")
    genes = adata.uns["embed"]["genes"]
    assert genes["with_ortholog"] > 1000
    assert genes["with_ortholog"] + genes["without_ortholog"] == adata.n_vars
    assert genes["share"] > 0.9
    # The bundled model knows few of these genes, and none of those that some cells express.
    sg.tl.embed(adata, "scgpt-mini", gene_symbols=column, species="mouse", key_added="X_mini")
    assert np.isfinite(adata.obsm["X_mini"]).all()
