"""Pack the gene sets and the orthologs that ship with scgalore (``src/scgalore/genes/tables``).

Run ``python scripts/build_gene_sets.py SETS ORTHOLOGS OUT``:

- SETS: folder of text files, one symbol a line below a header of ``# title``, ``# source:``, ``# licence:``, ``# cite:``;
- ORTHOLOGS: gzipped, tab-separated ``mouse_id, mouse_symbol, human_id, human_symbol, high_confidence``.

The output does not depend on the clock or on the order of the files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
from collections import Counter
from pathlib import Path

# Unions are made in code from the lists that they are of. The carrier of the list left out is under GPL-3.
LEFT_OUT = re.compile(r"union_|human_tf_pyscenic")

# File names of pathways end in a title that may be cut off; the title itself is in the header.
PATHWAY = re.compile(r"(wikipathways_WP\d+)_.*")

FIELDS = {"source": "source", "licence": "licence", "cite": "citation"}


def read_set(path: Path) -> tuple[str, ...]:
    """Read a list as one row: name, title, source, licence, citation, genes joined by blanks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    genes = sorted({line.strip() for line in lines if line.strip() and not line.startswith("#")})
    about = dict(line.split(": ", 1) for line in header[1:])
    cells = (header[0], *(about[field] for field in FIELDS))
    name = PATHWAY.sub(r"\1", path.stem)
    return (name, *(" ".join(cell.split()) for cell in cells), " ".join(genes))


def pack_orthologs(path: Path) -> list[tuple[str, ...]]:
    """Pair symbols where each means one gene on either side."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        pairs = sorted({(row["mouse_symbol"], row["human_symbol"]) for row in rows} - {("", "")})
    mouse, human = Counter(pair[0] for pair in pairs), Counter(pair[1] for pair in pairs)
    return [pair for pair in pairs if all(pair) and mouse[pair[0]] == 1 and human[pair[1]] == 1]


def write_rows(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Write rows, the first of them the header, as a gzipped table."""
    text = "".join("\t".join(row) + "\n" for row in rows)
    # mtime=0: the same table must be the same bytes, or every rebuild would look like a change.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{path.name}: {len(rows) - 1:,} rows, {path.stat().st_size:,} bytes")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sets", "orthologs", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    rows = sorted(read_set(path) for path in options.sets.glob("*.txt") if not LEFT_OUT.match(path.stem))
    header = ("name", "title", *FIELDS.values(), "genes")
    write_rows(options.out / "gene_sets.tsv.gz", [header, *rows])
    write_rows(options.out / "mouse_orthologs.tsv.gz", [("mouse", "human"), *pack_orthologs(options.orthologs)])


if __name__ == "__main__":
    main()
