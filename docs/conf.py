"""A site of README, docs/ and samples/, whose pages are taken as they are, with the links that GitHub follows: `make site`."""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tmtool import __version__  # noqa: E402

project = "tmtool"
author = "the maintainers of tmtool"
copyright = author  # noqa: A001
version = release = __version__

extensions = ["myst_parser"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "samples/*.md",
    "tests/bench/README.md",
]
myst_heading_anchors = 4  # as GitHub has them
SAMPLES = ["samples/DEMO_MODEL", "samples/WATER", "tests/bench/README"]
"""Pages that the README's table leaves out."""

html_theme = "furo"
html_title = f"tmtool {version}"
html_show_sphinx = False


def _contents(app: Any, name: str, source: list[str]) -> None:
    """Give the README the table of contents that a site needs, which it does not show on GitHub."""
    if name == root_doc:
        pages = [*re.findall(r"^\| \[(?:docs/)?\w+\.md\]\(([\w/]+)\.md\)", source[0], re.M), *SAMPLES]
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _contents)
