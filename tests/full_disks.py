"""Write models while the kernel takes no more bytes: ``python full_disks.py FOLDER``. Prints what came of each, as JSON.

A limit on the size of files stands for a full disk: the same calls fail at the same place, with another number.
"""

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

import scgalore as sg
from scgalore._files import whole_file
from scgalore.model.adapter_files import write_adapter
from scgalore.model.training import AdapterWeights


def main(folder: Path) -> None:
    """Write each kind of folder and file within a limit that it exceeds."""
    model = sg.model.SCGPT.from_pretrained("scgpt-mini")
    genes = list(model.vocab.to_dict())[:60]
    adata = AnnData(
        np.random.default_rng(0).poisson(2, (12, 60)).astype("float32"),
        obs=pd.DataFrame({"kind": ["a", "b"] * 6}, index=[str(i) for i in range(12)]),
        var=pd.DataFrame(index=genes),
    )
    train: dict[str, Any] = {"labels_key": "kind", "max_epochs": 1, "validation_size": 0.0}
    adapter = AdapterWeights("lora", {"rank": 4}, {"a": torch.zeros(20_000)}, {})
    known: dict[str, Any] = {"base": model.provenance, "heads": {}, "memory": None}
    found: dict[str, Any] = {}

    def attempt(name: str, call: Callable[[], object]) -> None:
        before = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        try:
            call()
        except Exception as error:  # noqa: BLE001 -- which it is, is what is asked
            found[name] = [type(error).__name__, str(error)]
        else:
            found[name] = ["written", ""]
        after = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        found[name].append(before == after)

    def write(path: Path) -> None:
        with whole_file(path) as draft:
            draft.write_bytes(bytes(1 << 22))

    model.save(folder / "old")
    model.export_scgpt(folder / "theirs")
    write_adapter(folder / "adapter", adapter, **known, overwrite=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    attempt("save", lambda: model.save(folder / "new" / "model"))
    attempt("overwrite", lambda: model.save(folder / "old", overwrite=True))
    attempt("export", lambda: model.export_scgpt(folder / "theirs", overwrite=True))
    many = adata[np.arange(600) % 12].copy()
    many.obs_names_make_unique()
    attempt("reference", lambda: sg.tl.build_reference(many, model, labels="kind", path=folder / "atlas.h5"))
    attempt("adapter", lambda: write_adapter(folder / "adapter", adapter, **known, overwrite=True))
    attempt("checkpoint", lambda: model.train(adata, **train, checkpoint_dir=folder / "run"))
    attempt("file", lambda: write(folder / "file"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    own, shipped = model.network.state_dict(), sg.model.load("scgpt-mini").network.state_dict()
    found["same weights"] = all(torch.equal(tensor, shipped[name]) for name, tensor in own.items())
    sg.model.load(folder / "old")
    sg.model.load(folder / "theirs")
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
