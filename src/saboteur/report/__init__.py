"""The report: what a campaign found, for a person to read and sign and for a program to read.

- :func:`data`: everything shown, as values, apart from drawing (:class:`ReportData`).
- :func:`write_html`: one offline HTML file.
- :func:`to_json`, :func:`json_schema`: the same values for programs, and what their keys mean.
- :func:`write_figures`: the figures as SVG or PDF, for a paper.

All take an open :class:`saboteur.campaign.results.Results` or the :class:`ReportData` gathered from it, and give
the same bytes for the same store.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from saboteur.campaign.results import Results
from saboteur.report import figures, html
from saboteur.report.data import ReportData, data
from saboteur.report.glossary import FORMULAS, TERMS, Formula, Term

__all__ = [
    "FORMULAS",
    "TERMS",
    "Formula",
    "ReportData",
    "Term",
    "data",
    "json_schema",
    "to_json",
    "write_figures",
    "write_html",
]


def write_html(results: Results | ReportData, path: Path) -> None:
    """Write the report as one HTML file that needs nothing else.

    Raises:
        SaboteurError: when the file cannot be written.
    """
    html.write(_gathered(results), path)


def write_figures(results: Results | ReportData, folder: Path, format: Literal["svg", "pdf"] = "svg") -> list[Path]:
    """Write each figure that the results allow into ``folder``, and say which.

    Raises:
        SaboteurError: for another format, or when the folder cannot be written.
    """
    return figures.write_figures(_gathered(results), folder, format)


def to_json(results: Results | ReportData) -> dict[str, Any]:
    """Everything the report shows as plain values.

    The keys are the attributes of :class:`ReportData` and of what it holds; ``schema`` is raised when one changes.
    Rates are shares of 1, each an object with ``low``, ``best``, ``high``, ``k``, ``n``, ``population``, ``method``,
    ``confidence``, ``unit``, ``stopping_rule``, ``clusters`` and ``effective_n``. What is unknown is ``None``.
    """
    return json.loads(_ADAPTER.dump_json(_gathered(results)))


def json_schema() -> dict[str, Any]:
    """The JSON Schema of :func:`to_json`."""
    return _ADAPTER.json_schema(mode="serialization")


_ADAPTER = TypeAdapter(ReportData)


def _gathered(results: Results | ReportData) -> ReportData:
    return results if isinstance(results, ReportData) else data(results)
