"""Pages in Markdown, run as a reader runs them."""

import re
import shlex
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import scgalore as sg
from scgalore.cli import app
from scgalore.errors import DownloadError

REPOSITORY = Path(__file__).parents[1]
SHELLS = ("bash", "shell", "sh", "console")
DIRECTIVES = ("{include}", "{literalinclude}", "{toctree}", "{eval-rst}", "{bibliography}", "{glossary}")
REASONS: dict[str, str] = {
    "needs a connection": "",
    "needs data": r"--data FOLDER",
    "needs the package muon": r"\bmu\.",
    "needs the package annbatch": r"\bannbatch\.",
    "installs packages": r"\bpip install ",
    "needs several processes": r"\btorchrun |\bsrun ",
    "runs the checks of the repository": r"\bpytest\b",
    "no code": "",
}
"""Why a block is not run, and what it must hold for that; three are also checked by :func:`check_reason`."""


@dataclass(frozen=True)
class Block:
    """A block of code, the line it begins at, and the comment above it."""

    language: str
    code: str
    line: int = 1
    comment: str = ""


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks_of(text: str) -> list[Block]:
    """Blocks of a page, without the directives that its generator reads."""
    blocks, comment = [], ""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block") and not token.info.startswith(DIRECTIVES):
            assert token.map is not None
            blocks.append(Block(token.info.strip(), token.content, token.map[0] + 2, comment))
        found = re.fullmatch(r"<!--\s*(.*?)\s*-->", token.content.strip()) if token.type == "html_block" else None
        comment = found[1] if found else ""
    return blocks


def run_blocks(page: str, blocks: list[Block], names: dict[str, Any], *, slow: bool = False) -> None:
    """Run the blocks of a page in one session.

    Parameters
    ----------
    page
        Its name, for messages.
    blocks
        From :func:`blocks_of`.
    names
        What the reader has; what the blocks define is added.
    slow
        Whether to run those that take minutes, too.
    """
    printed = None
    for block in blocks:
        where = f"{page}, line {block.line}"
        if block.comment.startswith("not run: "):
            check_reason(block, where, names)
        elif block.comment == "takes minutes" and not slow:
            continue
        elif block.language == "python":
            output = StringIO()
            with redirect_stdout(output):
                exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
            printed = output.getvalue()
        elif block.language in SHELLS:
            run_commands(block.code)
        elif block.language == "text":
            assert block.code == printed, f"{where}: this is not what the block above it prints"
        else:
            pytest.fail(
                f"{where}: a block in {block.language or 'no language'!r}. Name one that can be run, or say why not."
            )


def run_commands(code: str) -> None:
    """Run commands of scgalore, and no others."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[2:] if words[:2] == ["python", "-m"] else words
        if words:
            assert words[0] == "scgalore", f"{line!r} is no command of scgalore. Say above the block why it is not run."
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"


def check_reason(block: Block, where: str, names: dict[str, Any]) -> None:
    """Refuse a reason that is none, or that is not true."""
    reason = block.comment.removeprefix("not run: ")
    assert reason in REASONS, f"{where}: {reason!r} is none of the reasons {list(REASONS)}"
    assert re.search(REASONS[reason], block.code), f"{where}: nothing in the block shows that it {reason}"
    if reason == "needs a connection":
        sg.settings.offline = True
        with pytest.raises(DownloadError):
            exec(compile(block.code, where, "exec"), dict(names))
    if reason.startswith("needs the package "):
        assert find_spec(reason.split()[-1]) is None, f"{where}: the package is here, so the block can be run"
    if reason == "no code":
        assert not block.language, f"{where}: a block of a language is code"
        with pytest.raises(SyntaxError):
            compile(block.code, where, "exec")
