from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from mudata import MuData
from tests.tiny_plugin import tiny_model
from tests.trained_screens import GENES, TRAINING, counts, log_normalised, untrained

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError
from scgalore.model import SCGPT

KEY = "perturb_in_silico"
QUICK: dict[str, Any] = {"n_cells": 10, "n_null": 25, "min_cells": 3, "accelerator": "cpu"}
COLUMNS = [
    "gene",
    "group",
    "n_cells",
    "expression",
    "dose",
    "shift",
    "shift_expected",
    "log2_ratio",
    "p_value",
    "p_adjusted",
]
TOWARDS = ["towards", "towards_expected", "towards_p_value", "towards_p_adjusted"]
REGRESSION = ["coexpression_size", "agreement"]


@pytest.fixture
def model(few: AnnData) -> SCGPT:
    return tiny_model([*few.var_names, "ABSENT"], mvc=True, max_length=200)


def run(adata: Any, genes: Any, model: Any, **options: Any) -> pd.DataFrame:
    sg.tl.perturb_in_silico(adata, genes, model=model, **{**QUICK, **options})
    return adata.uns[options.get("key_added") or KEY]["shifts"]


def common(adata: AnnData, n: int) -> list[str]:
    """The genes that most cells express."""
    share = (adata.X.toarray() > 0).mean(axis=0)
    return adata.var_names[np.argsort(-share, kind="stable")[:n]].tolist()


class TestTables:
    def test_one_row_for_each_gene_and_group_ranked_within_the_group(self, few: AnnData, model: SCGPT) -> None:
        genes = common(few, 6)
        shifts = run(few, genes, model, groupby="bulk_labels", rng=1)
        assert list(shifts.columns) == [*COLUMNS, *REGRESSION]
        groups = sorted(few.obs["bulk_labels"].unique())
        assert shifts["group"].tolist() == np.repeat(groups, 6).tolist()
        for _, table in shifts.groupby("group"):
            assert sorted(table["gene"]) == sorted(genes)
            ratios = table["log2_ratio"].to_numpy()
            assert (np.diff(ratios[np.isfinite(ratios)]) <= 0).all()
        assert few.uns[KEY]["n_cells"]["n_cells"].tolist() == [10, 10, 10]

    def test_a_target_adds_columns_and_orders_by_them(self, few: AnnData, model: SCGPT) -> None:
        label = few.obs["bulk_labels"].iloc[0]
        shifts = run(few, common(few, 8), model, target_key="bulk_labels", target=label)
        assert list(shifts.columns) == [*COLUMNS, *TOWARDS, *REGRESSION]
        assert (np.diff(shifts["towards"]) <= 0).all()
        assert few.uns[KEY]["params"]["target"] == label

    def test_none_takes_all_genes_that_enough_cells_express(self, few: AnnData, model: SCGPT) -> None:
        shifts = run(few, None, model, n_cells=few.n_obs, min_cells=30, n_null=0, n_effects=0)
        n_cells = pd.Series((few.X.toarray() > 0).sum(axis=0), index=few.var_names)
        assert sorted(shifts["gene"]) == sorted(n_cells.index[n_cells >= 30])
        assert shifts["n_cells"].tolist() == n_cells[shifts["gene"]].tolist()
        assert shifts["p_value"].isna().all()
        assert (np.diff(shifts["shift"]) <= 0).all()

    def test_effects_are_the_largest_of_both_predictions_without_the_gene_itself(
        self, few: AnnData, model: SCGPT
    ) -> None:
        genes = common(few, 3)
        run(few, genes, model, n_effects=few.n_vars, n_cells=few.n_obs)
        whole = few.uns[KEY]["effects"]
        run(few, genes, model, n_effects=5, n_cells=few.n_obs)
        top = few.uns[KEY]["effects"]
        for gene in genes:
            of_gene = whole[whole["gene"] == gene].set_index("target")
            assert gene not in of_gene.index
            expected = {name for by in ("effect", "coexpression") for name in of_gene[by].abs().nlargest(5).index}
            kept = top[top["gene"] == gene]
            assert set(kept["target"]) == expected
            assert (np.diff(kept["effect"].abs()) <= 0).all()
            x = few.X.toarray().astype(float)
            x_gene, mean = x[:, few.var_names.get_loc(gene)], x[:, few.var_names.get_loc(gene)].mean()
            target = of_gene["coexpression"].abs().idxmax()
            slope = np.polyfit(x_gene, x[:, few.var_names.get_loc(target)], 1)[0]
            assert of_gene.loc[target, "coexpression"] == pytest.approx(-slope * mean, rel=1e-4)

    def test_a_network_without_the_decoder_has_effects_by_regression_alone(self, few: AnnData) -> None:
        run(few, common(few, 2), tiny_model(few.var_names, mvc=False))
        effects = few.uns[KEY]["effects"]
        assert effects["effect"].isna().all()
        assert len(effects)
        assert effects["coexpression"].notna().all()
        assert few.uns[KEY]["shifts"]["agreement"].isna().all()

    def test_a_gene_that_is_not_measured_can_be_added(self, few: AnnData, model: SCGPT) -> None:
        shifts = run(few, ["ABSENT"], model, mode="overexpress", level=2.0)
        assert shifts["n_cells"].tolist() == [10]
        assert (shifts["shift"] > 0).all()
        assert few.uns[KEY]["effects"]["coexpression"].isna().all()


