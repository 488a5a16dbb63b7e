import networkx as nx
import pytest

import scgalore as sg
from scgalore.errors import DataError, MissingKeyError, OptionError


@pytest.fixture
def net(few):
    sg.tl.gene_network(few, groupby="bulk_labels", min_cells=2, n_edges=10)
    return few


def test_columns_that_decoupler_reads(net):
    table = sg.get.gene_network(net)
    assert table.columns.tolist() == ["group", "source", "target", "weight", "rank", "n_cells"]
    assert not table.duplicated(["group", "source", "target"]).any()
    table["weight"] = 0
    assert (sg.get.gene_network(net)["weight"] != 0).any()


def test_some_edges_of_one_group(net):
    label = net.obs["bulk_labels"].cat.categories[1]
    some = sg.get.gene_network(net, group=label, n_edges=4)
    assert some["group"].astype(str).tolist() == [label] * 4
    assert some["rank"].tolist() == [1, 2, 3, 4]
    assert len(sg.get.gene_network(net, n_edges=4)) == 4 * sg.get.gene_network(net)["group"].nunique()


def test_networkx_takes_the_table(net):
    label = net.obs["bulk_labels"].cat.categories[1]
    table = sg.get.gene_network(net, group=label)
    graph = nx.from_pandas_edgelist(table, edge_attr=True, create_using=nx.DiGraph)
    assert graph.number_of_edges() == len(table)
    first = table.iloc[0]
    assert graph[first["source"]][first["target"]]["weight"] == pytest.approx(first["weight"])


def test_what_is_not_there(net, few):
    with pytest.raises(OptionError, match="group='B'"):
        sg.get.gene_network(net, group="B")
    with pytest.raises(OptionError, match="versus="):
        sg.get.gene_network(net, versus="B")
    with pytest.raises(MissingKeyError, match="sg.tl.gene_network"):
        sg.get.gene_network(net, key="other")
    with pytest.raises(DataError, match="Expected an AnnData"):
        sg.get.gene_network(net.obs)
