"""User-facing text is plain technical English: phrases of ``plain_language.toml`` do not come back."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
RULES = tomllib.loads(Path(__file__).with_name("plain_language.toml").read_text(encoding="utf-8"))
PHRASES = [
    (
        re.compile(phrase["pattern"], flags=re.IGNORECASE),
        phrase["instead"],
        phrase.get("trees", RULES["default_trees"]),
    )
    for phrase in RULES["phrases"]
]
GENERATED = {"docs/_build", "docs/_generated", "docs/api/generated", "docs/tutorials"}
TREES = [tree for tree in RULES["trees"] if any(tree in trees for _, _, trees in PHRASES)]


def prose_of_page(text: str) -> str:
    """A page without code: blocks and inline literals are blanked, lines stay where they are."""
    text = re.sub(
        r"^(`{3,}|~{3,}).*?^\1", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE
    )
    return re.sub(r"(?<!})`[^`\n]*`", "`x`", text)


def prose_of_source(text: str) -> str:
    """Docstrings and messages of a module, each on the line where it begins."""
    lines = [""] * (text.count("\n") + 2)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                at = min(node.lineno - 1 + offset, len(lines) - 1)
                lines[at] += f" {line}"
    return re.sub(r"``[^`\n]*``", "`x`", "\n".join(lines))


def prose_of_notebook(text: str) -> str:
    """Markdown cells of a notebook."""
    cells = json.loads(text)["cells"]
    return prose_of_page("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))


PROSE = {".md": prose_of_page, ".py": prose_of_source, ".ipynb": prose_of_notebook}


def findings(prose: str, tree: str) -> Iterator[str]:
    """Phrases of a text, with their lines and what to write instead."""
    for pattern, instead, trees in PHRASES:
        if tree in trees:
            for found in pattern.finditer(prose):
                line = prose.count("\n", 0, found.start()) + 1
                yield f"line {line}: {found[0]!r}. Write: {instead}."


def files_of(tree: str) -> list[Path]:
    """Files of a tree, without those that are generated or not rewritten yet."""
    left_out = [REPOSITORY / folder for folder in (*GENERATED, *RULES["pending"])]
    paths = {path for pattern in RULES["trees"][tree] for path in REPOSITORY.glob(pattern)}
    return sorted(path for path in paths if not any(path.is_relative_to(folder) for folder in left_out))


@pytest.mark.parametrize("tree", TREES)
def test_texts_are_plain(tree: str) -> None:
    paths = files_of(tree)
    assert paths
    found = [
        f"{path.relative_to(REPOSITORY).as_posix()}, {finding}"
        for path in paths
        for finding in findings(PROSE[path.suffix](path.read_text(encoding="utf-8")), tree)
    ]
    assert found == []


# Sentences of version 0.5.0.
OLD = [
    "Most tokens worked on together, which is what memory hangs on",
    "without either, it goes on with masked expression, the objective it was pre-trained with",
    "Perturbations, beside the baselines that beat many models:",
    "An AnnData goes in; embeddings, labels and an honest score come back in .obsm, .obs and .uns.",
    "Weights are not loaded and nothing is allocated, but for folders and models of yours.",
    "keeps a small data set from being learnt by heart",
    "rows of the genes at hand (default)",
    "1: a fault of the program",
    "The house and its rooms",
    "cell embeddings with unit norm, float32, one row a cell",
    "ranked by how good they are, whatever is measured",
    "batch size, unless told otherwise",
    "the error that bfloat16 makes stands beside.",
    "the file is held against its sha256",
    "The page says how it is measured",
    "Cells without a label take part as a class of their own.",
    "a split that is there",
    '"none", with which the network predicts expression itself, as upstream',
]


@pytest.mark.parametrize("sentence", OLD)
def test_an_old_sentence_is_found(sentence: str) -> None:
    assert list(findings(prose_of_page(sentence), "docs"))


# Docstrings and messages of version 0.5.0.
OLD_OF_SOURCE = [
    "Most cells in a batch where a function is not told otherwise; ``None`` leaves it to :attr:`batch_tokens`.",
    "Labels; the same when left out.",
    "The same.",
    "If ``adata`` is no AnnData, or what is under a key is not what was written there.",
    "How to train. ``compile`` is not looked at.",
    "What makes this run this run; resuming another one is refused.",
    "What the user holds; nothing is done for an AnnData.",
    "What to call it in messages.",
    "Vector of each compound, float64, one row a compound.",
    "Numbers that are none: weights with NaN or infinite are refused where they are read.",
    "Update each weight in the backward pass, as soon as its gradient is there.",
]


@pytest.mark.parametrize("sentence", OLD_OF_SOURCE)
def test_an_old_docstring_is_found(sentence: str) -> None:
    assert list(findings(prose_of_source(f'def f():\n    """{sentence}"""\n'), "src"))


@pytest.mark.parametrize(
    "text",
    [
        "The maximum number of tokens per batch, on which memory depends.",
        "The call `model.at_hand(beside)` is code.",
        "Is there a simpler model? There is no reference here, and there are none in the file.",
        "```text\nwhatever hangs on the house\n```\nThe types can be told apart.",
    ],
)
def test_plain_sentences_and_code_pass(text: str) -> None:
    assert list(findings(prose_of_page(text), "docs")) == []


def test_messages_of_a_module_are_read() -> None:
    code = 'def f():\n    """Memory hangs on it."""\n    raise ValueError(f"{1} of the genes at hand")  # beside\n'
    assert [line.split(":")[0] for line in findings(prose_of_source(code), "docs")] == ["line 2", "line 3"]