class TestSameNumbers:
    def test_seed_order_of_cells_genes_and_other_genes_of_the_call_do_not_matter(
        self, few: AnnData, model: SCGPT
    ) -> None:
        genes = common(few, 5)
        first = run(few, genes, model).set_index("gene")
        rng = np.random.default_rng(0)
        shuffled = few[rng.permutation(few.n_obs), rng.permutation(few.n_vars)].copy()
        again = run(shuffled, genes[::-1], model).set_index("gene").loc[first.index]
        pd.testing.assert_frame_equal(first, again, rtol=1e-4, atol=1e-7)
        alone = run(few, genes[2], model).set_index("gene")
        for name in ("shift", "shift_expected", "p_value", "coexpression_size"):
            assert alone.loc[genes[2], name] == pytest.approx(first.loc[genes[2], name], rel=1e-4)
        other = run(few, genes, model, rng=5).set_index("gene").loc[first.index]
        assert not np.allclose(other["shift"], first["shift"], rtol=1e-3)

    def test_blocks_of_genes_change_nothing(self, few: AnnData, model: SCGPT, monkeypatch: pytest.MonkeyPatch) -> None:
        first = run(few, common(few, 9), model)
        monkeypatch.setattr("scgalore.tl._in_silico_tables.BLOCK", 4 * few.n_vars)
        pd.testing.assert_frame_equal(run(few, common(few, 9), model), first, rtol=1e-4, atol=1e-7)


