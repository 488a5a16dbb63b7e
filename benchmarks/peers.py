"""Environments with the programs that scgalore is compared with.

    python benchmarks/peers.py                      # the original, scGPT 0.2.4 from the package index
    python benchmarks/peers.py --torchtext          # the same file's vocabulary with a real torchtext (2.5 GB)
    python benchmarks/peers.py --newer SOURCE       # scGPT 0.2.5, which no index has: a checkout, or git+https://...

The environment is a folder with an interpreter that reads the packages of the running one (torch, scanpy, anndata are
thus the same for both sides) and has scGPT installed without its dependencies. Of those, scGPT imports some that no
longer install or that nothing here calls. For each that is missing a stand-in of a few lines is written into the
environment, and listed in its ``stubs.json`` and in every result.

What the vocabulary costs
-------------------------
scGPT 0.2.4 keeps its vocabulary in ``torchtext.vocab.Vocab``. torchtext ended in April 2024 and loads under torch 2.3 at most,
so with a current torch there is only a stand-in, whose cost is ours and not the original's: it appends to a list and a
dict in constant time, as torchtext does, and does not make the original slower than it is. scGPT 0.2.5 (April 2026, on GitHub only)
brings a vocabulary of its own for installations without torchtext, which renews its whole dict with every token it
inserts: quadratic, and paid by each ``embed_data``. ``loading.py`` measures each of the three that is installed, by
name; other scripts do not include the vocabulary in the model's time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sysconfig
import venv
from pathlib import Path

ORIGINAL = "scgpt==0.2.4"
FOLDER = Path(__file__).parent / ".cache" / "peers"

TORCHTEXT_STUB = '''
"""Stand-in for torchtext.vocab: what scGPT's GeneVocab calls of it, by a list and a dict."""

from torch import nn


class Tokens:
    def __init__(self, tokens=()):
        self.itos, self.stoi, self.default = list(tokens), {token: i for i, token in enumerate(tokens)}, None


class Vocab(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.vocab = vocab

    def __len__(self):
        return len(self.vocab.itos)

    def __contains__(self, token):
        return token in self.vocab.stoi

    def __getitem__(self, token):
        index = self.vocab.stoi.get(token, self.vocab.default)
        if index is None:
            raise RuntimeError(f"Token {token} not found and default index is not set")
        return index

    def forward(self, tokens):
        return [self[token] for token in tokens]

    def insert_token(self, token, index):
        if token in self or not 0 <= index <= len(self):
            raise RuntimeError(f"{token} is there already, or {index} is beyond the end")
        self.vocab.itos.insert(index, token)
        for place in range(index, len(self)):
            self.vocab.stoi[self.vocab.itos[place]] = place

    def append_token(self, token):
        self.insert_token(token, len(self))

    def set_default_index(self, index):
        self.vocab.default = index

    def get_default_index(self):
        return self.vocab.default

    def get_stoi(self):
        return dict(self.vocab.stoi)

    def get_itos(self):
        return list(self.vocab.itos)


def vocab(ordered_dict, min_freq=1):
    return Vocab(Tokens([token for token, count in ordered_dict.items() if count >= min_freq]))
'''

STUBS = {
    "torchtext.vocab": {"torchtext/__init__.py": "", "torchtext/vocab.py": TORCHTEXT_STUB},
    "datasets": {"datasets/__init__.py": "class Dataset: ...\n\n\ndef load_dataset(*args, **options): ...\n"},
    "IPython": {"IPython/__init__.py": "def get_ipython(): ...\n"},
    "seaborn": {"seaborn/__init__.py": ""},
    "networkx": {"networkx/__init__.py": ""},
    "numba": {
        "numba/__init__.py": "def jit(function=None, **options):\n    return function or (lambda f: f)\n\n\nnjit, prange = jit, range\n"
    },
}
"""Files of the stand-in for each package that scGPT imports and that may be missing."""


def interpreter(name: str = "original", folder: Path | None = None) -> Path:
    """Interpreter of an environment, made or not."""
    return (folder or Path(os.environ.get("BENCHMARK_PEERS", FOLDER))) / name / "bin" / "python"


def ensure_original(folder: Path | None = None) -> Path:
    """Interpreter that imports the original; the environment is made when it is not there."""
    python = interpreter(folder=folder)
    if not (python.parents[1] / "stubs.json").exists():
        make(python.parents[1], ORIGINAL)
    return python


def stubs(python: Path) -> list[str]:
    """Packages that the original imports and that stand-ins replace."""
    found: list[str] = json.loads((python.parents[1] / "stubs.json").read_text())
    return found


def make(target: Path, requirement: str) -> None:
    """Make an environment with scGPT and the stand-ins it needs."""
    print(f"making {target} with {requirement}", flush=True)
    venv.create(target, with_pip=True, clear=True)
    python = target / "bin" / "python"
    site = site_packages(python)
    # A plain venv sees only the packages of the system's Python, not those of the venv that runs this.
    (site / "running-interpreter.pth").write_text("\n".join(parent_packages()) + "\n")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", requirement], check=True)
    (target / "stubs.json").write_text(json.dumps(write_stubs(site, needed_stubs(python))))
    subprocess.run(
        [python, "-W", "ignore", "-c", "import scgpt; print('imports scgpt', scgpt.__version__)"], check=True
    )


def make_torchtext(target: Path) -> None:
    """Make an environment with the last torchtext, the torch it was built for, and the original's files."""
    print(f"making {target} with torch 2.3.1 and torchtext 0.18.0", flush=True)
    venv.create(target, with_pip=True, clear=True)
    install = [str(target / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "torch==2.3.1", "torchtext==0.18.0", "numpy<2", "pandas"], check=True)
    subprocess.run([*install, "--no-deps", ORIGINAL], check=True)
    (target / "stubs.json").write_text("[]")


def parent_packages() -> list[str]:
    """Folders with the packages of the running interpreter."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def site_packages(python: Path) -> Path:
    """Folder in which an environment has its own packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())


def needed_stubs(python: Path) -> list[str]:
    """Packages among :data:`STUBS` that the environment cannot import."""
    return [name for name in STUBS if subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode]


def write_stubs(site: Path, needed: list[str]) -> list[str]:
    """Write stand-ins; 0.2.5 has its own way without torchtext, which a stand-in would hide."""
    if (site / "scgpt" / "tokenizer" / "vocab_compat.py").exists():
        needed = [name for name in needed if name != "torchtext.vocab"]
    for name in needed:
        for path, content in STUBS[name].items():
            (site / path).parent.mkdir(exist_ok=True)
            (site / path).write_text(content)
    print(f"stand-ins: {', '.join(needed) or 'none'}", flush=True)
    return needed


def main() -> None:
    """Run from the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=FOLDER, help="where environments are made (then set BENCHMARK_PEERS)"
    )
    parser.add_argument("--torchtext", action="store_true", help="also one with a real torchtext")
    parser.add_argument("--newer", metavar="SOURCE", help="also one with scGPT 0.2.5: what pip can install it from")
    arguments = parser.parse_args()
    print(ensure_original(arguments.folder))
    if arguments.torchtext:
        make_torchtext(arguments.folder / "torchtext")
    if arguments.newer:
        make(arguments.folder / "newer", arguments.newer)


if __name__ == "__main__":
    main()
