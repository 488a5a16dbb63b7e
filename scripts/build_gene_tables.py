"""Pack the gene identifier tables that ship with scgalore (``src/scgalore/genes/tables``).

Run ``python scripts/build_gene_tables.py GENES ALIASES OUT`` with two gzipped, tab-separated sources:

- GENES: ``gene_id, gene_name, biotype, chromosome``, one row a gene of a GENCODE release, version suffixes dropped;
- ALIASES: ``alias_symbol, primary_gene_symbol, kind`` with kind ``previous`` or ``alias``.

What is left out, and why, is said where it happens; the output does not depend on the clock or on the rows' order.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
from collections import defaultdict
from pathlib import Path

from scgalore.genes.identifiers import looks_like_mouse

# Names as they occur in matrices. The sources also hold protein names with brackets, quotes and blanks, clone names
# with a dot, and bare numbers, which would turn nameless columns into genes.
_SYMBOL = re.compile(r"(?=.*[A-Z])[A-Za-z0-9][A-Za-z0-9_-]*")

# Non-coding neighbours of a coding gene (antisense, divergent, intronic, overlapping) that were merged into its entry:
# another transcript was counted under such a name.
_NEIGHBOUR = re.compile(r"-(?:AS|DT|IT|OT)\d*$")

# The only lower-case letters in human symbols. Programs that write everything in upper case change them.
_ORF = re.compile(r"C[\dXY]+orf\d+")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a gzipped table as one dictionary a row."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def write_rows(path: Path, rows: list[tuple[str, ...]]) -> None:
    """Write rows, the first of them the header, as a gzipped table."""
    text = "".join("\t".join(row) + "\n" for row in rows)
    # mtime=0: the same table must be the same bytes, or every rebuild would look like a change.
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{path.name}: {len(rows) - 1:,} rows, {path.stat().st_size:,} bytes")


def pack_genes(genes: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """Pair Ensembl ids and symbols where the symbol means that one gene."""
    holders: dict[str, list[dict[str, str]]] = defaultdict(list)
    for gene in genes:
        # A gene without a symbol carries its own id as its name.
        if gene["gene_name"] != gene["gene_id"]:
            holders[gene["gene_name"]].append(gene)
    rows = []
    for symbol, candidates in holders.items():
        # Read-throughs and pseudogene copies share the symbol of a coding gene, which is the one meant.
        # Families without a coding member (Y_RNA, U6) have no such gene and no symbol that tells them apart.
        coding = [gene for gene in candidates if gene["biotype"] == "protein_coding"]
        chosen = coding or candidates
        # Pseudoautosomal genes have an id on either sex chromosome; annotations and vocabularies count on the X copy.
        if {gene["chromosome"] for gene in chosen} == {"chrX", "chrY"}:
            chosen = [gene for gene in chosen if gene["chromosome"] == "chrX"]
        if len(chosen) == 1:
            rows.append((chosen[0]["gene_id"], symbol))
    return [("gene_id", "symbol"), *sorted(rows)]


def pack_aliases(aliases: list[dict[str, str]], current: set[str]) -> list[tuple[str, ...]]:
    """Collect the previous symbols and the aliases of each current symbol; each name points to one gene."""
    names: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"previous": [], "alias": []})
    for row in aliases:
        name = row["alias_symbol"]
        # TRAC is an alias of NCOR2 and the T cell receptor's constant gene: a current symbol is never read as an alias.
        # Names in mouse case are refused so that mouse columns do not slip into a human vocabulary.
        if name in current or not _SYMBOL.fullmatch(name) or _NEIGHBOUR.search(name) or looks_like_mouse(name):
            continue
        names[row["primary_gene_symbol"]][row["kind"]].append(name)
    taken = current | {row["alias_symbol"] for row in aliases}
    for symbol in filter(_ORF.fullmatch, current):
        if symbol.upper() not in taken:
            names[symbol]["alias"].append(symbol.upper())
    rows = [
        (symbol, "|".join(sorted(kinds["previous"])), "|".join(sorted(kinds["alias"])))
        for symbol, kinds in sorted(names.items())
    ]
    return [("symbol", "previous", "aliases"), *rows]


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("genes", "aliases", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    genes = read_rows(options.genes)
    write_rows(options.out / "ensembl_symbols.tsv.gz", pack_genes(genes))
    current = {gene["gene_name"] for gene in genes}
    write_rows(options.out / "symbol_aliases.tsv.gz", pack_aliases(read_rows(options.aliases), current))


if __name__ == "__main__":
    main()
