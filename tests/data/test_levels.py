import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from tests.scberts import original

from scgalore.data.levels import expression_classes
from scgalore.data.tokenizer import Tokenizer
from scgalore.data.tokens import TokenizerConfig


def csr_of(counts):
    return sp.csr_matrix(np.asarray(counts, dtype=np.float32))


def test_classes_of_the_original(agree):
    z = original()
    rows = csr_of(z["counts"])
    tokens = np.zeros_like(z["tokens"])  # a class for each gene, and the trailing 0
    tokens[rows.nonzero()] = expression_classes(rows.data, rows.indptr, 6)
    agree("scbert/tokens", tokens, z["tokens"])
    np.testing.assert_array_equal(np.minimum(np.floor(z["log2"]), 5), tokens[:, :-1])


@given(st.lists(st.lists(st.integers(0, 300), min_size=4, max_size=30), min_size=1, max_size=4))
def test_classes_are_the_formula_in_whole_numbers(cells):
    width = max(map(len, cells))
    rows = csr_of([cell + [0] * (width - len(cell)) for cell in cells])
    found = expression_classes(rows.data, rows.indptr, 6)
    expected = []
    for cell in cells:
        depth = sum(cell)
        # floor(log2(1 + 10,000 c / depth)) by whole numbers alone
        expected += [min(((10_000 * c + depth) // depth).bit_length() - 1, 5) for c in cell if c]
    assert found.tolist() == expected


@given(st.integers(0, 1000), st.sampled_from([math.e, 2.0, 10.0]), st.floats(0.01, 100))
def test_logarithms_of_scaled_counts_have_the_classes_of_the_counts(seed, base, scale):
    counts = np.random.default_rng(seed).poisson(1.0, (3, 80))
    counts[:, 0] += 1
    rows = csr_of(counts)
    logged = (np.log1p(rows.data * scale) / math.log(base)).astype(np.float32)
    expected = expression_classes(rows.data, rows.indptr, 6)
    np.testing.assert_array_equal(expression_classes(logged, rows.indptr, 6, log_base=base), expected)


@pytest.mark.parametrize("count", [1, 3, 7, 15, 31])
def test_edges_belong_to_the_upper_class(count):
    cell = csr_of([[count, 10_000 - count]])
    logged = np.log1p(cell.data)
    for values, base in ((cell.data, None), (logged, math.e)):
        assert expression_classes(values, cell.indptr, 6, log_base=base)[0] == math.log2(count + 1)


# As tokens --------------------------------------------------------------------------------------------------------

CLS, PAD = 8, 9


def tokenizer(token_ids, *, log_base=None, admitted=None, **options):
    config = TokenizerConfig(n_bins=6, cls_value=0, pad_value=0, classes=True, **options)
    special = {"cls_id": CLS, "pad_id": PAD}
    return Tokenizer(token_ids, **special, config=config, vocabulary=np.arange(8), log_base=log_base, admitted=admitted)


def test_every_gene_is_a_token_where_the_network_reads_all():
    made = tokenizer([5, -1, 2], every_gene=True)
    rows = csr_of([[1, 50, 3], [0, 1, 2]])
    tokens = made.encode(rows, [0, 1])
    np.testing.assert_array_equal(tokens.genes.reshape(2, 9), [[CLS, *range(8)]] * 2)
    values = tokens.values.reshape(2, 9)
    assert values[0, [3, 6]].tolist() == [5, 5]
    assert values.sum() == 15  # of 7,500, 2,500 and 10,000
    assert made.lengths(rows).tolist() == tokens.lengths.tolist() == [9, 9]


def test_genes_of_class_0_are_no_tokens_elsewhere():
    made = tokenizer([0, 1, 2])
    rows = csr_of([[1, 20_000, 0], [0, 0, 4]])
    tokens = made.encode(rows, [0, 1])
    assert tokens.genes.tolist() == [CLS, 1, CLS, 2]
    assert made.lengths(rows).tolist() == [2, 2]


@given(st.integers(0, 1000), st.booleans())
def test_lengths_tokens_and_columns_agree(seed, every_gene):
    rng = np.random.default_rng(seed)
    rows = csr_of(rng.poisson(0.3, (6, 7)) * rng.choice([1, 3000], (6, 7)))
    order = rng.permutation(7)
    made, other = tokenizer(np.arange(7), every_gene=every_gene), tokenizer(order, every_gene=every_gene)
    tokens = made.encode(rows, np.arange(6))
    np.testing.assert_array_equal(made.lengths(rows), tokens.lengths)
    moved = other.encode(rows[:, order], np.arange(6))
    np.testing.assert_array_equal(moved.genes, tokens.genes)
    np.testing.assert_array_equal(moved.values, tokens.values)


@pytest.mark.parametrize("every_gene", [False, True])
def test_admitted_genes_have_the_classes_they_have_among_all(every_gene):
    rows = csr_of([[1, 2, 7000, 0, 0, 0, 0, 1]])
    whole = tokenizer(np.arange(8), every_gene=every_gene).encode(rows, [0])
    made = tokenizer(np.arange(8), every_gene=every_gene, admitted=[1, 2, 4])
    part = made.encode(rows, [0])
    expected = dict(zip(whole.genes.tolist(), whole.values.tolist(), strict=True))
    assert part.genes.tolist() == ([CLS, 1, 2, 4] if every_gene else [CLS, 1, 2])
    assert all(expected[gene] == value for gene, value in zip(part.genes.tolist(), part.values.tolist(), strict=True))
    assert made.lengths(rows).tolist() == part.lengths.tolist()
