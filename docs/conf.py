"""Sphinx's configuration: pages in Markdown, the API from the docstrings."""

import re

import ser_fast

project = "ser_fast"
version = release = ser_fast.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "ser_fast"
html_show_copyright = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Other projects' classes are not looked up, so that the pages are built without a network.
nitpick_ignore_regex = [("py:.*", r"(torch|numpy|pathlib|collections\.abc|os|typing|huggingface_hub|sklearn)\..*")]


def _adapt(app, what, name, obj, options, lines: list[str]) -> None:
    """A bar is an absolute value, not a substitution; a name without its module is looked for in all of them."""
    for number, line in enumerate(lines):
        line = re.sub(r"(``.*?``)|\|", lambda found: found[1] or r"\|", line)
        lines[number] = re.sub(r":(func|meth|class|attr):`(?=\w+`)", r":\1:`.", line)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _adapt, priority=400)  # before napoleon writes bars of its own
