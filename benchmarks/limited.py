"""Embed a backed file in a process whose memory is limited: ``python -m benchmarks.limited PATH BYTES MAX_LENGTH``.

The limit is ``RLIMIT_DATA`` (private writable memory of the process, which is where tensors and arrays live), set once all
is imported. Memory beyond it is refused by the system. Before the embedding, reading the whole file at once is tried,
which has to fail, or the limit would show nothing.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
from benchmarks.side import memory

import scgalore as sg


def data_bytes() -> int:
    """Bytes that count against the limit."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(fields["VmData"].split()[0])


def fails_at_once(path: str) -> bool:
    """Whether the file does not fit when it is read as a whole."""
    try:
        ad.read_h5ad(path)
    except (MemoryError, OSError, RuntimeError):  # numpy's word for it, HDF5's, and that of its wrapper
        return True
    return False


def main(path: str, limit: int, max_length: int) -> None:
    """Set the limit, try both ways, and print what happened as JSON."""
    model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    before = data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    whole_fails = fails_at_once(path)
    adata = ad.read_h5ad(path, backed="r")
    begin = time.perf_counter()
    embedding = model.run(model.cells(adata, max_length=max_length)).embedding
    took = time.perf_counter() - begin
    unit = bool(np.allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-4))
    found = {"whole_fails": whole_fails, "cells": len(embedding), "unit_rows": unit, "seconds": took}
    print(json.dumps({**found, "data_before": before, "peak_rss": memory()[1]}))


if __name__ == "__main__":
    sg.settings.progress = False
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
