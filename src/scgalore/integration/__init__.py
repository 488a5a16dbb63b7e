"""Scores of batch mixing and cell-type separation as in scib, and Harmony as a baseline; plain NumPy and SciPy."""
