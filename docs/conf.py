import os
import shutil
from importlib.metadata import metadata
from pathlib import Path

from scgalore.adapters import ADAPTERS
from scgalore.datasets.registry import registry_table
from scgalore.nn import EMBEDDINGS
from scgalore.optim import OPTIMIZERS

info = metadata("scgalore")
project = info["Name"]
author = info["Author"]
project_copyright = f"2026, {author}"
version = release = info["Version"]
repository_url = dict(url.split(", ") for url in info.get_all("Project-URL") or ())["Source"]

# Sphinx reads what is below docs. A symbolic link would break the links between notebooks, which are resolved through it.
docs = Path(__file__).parent
shutil.rmtree(docs / "tutorials", ignore_errors=True)
shutil.copytree(docs.parent / "tutorials", docs / "tutorials")


def registry_page(registry):
    """What the entries say of themselves, and their defaults."""
    for name, entry in registry.items():
        yield f"`{name}`\n: {entry.trains} Optimizer state: {entry.state_bytes}"
        if options := getattr(entry, "options", None):
            shown = {
                key: value for key, value in {"lr": getattr(entry, "lr", None), **options}.items() if value is not None
            }
            yield f"  Defaults: {', '.join(f'`{key}={value!r}`' for key, value in shown.items())}. {entry.source}"


def capabilities(registry):
    """Which training options each optimizer goes with, and whether it needs an estimate of the curvature."""
    columns = {
        "`shard_optimizer`": "shardable",
        "`per_layer_update`": "per_layer",
        "needs curvature": "needs_curvature",
    }
    yield f"| optimizer | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for name, spec in registry.items():
        yield f"| `{name}` | {' | '.join('yes' if getattr(spec, what) else 'no' for what in columns.values())} |"


(docs / "_generated").mkdir(exist_ok=True)
for title, registry in {"optimizers": OPTIMIZERS, "adapters": ADAPTERS, "embeddings": EMBEDDINGS}.items():
    (docs / "_generated" / f"{title}.md").write_text("\n\n".join(registry_page(registry)) + "\n")

(docs / "_generated" / "capabilities.md").write_text("\n".join(capabilities(OPTIMIZERS)) + "\n")
(docs / "_generated" / "datasets.md").write_text(registry_table())

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]

exclude_patterns = ["_build", "_generated", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "literal"
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# "Returns" lists the keys that are written: a paragraph and a definition list, which is what plain reStructuredText makes of it.
napoleon_custom_sections = ["Returns"]

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

# The build needs no network, unless links into the documentation of others are wanted.
intersphinx_mapping = (
    {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.readthedocs.io/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/pandas-docs/stable/", None),
        "python": ("https://docs.python.org/3", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "scvi": ("https://docs.scvi-tools.org/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }
    if os.environ.get("READTHEDOCS")
    else {}
)
# References to our own names must be right; those to others cannot be checked without a network, and fields of
# dataclasses are described with their class and are no targets.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!scgalore).*"), (r"py:attr", r".*")]
# Parts of documented classes that have no pages of their own.
_INNER = (
    "optim.mixed.MixedAdamW",
    "optim.state.OwnPrecision",
    "data.buffers.FileBuffers",
    "data.expression.LogExpression",
    "data.loaders.LoaderBuffers",
    "perturb.baselines.effects.Recipe",
    "perturb.labels.screen.Pools",
    "train.steps.Steps",
    "weights.load.Loadable",
    "_keys.CellKeys",
    "_fetch.RemoteFile",
)
nitpick_ignore = [("py:class", f"scgalore.{name}") for name in _INNER]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {
    "path_to_docs": "docs/",
    "repository_branch": "main",
    "repository_url": repository_url,
    "use_repository_button": True,
    "navigation_with_keys": False,
}
html_show_sourcelink = False
