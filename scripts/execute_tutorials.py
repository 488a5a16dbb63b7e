"""Run the notebooks in ``tutorials`` and keep their outputs.

Run ``python scripts/execute_tutorials.py [NOTEBOOK ...]``; all of them if none is named. Each runs from its first to its last
cell in a fresh kernel and an empty folder, so that nothing is left behind and no path of the machine gets in. A notebook that
fails is left as it was.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def execute(path: Path) -> NotebookNode:
    """Give a notebook with new outputs; the file is not changed."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        # Times of execution and folded cells would make every run look like a change.
        cell.metadata.clear()
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=900,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        # Warnings of other packages would put the paths of this machine into the page.
        client.execute(env=_environment())
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _environment() -> dict[str, str]:
    import os

    outer = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return {**outer, "PYTHONWARNINGS": "ignore"}


def main() -> None:
    """Execute the notebooks named on the command line."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(TUTORIALS.glob("*.ipynb")):
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells, {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
