import os
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

docs = Path(__file__).parent
sys.path.insert(0, str(docs))

import generated  # noqa: E402 -- modules of this folder
import plot_examples  # noqa: E402
import results  # noqa: E402

info = metadata("scgalore")
project = info["Name"]
author = info["Author"]
project_copyright = f"2026, {author}"
version = release = info["Version"]
repository_url = dict(url.split(", ") for url in info.get_all("Project-URL") or ())[
    "Source"
]

# Sphinx reads what is below docs. A symbolic link would break the links between notebooks, which are resolved through it.
shutil.rmtree(docs / "tutorials", ignore_errors=True)
shutil.copytree(docs.parent / "tutorials", docs / "tutorials")
generated.write(docs / "_generated", plot_examples.EXAMPLES)
results.write(docs / "_generated" / "figures")


def show_results(app, path, page, content):
    """Fold the tables of an included file of results, and put its figure first."""
    if path.parent.name == "results":
        content[0] = results.shown(path.stem, content[0])


def setup(app):
    app.connect("include-read", show_results)


extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
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
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "path_to_docs": "docs/",
    "repository_branch": "main",
    "repository_url": repository_url,
    "use_repository_button": True,
    "navigation_with_keys": False,
}
html_show_sourcelink = False
