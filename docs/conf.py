"""The site: Sphinx reads docs/, results/ and the root's own pages where they lie. ``make docs`` builds it.

Warnings are errors. Beside Sphinx's own (a link to a page or heading that is not there, a picture that is missing) some
come from here: a dead link in what was built, a public name that the reference lacks, a page further than two clicks
from the first.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from sphinx.application import Sphinx
from sphinx.util import logging

import gaussiank

ROOT = Path(__file__).parent.parent
logger = logging.getLogger(__name__)

project = "gaussiank"
author = "the authors of gaussiank"
project_copyright = "the authors of gaussiank, Apache-2.0"
release = version = gaussiank.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**", "results/**", "CHANGELOG.md", "LOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "build", "dist", "lab", "src", "tests", "runs"]
language = "en"
nitpicky = False  # annotations name torch's types, whose inventory lies elsewhere
suppress_warnings = ["toc.not_included"]  # of the pages that a command writes; check_pages asks for two clicks

myst_heading_anchors = 3
myst_links_external_new_tab = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
pygments_style = "default"
html_title = f"gaussiank {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_domain_indices = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0b5fa5", "color-brand-content": "#0b5fa5"},
    "dark_css_variables": {"color-brand-primary": "#7db8ec", "color-brand-content": "#7db8ec"},
}


class Links(HTMLParser):
    """Collects the anchors of one built page, and what it links to and shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note ``id``, ``href`` and ``src``."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.targets.add(value)


def check_reference(app: Sphinx) -> None:
    """Warn of a public name without an entry in the reference."""
    described = app.env.domains.python_domain.objects
    for name in gaussiank.__all__:
        if name != "__version__" and f"gaussiank.{name}" not in described:
            logger.warning("docs/api must describe every public name, lacks gaussiank.%s. Add it there.", name)


def check_pages(app: Sphinx) -> None:
    """Warn of dead links in the built pages, and of pages that two clicks do not reach."""
    out = Path(app.outdir)
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in out.rglob("*.html")}
    reached: dict[Path, set[Path]] = {}
    for path, page in pages.items():
        reached[path] = set()
        for target in page.targets:
            file, anchor = urldefrag(unquote(target))
            if re.match(r"[a-z]+:|//", target):
                continue
            to = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not to.exists() or (anchor and to in pages and anchor not in pages[to].anchors):
                logger.warning("%s must link to what is there, got %s", path.relative_to(out), target)
            reached[path].add(to)
    first = out / "docs" / "index.html"
    near = {first} | reached[first]
    near |= {to for path in near & set(pages) for to in reached[path]}
    for path in set(pages) - near - {out / "index.html"}:
        logger.warning("%s must be reached in two clicks from the first page. Name it in a toctree.", path)


def finish(app: Sphinx, error: Exception | None) -> None:
    """Lead the site's root to its first page, and check what was built."""
    if error or app.builder.name != "html":
        return
    (Path(app.outdir) / "index.html").write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>gaussiank</title>'
        '<meta http-equiv="refresh" content="0; url=docs/index.html"><a href="docs/index.html">gaussiank</a></html>\n',
        encoding="utf-8",
    )
    check_reference(app)
    check_pages(app)


def setup(app: Sphinx) -> None:
    """Join Sphinx's end of a build."""
    app.connect("build-finished", finish)
