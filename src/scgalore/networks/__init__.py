"""Networks of genes, in plain NumPy: edges from weights, correlations, and scores of edges against a truth."""
