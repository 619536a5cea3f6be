"""The report as one HTML file: no network, no script, the same bytes for the same store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from saboteur.errors import SaboteurError
from saboteur.report import figures
from saboteur.report.data import ReportData, Status
from saboteur.report.glossary import FORMULAS, TERMS
from saboteur.report.wording import SIGN, UNKNOWN, given, percent, whole
from saboteur.statistics import Estimate

OPEN_ROWS = 40
"""A longer table is folded."""

_LABELS = {
    "verdict": "Interval of the SDC rate and the required limit",
    "by-layer": "SDC rate of faults by layer, with intervals",
    "by-bit": "SDC rate of faults by bit, with intervals",
    "layer-bit": "Heat map of the SDC rate of faults by layer and bit",
    "by-component": "SDC rate of faults by component, with intervals",
    "convergence": "SDC rate of faults and its interval over the number of trials",
    "severity": "Share of faults by the share of inputs that they hit",
    "tolerance": "Share of faults that cost more accuracy than is tolerated",
}
_MARKS: dict[Status, str] = {
    "met": "Requirement met",
    "not met": "Requirement not met",
    "open": "Open",
    "no requirement": "No requirement stated",
    "no data": "No data yet",
}


def render(data: ReportData) -> str:
    """The report as HTML text."""
    drawn = {name: figures.draw(data, name) for name in figures.FIGURES}
    return _template().render(
        data=data,
        figure={
            name: Markup(figures.inline(figure, name, _LABELS[name])) if figure is not None else None
            for name, figure in drawn.items()
        },
        mark=_MARKS[data.verdict.status] + ("" if data.progress.complete or not data.verdict.limit else " so far"),
        formulas=[formula for formula in FORMULAS if formula.key in data.methods],
        terms=TERMS,
        open_rows=OPEN_ROWS,
    )


def write(data: ReportData, path: Path) -> None:
    """Write the report.

    Raises:
        SaboteurError: when the file cannot be written; one that is there stays as it is.
    """
    text = render(data).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SaboteurError(f"report: cannot write {path}: {error.strerror or error}") from error


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("saboteur.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent,
        "given": given,
        "whole": whole,
        "rate": _rate,
        "interval": _interval,
        "aligned": _aligned,
        "basis": _basis,
        "methods": _methods,
        "dict": dict,
    }
    environment.globals["unknown"] = UNKNOWN
    return environment.get_template("report.html.j2")


def _aligned(share: float | None) -> Markup:
    """A percentage in two halves that meet at the decimal point, so that columns align on it."""
    if share is None or share != share:
        return Markup(f'<td class="whole">{UNKNOWN}</td><td class="part"></td>')
    whole_part, _, decimals = percent(share).removesuffix(SIGN).partition(".")
    point = f".{decimals}" if decimals else ""
    return Markup(f'<td class="whole">{escape(whole_part)}</td><td class="part">{escape(point)}{SIGN}</td>')


def _rate(estimate: Estimate | None) -> Markup:
    """Cells of a rate: the estimate, low and high, aligned on the decimal point."""
    if estimate is None:
        return Markup("").join([_aligned(None)] * 3)
    return Markup("").join(_aligned(share) for share in (estimate.best, estimate.low, estimate.high))


def _interval(estimate: Estimate) -> str:
    """Low and high in a line of text."""
    return f"{percent(estimate.low)} – {percent(estimate.high)}"


def _basis(estimate: Estimate) -> str:
    """What a rate rests on, in a line of text."""
    parts = [f"k = {whole(estimate.k)} of n = {whole(estimate.n)} {estimate.unit}"]
    if estimate.population is not None:
        parts.append(f"population N = {whole(estimate.population)}")
    if estimate.clusters is not None:
        parts.append(f"{whole(estimate.clusters)} faults")
    if estimate.effective_n is not None:
        parts.append(f"effective n = {whole(estimate.effective_n)}")
    parts += [f"interval: {estimate.method}, {100 * estimate.confidence:g}{SIGN} confidence", estimate.stopping_rule]
    return "; ".join(parts) + "."


def _methods(estimates: Iterable[Estimate | None]) -> str:
    """How the intervals of a table were computed, in a line of text."""
    met = [estimate for estimate in estimates if estimate is not None]
    methods = " or ".join(dict.fromkeys(estimate.method for estimate in met))
    rules = "; ".join(dict.fromkeys(estimate.stopping_rule for estimate in met))
    return f"Low and high: interval at {given(met[0].confidence)} confidence ({methods}; {rules})." if met else ""
