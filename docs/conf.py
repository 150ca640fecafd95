"""Configuration of the documentation's site: `sphinx-build -W docs site`.

Plots that are not there yet are drawn first.
"""

import re
import runpy
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

from hwtrain import __version__

HERE = Path(__file__).parent

project = "hwtrain"
author = copyright = "the developers of hwtrain"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["images"]
templates_path = ["_templates"]
default_role = "py:obj"
smartquotes = False  # options begin with two hyphens

html_theme = "furo"
html_title = "hwtrain"
html_show_copyright = False

autosummary_generate = True
autosummary_imported_members = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # fields of parts have the names of builtins

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

nb_execution_mode = "auto"  # notebooks are kept without outputs
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

PLOTS = {
    "life_cycle_plot.py": "life_cycle.png",
    "plots.py": "drift.png",
    "device_plots.py": "aged.png",
    "periphery_plots.py": "wires.png",
    "optimisation_plots.py": "range_start.png",
}


def draw(app):
    """Draws the plots of the pages, once, and lists the errors."""
    generated = HERE / "generated"
    generated.mkdir(exist_ok=True)
    errors = runpy.run_path(str(HERE / "errors.py"))["page"]()
    (generated / "errors.txt").write_text(errors, "utf-8")
    for script, one in PLOTS.items():
        if not (HERE / "images" / one).exists():
            runpy.run_path(str(HERE / script))["main"](HERE / "images")


def link(app, page, source):
    """Points links that leave the pages' folder at the pages that include the file."""
    text = re.sub(
        r"\(\.\./benchmarks/results/(\w+)\.md", r"(benchmarks.md#\1", source[0]
    )
    text = text.replace("../CONTRIBUTING.md", "contributing.md")
    source[0] = text.replace("../CHANGELOG.md", "changelog.md")


def plain_type(text):
    """Returns an annotation with X in place of every Annotated[X, ...]."""
    start = text.find("Annotated[")
    if start < 0:
        return text
    first = depth = 0
    for place in range(start + len("Annotated["), len(text)):
        depth += {"[": 1, "(": 1, "]": -1, ")": -1}.get(text[place], 0)
        if text[place] == "," and depth == 0 and not first:
            first = place
        if depth < 0:
            inside = text[start + len("Annotated[") : first or place]
            return plain_type(text[:start] + inside + text[place + 1 :])
    return text


def simplify(app, doctree):
    """Shortens the annotations of fields."""
    for node in doctree.findall(addnodes.desc_annotation):
        text = node.astext()
        if "Annotated[" in text:
            node.children = [nodes.Text(plain_type(text))]


FIELDS = ("attribute", "property")
kept = {}


def keep(app, what, name, item, options, lines):
    """Hides fields from napoleon, which takes words before a colon for a type."""
    if what in FIELDS:
        kept[name] = list(lines)
        lines.clear()


def restore(app, what, name, item, options, lines):
    """Brings them back."""
    if what in FIELDS:
        lines[:] = kept.pop(name)


def setup(app):
    """Adds all of these to the build."""
    app.connect("builder-inited", draw)
    app.connect("source-read", link)
    app.connect("doctree-read", simplify)
    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", restore, priority=600)
