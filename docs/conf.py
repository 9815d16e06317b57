"""Settings of Sphinx, which ``make docs`` builds the site with."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

from l2l_hyper import __version__

project = author = "l2l_hyper"
copyright = "the l2l_hyper authors"
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "l2l_hyper"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # which browsers draw, with no script from elsewhere

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_render_markdown_format = "gfm"
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True

warnings.simplefilter("ignore")  # of the packages that autodoc imports; Sphinx has its own


def setup(app: Sphinx) -> None:
    app.connect("source-read", _paths_for_links_to_folders)
    app.add_html_math_renderer("mathml", inline_renderers=(_math, None), block_renderers=(_math, None))


def _math(page: HTML5Translator, formula: nodes.math | nodes.math_block) -> None:
    """Norms no taller than letters and thin spaces about names of functions, which the converter does not give."""
    display = "block" if isinstance(formula, nodes.math_block) else "inline"
    mathml = convert(re.sub(r"\\[lr]Vert", r"\|", formula.astext()), display=display)
    if re.search(r"<mi>(&<|\\)", mathml):
        logging.getLogger(__name__).warning("expected a formula that latex2mathml knows, got %s", formula.astext())
    page.body.append(re.sub(r"<m[io]>([A-Za-z]{2,})</m[io]>", r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', mathml))
    raise nodes.SkipNode


def _paths_for_links_to_folders(app: Sphinx, page: str, source: list[str]) -> None:
    """The repository has folders and further Markdown files, the site has not: in the place of a link is the path."""

    def path_or_link(link: re.Match[str]) -> str:
        target = Path(app.srcdir, page, "..", link[2]).resolve()
        in_the_repository = app.srcdir not in target.parents and target.exists()
        if in_the_repository and (target.is_dir() or target.suffix == ".md"):
            path = str(target.relative_to(app.srcdir.parent))
            return f"`{path}`" if link[1].startswith("`") else f"{link[1]} (`{path}`)"
        return link[0]

    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\(([^)#:]+)\)", path_or_link, source[0])
