from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.datasets.layouts import GENES, gears, scperturb, vcc

from scgalore.datasets import list_datasets, to_canonical
from scgalore.datasets.canonical import _unique
from scgalore.datasets.registry import Source
from scgalore.errors import DataError, MissingKeyError, OptionError


def column(adata: ad.AnnData, key: str) -> list[str | None]:
    return [None if pd.isna(value) else str(value) for value in adata.obs[key]]


def test_gears() -> None:
    adata = gears()
    found = to_canonical(adata, source="gears", cell_type="K562")
    assert column(found, "perturbation") == ["control", "KLF1", "KLF1", "TP53+KLF1"]
    assert column(found, "perturbation_original") == ["ctrl", "KLF1+ctrl", "ctrl+KLF1", "TP53+KLF1"]
    assert set(column(found, "cell_type")) == {"K562"}
    assert column(found, "batch") == ["1", "2", "1", "2"]
    assert list(found.var_names) == list(GENES.values())
    assert list(found.var["ensembl_id"]) == list(GENES)
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(found.layers["counts"], adata.layers["counts"])
    record = found.uns["dataset"]
    assert (record["source"], record["expression"]) == ("gears", "log-normalised")
    assert any("A549" in note and "K562" in note for note in record["notes"])
    # What is keyed by the old names must not be taken for current.
    assert set(found.uns) == {"log1p", "dataset"}
    assert not any("A549" in str(value) for value in found.obs.to_numpy().ravel())


def test_the_wrong_cell_type_of_norman_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    assert set(column(to_canonical(gears(), source="gears"), "cell_type")) == {"A549"}
    assert 'pass cell_type="K562"' in caplog.text
    caplog.clear()
    to_canonical(gears(cell_type="rpe1"), source="gears")
    assert "K562" not in caplog.text


def test_scperturb() -> None:
    adata = scperturb(["control", "KLF1", "TP53_KLF1", "KLF1_TP53", None, "nan"])
    found = to_canonical(adata, source="scperturb")
    assert column(found, "perturbation") == ["control", "KLF1", "TP53+KLF1", "TP53+KLF1", None, None]
    assert column(found, "perturbation_original") == ["control", "KLF1", "TP53_KLF1", "KLF1_TP53", None, "nan"]
    assert set(column(found, "cell_type")) == {"K562"}
    assert column(found, "batch") == ["0", "1"] * 3
    assert list(found.var["ensembl_id"]) == list(GENES)
    assert found.uns["dataset"]["expression"] == "counts"


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("62(mod)_pBA581", "control"),
        ("Gal4-4(mod)_pBA582", "control"),
        ("3x_neg_ctrl_pMJ144-2", "control"),
        ("CREB1_pDS269", "CREB1"),
        ("XBP1_pBA579", "XBP1"),
        ("ATF6_only_pMJ145", "ATF6"),
        ("PERK_only_pMJ146", "EIF2AK3"),
        ("ATF6_IRE1_pMJ152", "ATF6+ERN1"),
        ("ATF6_PERK_IRE1_pMJ158", "ATF6+EIF2AK3+ERN1"),
        ("*", None),
    ],
)
def test_vectors_of_adamson_are_read_as_genes(label: str, name: str | None) -> None:
    found = to_canonical(scperturb(["63(mod)_pBA580", label]), source="scperturb")
    assert column(found, "perturbation") == ["control", name]
    assert column(found, "perturbation_original") == ["63(mod)_pBA580", label]


def test_vcc() -> None:
    found = to_canonical(vcc(), source="vcc")
    assert column(found, "perturbation") == ["control", "KLF1", "TP53"]
    assert set(column(found, "cell_type")) == {"H1"}
    assert column(found, "batch") == ["Flex_0", "Flex_1", "Flex_0"]
    assert found.uns["dataset"]["expression"] == "counts"


