"""Builds the documentation: ``sphinx-build -W docs docs/_build``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generate
from pydantic import BaseModel

from saboteur import __version__

generate.write_all()

project = "Saboteur"
author = "The Saboteur maintainers"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "_generated/terms.md", "_generated/formulas.md"]
html_theme = "furo"
html_title = f"Saboteur {release}"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "exclude-members": "model_config, model_post_init",
}
napoleon_use_ivar = True


def _read_as_written(app, what, name, obj, options, lines) -> None:
    """In docstrings, ``|x|`` is an absolute value, and a colon in the first line of a property ends no type."""
    lines[:] = [line.replace("|", "\\|") for line in lines]
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " – ")


def _no_signature_of_models(app, what, name, obj, options, signature, returned) -> tuple[str, None] | None:
    """What a model takes is told by the page on the campaign file, in words."""
    return ("", None) if isinstance(obj, type) and issubclass(obj, BaseModel) else None


def setup(app) -> None:
    """Hook into Sphinx."""
    app.connect("autodoc-process-docstring", _read_as_written, priority=400)
    app.connect("autodoc-process-signature", _no_signature_of_models)
