"""How Sphinx builds the site from what `sources.py` collects; see `make site`."""

import sys
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from gan_influence.tools import links, versions  # noqa: E402

project, author, copyright = "gan_influence", "the authors of gan_influence", "the authors of gan_influence"
release = versions.__version__
extensions = ["myst_nb", "sphinx_exercise", "sphinx_togglebutton"]

nb_execution_mode, nb_merge_streams = "off", True  # the outputs that the notebooks hold
nb_ipywidgets_js, nb_mime_priority_overrides = {}, [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # `!git` and `%pip` in the cell for Colab

math_numfig = False  # see number_equations
mathjax_path = "mathjax/tex-mml-chtml.js"  # in vendor, which `make site` fills

html_theme, html_title, html_baseurl = "sphinx_book_theme", "gan_influence", ""
html_static_path = ["_static", str(HERE.parent / "build" / "site" / "vendor")]
html_css_files = ["site.css"]
html_show_copyright = html_copy_source = False
html_theme_options = {
    "repository_url": f"https://github.com/{links.repository()}", "use_repository_button": True, "use_download_button": False, "use_fullscreen_button": False,
    "show_toc_level": 2, "home_page_in_toc": True, "navbar_persistent": [],
}
html_context, html_favicon = {"default_mode": "auto"}, "_static/icon.svg"


def number_equations(app, doctree) -> None:
    """Equation 3 of notebook 02 is (02.3), wherever it is named."""
    page = app.env.docname.rpartition("/")[2][:2]
    labelled = [node for node in doctree.findall(nodes.math_block) if node.get("label")]
    for i, node in enumerate(labelled, 1):
        node["number"] = f"{page}.{i}"
        app.env.domains["math"].equations[node["label"]] = app.env.docname, node["number"]


def setup(app) -> None:
    app.connect("doctree-read", number_equations)
