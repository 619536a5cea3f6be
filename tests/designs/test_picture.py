"""The picture of the dataflows in the documentation is what its script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_picture_is_up_to_date_and_well_formed() -> None:
    spec = importlib.util.spec_from_file_location("draw_dataflows", DOCS / "draw_dataflows.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = script.picture()
    assert (DOCS / "dataflows.svg").read_text(encoding="utf-8") == drawn
    labels = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert labels.count("PE (2, 2)") == 2
