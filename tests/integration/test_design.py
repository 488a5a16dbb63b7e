import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scgalore.errors import DataError, MissingKeyError
from scgalore.integration.design import Design


def cells(batches: list, labels: list) -> AnnData:
    obs = pd.DataFrame({"batch": batches, "label": labels}, index=[f"c{i}" for i in range(len(batches))])
    return AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)


def test_cells_are_counted_by_label_and_batch() -> None:
    design = Design.of(cells([1, 2, 10, 1.0], ["b", "a", "a", "b"]), "batch", "label")
    assert design.batch_names == ("1", "2", "10")
    assert design.label_names == ("a", "b")
    assert design.table().tolist() == [[0, 1, 1], [2, 0, 0]]


@pytest.mark.parametrize("gap", [None, np.nan, "nan", ""], ids=repr)
@pytest.mark.parametrize("key", ["batch", "label"])
def test_missing_values_name_the_column_and_how_to_go_on(key: str, gap: object) -> None:
    adata = cells(["a", "b", "a", "b"], ["x", "x", "y", "y"])
    adata.obs[key] = [gap, *adata.obs[key].tolist()[1:]]
    with pytest.raises(DataError, match=rf"1 of 4 cells have no {key} in adata.obs\['{key}'\].*\.copy\(\)"):
        Design.of(adata, "batch", "label")


def test_one_batch_or_label_and_other_columns_are_refused() -> None:
    with pytest.raises(DataError, match=r"only one batch, 'a'; expected at least two \(batch_key\)"):
        Design.of(cells(["a", "a"], ["x", "y"]), "batch", "label")
    with pytest.raises(DataError, match=r"only one label"):
        Design.of(cells(["a", "b"], ["x", "x"]), "batch", "label")
    with pytest.raises(MissingKeyError, match=r"labels_key='nothing'"):
        Design.of(cells(["a", "b"], ["x", "y"]), "batch", "nothing")
    many = cells([f"barcode {i}" for i in range(100)], ["x", "y"] * 50)
    with pytest.raises(DataError, match="100 different names in 100 cells"):
        Design.of(many, "batch", "label")


def test_doubts_of_designs() -> None:
    def doubts(batches: list, labels: list) -> list[str]:
        return [
            doubt.split(",")[0].split("(")[0].strip()
            for doubt in Design.of(cells(batches, labels), "batch", "label").doubts()
        ]

    assert doubts(["a", "b"] * 4, ["x", "x", "y", "y"] * 2) == []
    assert doubts(["a", "b"] * 4, ["x", "y"] * 4) == ["No label has cells of two batches"]
    assert doubts(["a", "b", *["a"] * 4, *["b"] * 4], ["x", "x", *["y"] * 4, *["z"] * 4])[0].startswith(
        "Only 20% of the cells"
    )
    assert doubts(["a", "b", "c", *["a", "b"] * 2], ["x", "x", "x", *["y", "z", "z", "y"]]) == [
        "Batches with a single cell"
    ]
    assert doubts(["a", "b", "a", "b", "a"], ["x", "x", "x", "x", "y"]) == ["Labels with a single cell"]
