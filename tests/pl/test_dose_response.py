from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tests.screens import screen, write_prediction

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError

DOSES = (10.0, 0.1, 1.0)


def predicted(*contexts: str) -> AnnData:
    """A prediction of two compounds at three doses, of which the first dose was not measured."""
    genes = ["A", "B", "C", "D", "E"]
    names = [(context, f"{drug}@{dose:g}") for context in contexts or ("",) for drug in ("x", "7") for dose in DOSES]
    labels = [f"{context} | {name}" if context else name for context, name in names]
    rows = pd.DataFrame(names, columns=["context", "perturbation"], index=labels)
    rows["compound"] = rows["perturbation"].str.split("@").str[0]
    rows["dose"] = rows["perturbation"].str.split("@").str[1].astype(float)
    effects = pd.DataFrame(np.arange(5.0 * len(names)).reshape(5, -1), genes, labels)
    observed = effects[rows.index[rows["dose"] != DOSES[0]]] + 0.5
    adata = AnnData(np.zeros((2, 5), dtype=np.float32), var=pd.DataFrame(index=genes))
    adata.uns["predict_perturbation"] = {
        "means": effects,
        "effects": effects,
        "rows": rows,
        "observed": observed,
        "params": {},
        "weights": {},
    }
    return adata


def drawn(adata: AnnData, *args: Any, **options: Any) -> dict[str, Any]:
    ax = sg.pl.dose_response(adata, *args, **options, show=False)
    assert isinstance(ax, Axes)
    assert ax.get_xscale() == "log"
    lines = ax.lines[1:-1]  # without zero and the mark of the legend
    legend = ax.get_legend()
    assert legend is not None
    return {"lines": lines[0::2], "circles": lines[1::2], "legend": [text.get_text() for text in legend.get_texts()]}


def test_predicted_and_measured_effects_over_the_dose() -> None:
    adata = predicted()
    found = drawn(adata, "B")
    assert found["legend"] == ["x", "7", "measured"]
    record = adata.uns["predict_perturbation"]
    for line, circles, drug in zip(found["lines"], found["circles"], ("x", "7"), strict=True):
        assert line.get_xdata().tolist() == [0.1, 1, 10]
        assert line.get_ydata().tolist() == [record["effects"].loc["B", f"{drug}@{dose:g}"] for dose in (0.1, 1, 10)]
        assert circles.get_xdata().tolist() == [0.1, 1]
        assert circles.get_ydata().tolist() == [record["observed"].loc["B", f"{drug}@{dose:g}"] for dose in (0.1, 1)]
        assert line.get_color() == circles.get_color()


def test_several_genes_of_one_and_of_several_compounds() -> None:
    adata = predicted("K562", "A549")
    one = drawn(adata, list("ABCDE"), 7, context="A549")
    assert one["legend"] == [*"ABCDE", "measured"]
    assert len({line.get_color() for line in one["lines"]}) == 5
    several = drawn(adata, ["A", "C"], context="K562")
    assert several["legend"] == ["x, A", "x, C", "7, A", "7, C", "measured"]
    assert len({(line.get_color(), line.get_linestyle()) for line in several["lines"]}) == 4


def test_axes_that_are_given_are_drawn_on() -> None:
    _, ax = plt.subplots()
    assert sg.pl.dose_response(predicted(), "A", ax=ax) is ax


def test_what_cannot_be_drawn_is_an_error() -> None:
    adata = predicted("K562", "A549")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (OptionError, "2 contexts: 'K562', 'A549'. Name one", {"genes": "A"}),
        (MissingKeyError, "context: 'HeLa' is not in the prediction", {"genes": "A", "context": "HeLa"}),
        (MissingKeyError, "genes: 'Z' is not in", {"genes": ["A", "Z"], "context": "K562"}),
        (MissingKeyError, "compounds: 'y' is not in", {"genes": "A", "compounds": "y", "context": "K562"}),
        (OptionError, "5 genes of 2 compounds", {"genes": list("ABCDE"), "context": "K562"}),
        (OptionError, "genes is empty", {"genes": [], "context": "K562"}),
        (MissingKeyError, "There is no prediction", {"genes": "A", "key": "mine"}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            sg.pl.dose_response(adata, **options)
    genetic = screen()
    write_prediction(genetic)
    with pytest.raises(DataError, match="perturbed genes, which have no dose"):
        sg.pl.dose_response(genetic, "G00")
    assert plt.get_fignums() == []
