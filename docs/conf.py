"""Settings of Sphinx, which ``make docs`` builds the site with."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from sphinx.application import Sphinx

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


def _paths_for_links_to_folders(app: Sphinx, page: str, source: list[str]) -> None:
    """The repository has folders and further Markdown files, the site has not: in the place of a link is the path."""

    def path_or_link(link: re.Match[str]) -> str:
        target = Path(app.srcdir, page, "..", link[2]).resolve()
        in_the_repository = app.srcdir not in target.parents and target.exists()
        if in_the_repository and (target.is_dir() or target.suffix == ".md"):
            path = str(target.relative_to(app.srcdir.parent))
            return link[1] if link[1].strip("`/") == path else f"{link[1]} (`{path}`)"
        return link[0]

    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\(([^)#:]+)\)", path_or_link, source[0])
