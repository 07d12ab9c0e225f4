"""Sphinx with MyST makes a site of the project's pages, which read as well without: `make docs`.

The source folder is the project's, so that links between its parts work as they stand. Only the
Python reference (api.md) needs Sphinx to be read: it is written from the docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path

project = "ParaMorph deployment toolkit"
author = "the authors of the ParaMorph deployment toolkit"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# In docstrings one backtick marks code, and arguments are described by their text.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes_style")]
html_theme = "furo"
html_title = project
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "docs/*.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "models/README.md",
    "models/weights/*.md",
    "export/plugin/README.md",
    "runtime/cpp/README.md",
    "benchmarks/*.md",
    "benchmarks/results/*.md",
    "benchmarks/results/settled/*.md",
]
# Not even looked into.
exclude_patterns = [".*", "build", "demo", "runs", "tests", "*.egg-info", "**/bundles"]
myst_heading_anchors = 3
# A link to a page, an anchor or a file that is not there stops the build (with -W).
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in docstrings are prose
smartquotes = False  # two dashes stay two
# The index lists what is to be read; Pygments knows no CSV.
suppress_warnings = ["toc.not_included", "misc.highlighting_failure"]


def _mend(app: object, page: str, source: list[str]) -> None:
    """Give the pages the order of the index, and take out links to folders, which a site lacks."""
    here = (Path(__file__).parents[1] / page).parent

    def without_folder(link: re.Match[str]) -> str:
        return link[1] if (here / link[2]).is_dir() else link[0]

    source[0] = re.sub(r"\[([^][]+)\]\(([^)#]+)\)", without_folder, source[0])
    if f"{page}.md" == "docs/index.md":
        pages = re.findall(r"\[[^][]+\]\(([^):]+\.md)\)", source[0])
        source[0] += "\n".join(("", "```{toctree}", ":hidden:", "", *pages, "```", ""))


def setup(app: object) -> None:
    app.connect("source-read", _mend)  # type: ignore[attr-defined]
