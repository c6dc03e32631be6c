"""Sphinx extension of this book: takes the repository's address and the version from pyproject.toml.

Markdown pages may write ``{{ repository }}``, a link with that word, and ``{{ version }}``.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))

from sync import project, repository  # noqa: E402


def configure(app, config):
    config.html_theme_options["repository_url"] = repository()
    config.release = config.version = project()["version"]
    link = f"[repository]({repository()})"
    config.myst_substitutions = {"repository": link, "version": config.version, **config.myst_substitutions}


def setup(app):
    app.connect("config-inited", configure, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