class TestWriting:
    def test_results_survive_a_file(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        run(few, common(few, 2), model, groupby="bulk_labels")
        few.write_h5ad(tmp_path / "cells.h5ad")
        read = anndata.read_h5ad(tmp_path / "cells.h5ad")
        pd.testing.assert_frame_equal(
            sg.get.in_silico_shifts(read), sg.get.in_silico_shifts(few), check_dtype=False, check_index_type=False
        )
        assert read.uns[KEY]["params"]["mode"] == "knockout"

    def test_copy_and_key(self, few: AnnData, model: SCGPT) -> None:
        changed = sg.tl.perturb_in_silico(few, common(few, 2), model=model, copy=True, key_added="mine", **QUICK)
        assert isinstance(changed, AnnData)
        assert "mine" in changed.uns
        assert not {"mine", KEY} & set(few.uns)

    def test_a_mudata_gets_them_in_its_modality(self, few: AnnData, model: SCGPT) -> None:
        mdata = MuData({"rna": few})
        sg.tl.perturb_in_silico(mdata, common(few, 2), model=model, **QUICK)
        assert KEY in mdata["rna"].uns

    def test_a_backed_file_gives_the_same(self, few: AnnData, model: SCGPT, tmp_path: Path) -> None:
        genes = common(few, 2)
        few.write_h5ad(tmp_path / "cells.h5ad")
        backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        pd.testing.assert_frame_equal(run(backed, genes, model), run(few, genes, model), rtol=1e-5)
        backed.file.close()


class TestBadInput:
    @pytest.mark.parametrize(
        ("genes", "options", "error", "says"),
        [
            (["NOBODY"], {}, DataError, "1 of 1 genes are not in the vocabulary of the model: 'NOBODY'"),
            (["ABSENT"], {}, DataError, "not measured in these data"),
            (["NOBODY"], {"mode": "overexpress", "level": 2}, DataError, "not in the vocabulary"),
            ([], {}, OptionError, "expected names of genes"),
            ([3], {}, OptionError, "expected names of genes"),
            ("ABSENT", {"mode": "overexpress"}, OptionError, "level=None"),
            ("ABSENT", {"n_cells": 0}, OptionError, "n_cells=0"),
            ("ABSENT", {"n_null": 1.5}, OptionError, "n_null=1.5"),
            ("ABSENT", {"n_null": 6}, OptionError, "n_null=6: too few random genes.*Pass at least 7"),
            (None, {"min_cells": 1000}, DataError, "Decrease min_cells"),
            ("ABSENT", {"groupby": "kind"}, MissingKeyError, "groupby='kind' is not a column"),
            ("ABSENT", {"target_key": "bulk_labels", "target": "T"}, MissingKeyError, "No cell is labelled 'T'"),
            ("ABSENT", {"key_added": "a/b"}, OptionError, "key_added='a/b'"),
        ],
    )
    def test_is_refused_and_nothing_is_written(
        self, few: AnnData, model: SCGPT, genes: Any, options: dict[str, Any], error: type[Exception], says: str
    ) -> None:
        before = set(few.uns)
        with pytest.raises(error, match=says):
            run(few, genes, model, **options)
        assert set(few.uns) == before

    def test_a_gene_that_no_chosen_cell_expresses_cannot_be_knocked_out(self, few: AnnData, model: SCGPT) -> None:
        few.X[:, 3] = 0
        few.X.eliminate_zeros()
        with pytest.raises(DataError, match="not expressed in any of the 10 chosen cells: .*Omit them"):
            run(few, [few.var_names[3]], model)
        assert run(few, [few.var_names[3]], model, mode="set", level=1.0).loc[0, "n_cells"] == 10

    def test_two_names_of_one_gene_are_refused(self, few: AnnData) -> None:
        few.var_names = ["CD19", *few.var_names[1:]]
        few.X[:, 0] = 1.5
        with pytest.raises(OptionError, match="more than once, under different names: 'ENSG00000177455'"):
            run(few, ["CD19", "ENSG00000177455"], tiny_model(few.var_names))

    def test_a_model_of_a_screen_is_for_another_function(self) -> None:
        adata = log_normalised(counts())
        model = sg.tl.finetune(adata, untrained(), task="perturbation", split_key="split", **TRAINING)
        with pytest.raises(OptionError, match="sg.tl.predict_perturbation"):
            run(adata, [GENES[0]], model)

    def test_a_network_that_reads_batches_is_refused(self, few: AnnData) -> None:
        model = tiny_model(few.var_names, batch_norm="per-batch", n_batches=2)
        with pytest.raises(OptionError, match="normalises its input within each sequencing batch"):
            run(few, common(few, 1), model)

    def test_what_was_measured_of_the_bundled_weights_is_said_once(
        self, pbmc: AnnData, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(2):
            run(pbmc, "CD74", "scgpt-mini", n_cells=3, n_null=0)
        assert sum("no relation to 104 real activations" in record.message for record in caplog.records) == 1
