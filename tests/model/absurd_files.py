"""Load folders that ask for absurd amounts, within limits that the kernel keeps: ``python absurd_files.py FOLDER...``.

Prints what came of each, as JSON.
"""

import json
import resource
import sys
from pathlib import Path

import scgalore as sg

SPARE = 256 << 20  # bytes beyond those of the interpreter with torch
SECONDS = 60  # of one processor, for all folders


def main(folders: list[str]) -> None:
    """Load each folder, and say how it was refused."""
    sg.model.load("scgpt-mini")  # everything is imported now
    status = Path("/proc/self/status").read_text()
    used = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + SPARE, used + SPARE))
    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + SECONDS, spent + SECONDS))
    found = {}
    for folder in folders:
        try:
            sg.model.load(folder)
        except Exception as error:  # noqa: BLE001 -- which it is, is what is asked
            found[folder] = [type(error).__name__, str(error)]
        else:
            found[folder] = ["loaded", ""]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
