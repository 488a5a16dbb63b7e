import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tests.in_silico import changed

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError


@pytest.mark.parametrize("target", [False, True])
def test_every_gene_is_a_point_and_those_that_stand_out_have_names(target: bool) -> None:
    adata = changed(target=target)
    ax = sg.pl.in_silico_shifts(adata, "0", n_labels=3, show=False)
    assert isinstance(ax, Axes)
    points = np.concatenate([np.asarray(drawn.get_offsets()) for drawn in ax.collections])
    table = sg.get.in_silico_shifts(adata, "0")
    x = table["towards" if target else "log2_ratio"]
    assert sorted(points[:, 0]) == pytest.approx(sorted(x))
    assert sorted(points[:, 1]) == pytest.approx(sorted(-np.log10(table["p_value"])))
    assert np.asarray(ax.collections[1].get_offsets()).shape == (1, 2)  # G0 alone has a rate below 5 %
    assert [text.get_text() for text in ax.texts][0] == "G0"
    assert len(ax.texts) == 3
    assert ("healthy" in ax.get_xlabel()) == target


def test_no_name_is_written_over_another() -> None:
    adata = changed()
    table = adata.uns["perturb_in_silico"]["shifts"]
    table.loc[1, ["log2_ratio", "p_value"]] = table.loc[0, ["log2_ratio", "p_value"]] * 0.999
    ax = sg.pl.in_silico_shifts(adata, "0", n_labels=2, show=False)
    assert isinstance(ax, Axes)
    assert [text.get_text() for text in ax.texts] == ["G0", "G1"]
    one, other = (text.get_window_extent() for text in ax.texts)
    assert not one.overlaps(other)


def test_axes_that_are_given_are_drawn_on() -> None:
    _, ax = plt.subplots()
    assert sg.pl.in_silico_shifts(changed(), 1, ax=ax) is ax


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(OptionError, match="shifts of 2 groups: '0', '1'. Pass one"):
        sg.pl.in_silico_shifts(changed(), show=False)
    with pytest.raises(OptionError, match="n_labels=-1"):
        sg.pl.in_silico_shifts(changed(), "0", n_labels=-1)
    with pytest.raises(MissingKeyError, match="Call sg.tl.perturb_in_silico"):
        sg.pl.in_silico_shifts(changed(), key="mine")
    adata = changed()
    adata.uns["perturb_in_silico"]["shifts"]["p_value"] = np.nan
    with pytest.raises(DataError, match="n_null=100"):
        sg.pl.in_silico_shifts(adata, "0")
    assert plt.get_fignums() == []
