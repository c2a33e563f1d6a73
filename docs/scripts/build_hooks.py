"""Hooks of the site's build: they generate the pages that must never disagree with the code.

MkDocs calls `on_files` once per build. Nothing that is generated here is committed.
"""

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
import cli_page
import import_graph
import measurements_page
import model_page
import notebooks

DOCS = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the generated pages, the notebooks and the figures to the site."""
    pages = {
        "reference/cli.md": cli_page.page(),
        "reference/models.md": model_page.page(),
        "reference/measurements.md": measurements_page.page(),
        "explanation/import_graph.svg": import_graph.page(),
        **{f"tutorials/{path.stem}.ipynb": notebooks.text(path) for path in notebooks.tutorials()},
    }
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for path in measurements_page.figures():
        files.append(File.generated(config, f"reference/figures/{path.name}", abs_src_path=str(path)))
    return files
