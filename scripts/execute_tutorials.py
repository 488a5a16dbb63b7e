"""Run the notebooks in ``tutorials`` and keep their outputs.

Run ``python scripts/execute_tutorials.py [NOTEBOOK ...]``; all of them if none is named. Each runs from its first to its last
cell in a fresh kernel and an empty folder. A notebook that fails is left as it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import nbformat
from nbclient import NotebookClient

if TYPE_CHECKING:
    from nbformat import NotebookNode

TUTORIALS = Path(__file__).parents[1] / "tutorials"

# Those of the machine at hand would make every run look like a change.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> NotebookNode:
    """Give a notebook with new outputs; the file is not changed."""
    notebook = nbformat.read(path, as_version=4)
    # Warnings of other packages carry paths of this machine. Without a backend chosen, figures appear in the notebook.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment["PYTHONWARNINGS"] = "ignore"
    environment["SCGALORE_PROGRESS"] = "0"  # a bar that has ended is of no use to a reader
    # Commands in notebooks mean this interpreter.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=1200,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=environment)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if "text" in output:  # messages name files by their whole path
                    output.text = output.text.replace(f"{folder}{os.sep}", "")
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> None:
    """Execute the notebooks named on the command line."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(TUTORIALS.glob("*.ipynb")):
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells, {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
