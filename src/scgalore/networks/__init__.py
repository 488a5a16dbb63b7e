"""Gene networks in plain NumPy: edges from weights, correlations, and scores of edges against known targets."""
