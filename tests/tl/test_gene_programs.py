import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from mudata import MuData

import scgalore as sg
from scgalore.errors import DataError, OptionError

RESIDENT = {
    "MHC-II": [f"HLA-D{name}" for name in ("RA", "RB1", "RB5", "PA1", "PB1", "QA1", "QB1", "MA", "MB")] + ["CD74"],
    "cytotoxic": [
        "NKG7",
        "GNLY",
        "PRF1",
        "GZMA",
        "GZMB",
        "GZMH",
        "GZMK",
        "GZMM",
        "CST7",
        "CTSW",
        "KLRD1",
        "KLRB1",
        "FGFBP2",
        "SPON2",
        "HOPX",
        "CCL5",
        "CCL4",
    ],
}


@pytest.fixture
def programs(pbmc):
    sg.tl.gene_programs(pbmc, "scgpt-mini", gene_sets=RESIDENT)
    return pbmc


def test_programs_of_blood(programs):
    found = programs.uns["gene_programs"]["enrichment"]
    best = found.drop_duplicates("gene_set").set_index("gene_set")
    for name in RESIDENT:
        assert best.loc[name, "fdr"] < 1e-5
    # Where the genes of a program are expressed, it is active.
    activity = pd.DataFrame(programs.obsm["X_gene_programs"], index=programs.obs_names)
    by_type = activity.groupby(programs.obs["bulk_labels"].astype(str)).mean()
    assert by_type[int(best.loc["cytotoxic", "program"])].idxmax() == "CD56+ NK"
    assert by_type[int(best.loc["MHC-II", "program"])].idxmax() in {"Dendritic", "CD14+ Monocyte", "CD19+ B"}


def test_what_is_written_agrees(programs):
    record, program = programs.uns["gene_programs"], programs.var["gene_program"]
    sizes = program.value_counts()
    assert record["programs"]["n_genes"].tolist() == sizes.loc[record["programs"].index].tolist()
    assert sizes.min() >= 5
    assert record["programs"]["n_genes"].is_monotonic_decreasing
    assert programs.obsm["X_gene_programs"].shape == (programs.n_obs, len(record["programs"]))
    first = record["enrichment"].iloc[0]
    genes = set(programs.var_names[program == first["program"]])
    members = {**RESIDENT, **{name: sg.genes.get_gene_set(name).genes for name in sg.genes.list_gene_sets()}}
    assert first["n_overlap"] == len(genes & set(members[first["gene_set"]]))
    for label, row in record["programs"].iterrows():
        assert set(row["genes"].split(", ")) <= set(programs.var_names[program == label])


def test_order_and_container_change_nothing(pbmc, tmp_path):
    pbmc = pbmc[:, :300].copy()
    options = {"kind": "contextual", "resolution": 1.0}
    wanted = sg.tl.gene_programs(pbmc, "scgpt-mini", **options, copy=True)
    assert "gene_programs" not in pbmc.uns
    pbmc.write_h5ad(tmp_path / "x.h5ad")
    backed = sc.read_h5ad(tmp_path / "x.h5ad", backed="r")
    rng = np.random.default_rng(0)
    shuffled = pbmc[rng.permutation(pbmc.n_obs), rng.permutation(pbmc.n_vars)].copy()
    data = MuData({"rna": pbmc.copy()})
    for adata, given in [(backed, backed), (shuffled, shuffled), (data["rna"], data)]:
        sg.tl.gene_programs(given, "scgpt-mini", **options)
        program = adata.var["gene_program"].astype(str).loc[wanted.var_names]
        assert program.tolist() == wanted.var["gene_program"].astype(str).tolist()
        activity = pd.DataFrame(adata.obsm["X_gene_programs"], index=adata.obs_names).loc[wanted.obs_names]
        np.testing.assert_allclose(activity, wanted.obsm["X_gene_programs"], atol=1e-5)
    wanted.write_h5ad(tmp_path / "y.h5ad")
    again, written = (
        sc.read_h5ad(tmp_path / "y.h5ad").uns["gene_programs"]["enrichment"],
        wanted.uns["gene_programs"]["enrichment"],
    )
    pd.testing.assert_frame_equal(again, written, check_dtype=False, check_column_type=False)


def test_bad_input_is_named_before_anything_is_written(pbmc):
    cases = [
        (OptionError, "resolution=0", {"resolution": 0}),
        (OptionError, "n_neighbors=1", {"n_neighbors": 1}),
        (OptionError, "name of one that ships", {"gene_sets": {"hallmark_hypoxia": ["A"]}}),
        (OptionError, "gene_sets=3", {"gene_sets": 3}),
        (DataError, "No gene of the 2 sets of gene_sets", {"gene_sets": {"a": ["NOPE"], "b": ["ENSG1"]}}),
        (DataError, "min_cells=5000", {"min_cells": 5000}),
        (DataError, "min_genes=5000", {"min_genes": 5000}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            sg.tl.gene_programs(pbmc, "scgpt-mini", **options)
    assert "gene_programs" not in pbmc.uns


def test_a_set_without_genes_is_named(pbmc, caplog):
    sg.tl.gene_programs(pbmc[:, :300].copy(), "scgpt-mini", gene_sets={"mine": pbmc.var_names[:20], "other": ["NOPE"]})
    assert "1 of 2 sets of gene_sets, 'other', have no gene among the" in caplog.text


def test_programs_of_the_whole_transcriptome(shared_data):
    adata = sc.read_h5ad(shared_data / "citeseq_500cells_citefuse.h5ad")
    ribosomal = adata.var_names[adata.var_names.str.match(r"RP[LS]\d+[AXYL]?\d*$")].tolist()
    sg.tl.gene_programs(adata, "scgpt-mini", gene_sets={**RESIDENT, "ribosomal": ribosomal})
    best = adata.uns["gene_programs"]["enrichment"].drop_duplicates("gene_set").set_index("gene_set")["fdr"]
    assert (best.loc[[*RESIDENT, "ribosomal", "cell_cycle_g2m_tirosh", "cell_cycle_s_tirosh"]] < 1e-5).all()
