"""The documentation site: Sphinx, with pages in Markdown. `make docs` builds it and needs no network."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = "fastalex"
author = "the fastalex authors"
html_title = "fastalex"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook keeps its outputs: docs/notebook.py
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures have them, and docstrings say more
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"  # what stands in single backticks in docstrings
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # references to other projects' objects would need their inventories

# Pages that show a file from outside docs/. On GitHub, links lead to the files themselves; here, to these pages.
SHOWN = {"contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md", "measuring": "bench/README.md"}


def show_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Put a shown file in place of its page, and let all links to and from such files lead to pages."""
    origin = ROOT / SHOWN[page] if page in SHOWN else DOCS / f"{page}.md"
    text = origin.read_text() if page in SHOWN else source[0]
    pages = {ROOT / path: DOCS / f"{name}.md" for name, path in SHOWN.items()}

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = Path(os.path.normpath(origin.parent / target))
        return f"]({os.path.relpath(pages.get(path, path), (DOCS / page).parent)}{anchor})"

    source[0] = re.sub(r"\]\(([\w./-]+?)(#[\w-]+)?\)", link, text)


SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Yields|Raises|Example|Examples|Note|Source):?\s*$")


def formulas_as_written(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Show the indented formulas of docstrings line by line, as code; reStructuredText would run them together."""
    before, result = "", list[str]()
    for index, line in enumerate(lines):
        starts = line.startswith("    ") and index > 0 and not lines[index - 1].strip()
        if starts and before and not before.startswith(" ") and not before.endswith("::") and not SECTION.match(before):
            result += ["::", ""]
        result.append(line)
        if line.strip():
            before = line
    lines[:] = result


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw themselves: no script, no fonts, no network."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", show_files)
    app.connect("autodoc-process-docstring", formulas_as_written, priority=100)  # before napoleon
