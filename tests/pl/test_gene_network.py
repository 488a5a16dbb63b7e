import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

import scgalore as sg
from scgalore.errors import MissingKeyError, OptionError
from scgalore.pl._gene_network import DOWN, UP


@pytest.fixture
def net(few):
    sg.tl.gene_network(few, groupby="bulk_labels", min_cells=2, n_edges=None)
    return few


def drawn(adata, *args, **options):
    ax = sg.pl.gene_network(adata, *args, **options, show=False)
    assert isinstance(ax, Axes)
    names = {text.get_text() for text in ax.texts if text.get_text()}
    arrows = [text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None) is not None]
    return names, arrows


def test_the_strongest_edges_of_one_regulator(net):
    label = net.obs["bulk_labels"].cat.categories[1]
    table = sg.get.gene_network(net, group=label)
    source = table["source"].iloc[7]
    best = table[table["source"] == source].head(6)
    names, arrows = drawn(net, source, group=label, n_edges=6)
    assert names == {source, *best["target"]}
    assert len(arrows) == 6
    colors = [UP if weight > 0 else DOWN for weight in best["weight"]]
    assert [arrow.get_edgecolor()[:3] for arrow in arrows] == [to_rgba(color)[:3] for color in colors]
    widths = [arrow.get_linewidth() for arrow in arrows]
    assert widths == sorted(widths, reverse=True)


def test_several_regulators_share_targets(net):
    label = net.obs["bulk_labels"].cat.categories[1]
    sources = list(dict.fromkeys(sg.get.gene_network(net, group=label)["source"]))[:2]
    names, arrows = drawn(net, sources, group=label, n_edges=5)
    assert len(arrows) == 10
    assert set(sources) < names


@pytest.mark.parametrize(("n_sources", "n_edges"), [(1, 40), (6, 15)])
def test_no_name_is_written_over_another(net, n_sources, n_edges):
    label = net.obs["bulk_labels"].cat.categories[1]
    sources = list(dict.fromkeys(sg.get.gene_network(net, group=label)["source"]))[:n_sources]
    ax = sg.pl.gene_network(net, sources, group=label, n_edges=n_edges, show=False)
    ax.figure.draw_without_rendering()
    names = [text for text in ax.texts if text.get_text() and text.get_text() not in sources]
    places = np.array([ax.transData.transform(text.get_position()) for text in names])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e6 * np.eye(len(names))
    assert len(names) > 25
    assert apart.min() > names[0].get_fontsize() / 72 * ax.figure.dpi
    edges = ax.figure.bbox
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert all(edges.x0 <= box.x0 and box.x1 <= edges.x1 and edges.y0 <= box.y0 and box.y1 <= edges.y1 for box in boxes)


def test_names_are_smaller_where_axes_are_small(net):
    label = net.obs["bulk_labels"].cat.categories[1]
    _, ax = plt.subplots(figsize=(4, 4))
    sources = list(dict.fromkeys(sg.get.gene_network(net, group=label)["source"]))[:5]
    assert sg.pl.gene_network(net, sources, group=label, ax=ax) is ax
    assert max(text.get_fontsize() for text in ax.texts if text.get_text() and text.get_text() not in sources) < 8


def test_the_regulator_of_the_strongest_edge_is_drawn_where_none_is_named(few):
    sg.tl.gene_network(few, min_cells=2)
    names, _ = drawn(few)
    assert sg.get.gene_network(few)["source"].iloc[0] in names


def test_what_is_not_there(net, few):
    label = net.obs["bulk_labels"].cat.categories[1]
    with pytest.raises(OptionError, match="group=None"):
        sg.pl.gene_network(net)
    with pytest.raises(OptionError, match="n_edges=0"):
        sg.pl.gene_network(net, group=label, n_edges=0)
    with pytest.raises(OptionError, match="n_genes=0"):
        sg.pl.attention(net, group=label, n_genes=0)
    with pytest.raises(OptionError, match="source='NOPE'"):
        sg.pl.gene_network(net, "NOPE", group=label)
    with pytest.raises(MissingKeyError, match="There is no network"):
        sg.pl.gene_network(net, key="other")


def test_heat_map_has_the_weights(net):
    label = net.obs["bulk_labels"].cat.categories[1]
    table = sg.get.gene_network(net, group=label)
    sources, targets = list(dict.fromkeys(table["source"]))[:3], list(dict.fromkeys(table["target"]))[:5]
    ax = sg.pl.attention(net, sources, targets, group=label, show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == sources
    assert [text.get_text() for text in ax.get_xticklabels()] == targets
    shown = ax.collections[0].get_array().reshape(3, 5)
    weights = table.set_index(["source", "target"])["weight"]
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            if (source, target) in weights.index:
                assert shown[i, j] == pytest.approx(weights[source, target])
            else:
                assert np.ma.getmaskarray(shown)[i, j]


def test_heat_map_of_a_difference(net):
    one, other = net.obs["bulk_labels"].cat.categories[:2]
    difference = sg.get.gene_network(net, group=one, versus=other).set_index(["source", "target"])["weight"]
    source, target = difference.index[0]
    ax = sg.pl.attention(net, [source], [target], group=one, versus=other, show=False)
    assert ax.collections[0].get_array().ravel()[0] == pytest.approx(difference.iloc[0])
    assert ax.collections[0].norm.vmin == -ax.collections[0].norm.vmax
    with pytest.raises(OptionError, match="target='NOPE'"):
        sg.pl.attention(net, [source], ["NOPE"], group=one)


def test_heat_map_takes_genes_whose_edges_were_kept(few):
    # Of each regulator one strong edge to a target of its own, and weaker ones to targets that all have.
    strong = [(f"R{i}", f"OWN{i}", 1.0) for i in range(6)]
    weak = [(f"R{i}", f"ALL{j}", 0.5) for i in range(6) for j in range(4)]
    table = pd.DataFrame(strong + weak, columns=["source", "target", "weight"]).assign(group="all", rank=1, n_cells=9)
    sg.tl.gene_network(few, min_cells=2)
    few.uns["gene_network"]["edges"] = table
    ax = sg.pl.attention(few, n_genes=4, show=False)
    assert {text.get_text() for text in ax.get_xticklabels()} == {f"ALL{j}" for j in range(4)}
    assert not np.ma.getmaskarray(ax.collections[0].get_array()).any()
    ax = sg.pl.attention(few, target="OWN5", show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["R5"]
    ax = sg.pl.attention(few, "R2", n_genes=2, show=False)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["OWN2", "ALL0"]
