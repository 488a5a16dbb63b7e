"""Which file imports which, read from the source, with what only type checkers see and what functions import.

An import leads to the file that defines the name: ``from scgalore.nn import SCGPTConfig`` to ``scgalore.nn.config``, through
what the package's ``__init__`` passes on. Without that, each file that takes a neighbour's name from its own package would
seem to import all of the package. A package that is imported as a whole stands for everything that it passes on.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(folder: Path) -> Graph:
    """Imports of each file of a package, by dotted names; ``folder`` is the package, and others are left out.

    A package is two nodes: ``a.b``, all that it passes on, and ``a.b.__init__``, what its own code uses for itself.
    """
    files = {_dotted(path, folder.parent): path for path in sorted(folder.rglob("*.py"))}
    imports = {name: list(_imports(path)) for name, path in files.items()}
    bound = {name: dict(pairs) for name, pairs in imports.items()}
    graph: Graph = {}
    for name, path in files.items():
        graph[name] = {_home(source, bound) for _, source in imports[name]} - {""}
        if path.name == "__init__.py":
            public = _public(path)
            graph[f"{name}.__init__"] = {_home(source, bound) for own, source in imports[name] if own not in public} - {
                ""
            }
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Groups of files each of which reaches all others of its group."""
    reach = {name: _reached(name, graph) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def statements_in(node: ast.AST) -> Iterator[ast.AST]:
    """What is directly below a node, except expressions, in which nothing is imported."""
    return (child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


def _reached(start: str, graph: Graph) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _dotted(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Names bound by imports anywhere in a file, with the module and the name in it; ``""`` is the module itself."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop(0)
        waiting += statements_in(node)
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, (alias.name, "")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, (node.module or "", alias.name)) for alias in node.names)


def _public(path: Path) -> set[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def _home(source: tuple[str, str], bound: dict[str, dict[str, tuple[str, str]]]) -> str:
    """File that defines what is imported; empty if it is of another package."""
    module, name = source
    if f"{module}.{name}" in bound:
        return f"{module}.{name}"
    if module not in bound:
        return ""
    is_package = any(other.startswith(f"{module}.") for other in bound)
    if not name or not is_package:
        return module
    passed_on = bound[module].get(name)
    return _home(passed_on, bound) if passed_on else f"{module}.__init__"
