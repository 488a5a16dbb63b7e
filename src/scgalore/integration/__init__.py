"""How well batches are mixed and cell types are kept apart: scib's scores, and Harmony as a baseline; plain NumPy and SciPy."""