def test_perturbench(shared_data: Path) -> None:
    adata = ad.read_h5ad(shared_data / "perturbench_devel.h5ad")
    found = to_canonical(adata, source="perturbench")
    per_line = found.obs.groupby("cell_type", observed=True)["perturbation"].nunique()
    assert per_line.to_dict() == {"k562": 34, "A172": 10, "T98G": 10, "U87MG": 10}
    assert list(found.obs["perturbation"].cat.categories[:1]) == ["control"]
    assert column(found, "perturbation") == list(adata.obs["perturbation"].astype(str))
    assert column(found, "perturbation_original") == list(adata.obs["perturbation"])
    assert list(found.var_names) == list(adata.var_names)
    assert "ensembl_id" not in found.var
    assert "batch" not in found.obs, "only some of the barcodes end in a lane"
    assert found.uns["dataset"]["expression"] == "log-normalised"
    assert (found.X != adata.X).nnz == 0


@pytest.mark.parametrize(("make", "source"), [(gears, "gears"), (scperturb, "scperturb"), (vcc, "vcc")])
def test_result_survives_a_file_and_the_input_is_as_it_was(
    make: Callable[[], ad.AnnData], source: Source, tmp_path: Path
) -> None:
    adata = make()
    before = adata.copy()
    found = to_canonical(adata, source=source)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert set(adata.uns) == set(before.uns)
    found.write_h5ad(tmp_path / "written.h5ad")
    read = ad.read_h5ad(tmp_path / "written.h5ad")
    assert column(read, "perturbation") == column(found, "perturbation")
    assert read.uns["dataset"]["expression"] == found.uns["dataset"]["expression"]
    adata.write_h5ad(tmp_path / "backed.h5ad")
    backed = to_canonical(ad.read_h5ad(tmp_path / "backed.h5ad", backed="r"), source=source)
    pd.testing.assert_frame_equal(backed.obs, found.obs)


def test_genes_that_share_a_symbol_are_told_apart() -> None:
    adata = gears()
    adata.var["gene_name"] = ["TP53", "TP53", "", None]
    found = to_canonical(adata, source="gears", cell_type="K562")
    # The first id is TP53's; the others have no symbol to show.
    assert list(found.var_names) == ["TP53", "TP53_ENSG00000105610", "ENSG00000175387", "ENSG00000034152"]
    adata.var["gene_name"] = ["KLF1", "KLF1", "SMAD2", "MAP2K3"]
    found = to_canonical(adata, source="gears", cell_type="K562")
    assert list(found.var_names)[:2] == ["KLF1_ENSG00000141510", "KLF1"], "the one that has the symbol today keeps it"


@given(
    st.lists(
        st.tuples(st.sampled_from(["A", "B", "A-1", "A_ENSG00000141510"]), st.sampled_from(["", *GENES])), max_size=8
    )
)
def test_names_are_unique_and_single_ones_stay(genes: list[tuple[str, str]]) -> None:
    symbols, ids = [symbol for symbol, _ in genes], [number for _, number in genes]
    names = _unique(symbols, ids)
    assert len(set(names)) == len(names) == len(genes)
    if len(set(symbols)) == len(symbols):
        assert names == symbols


@pytest.mark.parametrize("missing", ["condition", "cell_type", "gene_name"])
def test_lacking_column_is_named_with_those_that_are_there(missing: str) -> None:
    adata = gears()
    del (adata.var if missing == "gene_name" else adata.obs)[missing]
    with pytest.raises(MissingKeyError, match=missing):
        to_canonical(adata, source="gears")


def test_bad_labels_and_sources() -> None:
    with pytest.raises(DataError, match="control"):
        to_canonical(vcc(["KLF1", "TP53"]), source="vcc")
    with pytest.raises(DataError, match="empty part"):
        to_canonical(gears(["ctrl", "KLF1+"]), source="gears")
    with pytest.raises(OptionError, match="gears, scperturb, perturbench, vcc"):
        to_canonical(gears(), source="pertpy")  # type: ignore[arg-type]
    assert "pertpy" not in list_datasets()
