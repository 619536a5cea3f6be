"""The figures of a report, drawn from :class:`saboteur.report.data.ReportData` alone.

Matplotlib's object interface only: no pyplot, no state outside of a figure. Colours are those of Okabe and Ito
(Color Universal Design, 2008), told apart with any colour vision and in grey print; sizes are for a column or
page of a paper. The same data give the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from saboteur.errors import SaboteurError
from saboteur.report.data import Group, ReportData
from saboteur.report.wording import given
from saboteur.statistics import Estimate

INK, MUTED, RULE, PAPER = "#1c2024", "#5d6670", "#dde1e6", "#fdfdfe"
BLUE, VERMILION, SKY, ABSENT = "#0072b2", "#d55e00", "#56b4e9", "#eceef1"
HEAT = LinearSegmentedColormap.from_list("heat", ["#eaf3fa", "#9ecae6", "#3d8fc4", "#0a5a94", "#06304f"], N=48)
"""So few shades that matplotlib draws the scale as vectors."""
PAGE_WIDTH = 7.2
"""Inches: the text width of a two-column page."""
MOST_ROWS = 80
"""Of a figure with one row a layer; more are shown as the most vulnerable ones."""

STYLE = {
    "svg.hashsalt": "saboteur",
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "hatch.color": "#98a1ab",
    "text.parse_math": False,
    "axes.unicode_minus": True,
}
"""Settings of matplotlib for all figures."""


def draw(data: ReportData, name: str) -> Figure | None:
    """One figure of :data:`FIGURES`, or ``None`` where the data have nothing for it."""
    with matplotlib.rc_context(STYLE):
        return FIGURES[name](data)


def write_figures(data: ReportData, folder: Path, format: Literal["svg", "pdf"] = "svg") -> list[Path]:
    """Write every figure that the data allow into ``folder``.

    Returns:
        The files, in the order of the report.

    Raises:
        SaboteurError: for another format, or when the folder cannot be written.
    """
    if format not in ("svg", "pdf"):
        raise SaboteurError(f"format: {format!r} is not svg or pdf")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FIGURES:
            figure = draw(data, name)
            if figure is not None:
                path = folder / f"{name}.{format}"
                path.write_bytes(svg(figure, outlines=True) if format == "svg" else _pdf(figure))
                written.append(path)
    except OSError as error:
        raise SaboteurError(f"figures: cannot write {folder}: {error.strerror or error}") from error
    return written


def svg(figure: Figure, outlines: bool) -> bytes:
    """A figure as SVG, its letters drawn as outlines or kept as text."""
    stream = BytesIO()
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "path" if outlines else "none"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    return stream.getvalue()


def _pdf(figure: Figure) -> bytes:
    stream = BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasPdf(figure).print_pdf(stream, metadata={"CreationDate": None})
    return stream.getvalue()


_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ABSENT: "--absent", BLUE: "--blue", VERMILION: "--alarm"}


def inline(figure: Figure, name: str, label: str) -> str:
    """A figure as an SVG element for an HTML page: its colours follow the page, its ids are its own."""
    text = svg(figure, outlines=False).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _on_page(tag[0], name), text)
    size = re.search(r'<svg[^>]*?viewBox="([^"]+)"', text)
    width = float(size[1].split()[2]) if size else 0.0
    opening = f'<svg class="figure" role="img" aria-label="{label}" style="max-width:{width * 1.45:.0f}px"'
    opening += f' viewBox="{size[1] if size else ""}">'
    return opening + text[text.index(">") + 1 :].strip()


def _on_page(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', tag)
    tag = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", tag)
    tag = re.sub(r' xmlns(:xlink)?="[^"]*"', "", tag).replace("'DejaVu Sans'", "var(--sans)")
    for colour, variable in _VARIABLES.items():
        tag = tag.replace(colour, f"var({variable})")
    return tag


# -- helpers ------------------------------------------------------------------------------------------------


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches, with one pair of axes that has a bottom line only."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    return figure, axes


def _percent_axis(axis: matplotlib.axis.Axis) -> None:
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: given(round(share, 12))))


def _top(estimates: Sequence[Estimate], also: float = 0.0) -> float:
    highest = max([*(estimate.high for estimate in estimates), also])
    return min(1.0, highest * 1.06) if highest > 0 else 0.01


def _intervals(axes: Axes, at: Sequence[float], estimates: Sequence[Estimate], upright: bool, colour: str) -> None:
    low, best, high = (np.array([getattr(e, name) for e in estimates]) for name in ("low", "best", "high"))
    (axes.vlines if upright else axes.hlines)(at, low, high, color=colour, linewidth=2.4, alpha=0.45)
    axes.plot(*((at, best) if upright else (best, at)), "o", color=colour, markersize=3.6, zorder=3, clip_on=False)


def _bit_name(bit: int | None) -> str:
    return "value" if bit is None else str(bit)


# -- the figures --------------------------------------------------------------------------------------------


def _verdict(data: ReportData) -> Figure | None:
    estimate, limit = data.verdict.estimate, data.verdict.limit
    if estimate is None:
        return None
    figure, axes = axes_of(PAGE_WIDTH, 1.05)
    top = _top([estimate], limit or 0.0)
    axes.hlines(0, estimate.low, estimate.high, color=BLUE, linewidth=9, alpha=0.35)
    axes.plot([estimate.best], [0], "o", color=BLUE, markersize=7, zorder=3)
    if limit is not None:
        axes.axvline(limit, color=VERMILION, linewidth=1.6, zorder=2)
        side = "right" if limit > 0.75 * top else "left"
        axes.annotate(
            "limit",
            (limit, 1),
            xytext=(-4 if side == "right" else 4, -1),
            textcoords="offset points",
            ha=side,
            va="top",
            color=VERMILION,
        )
    axes.set(xlim=(0, top), ylim=(-1, 1), yticks=[])
    _percent_axis(axes.xaxis)
    axes.set_xlabel(f"SDC rate of {estimate.unit} under {data.verdict.criterion}")
    return figure


def _rows(data_groups: tuple[Group, ...], title: str) -> Figure | None:
    met = [group for group in data_groups if group.sdc is not None]
    if not met:
        return None
    shown = met
    if len(met) > MOST_ROWS:
        worst = sorted(range(len(met)), key=lambda i: (-met[i].sdc.best, i))[:MOST_ROWS]  # type: ignore[union-attr]
        shown = [met[i] for i in sorted(worst)]
    estimates = [group.sdc for group in shown if group.sdc is not None]
    figure, axes = axes_of(PAGE_WIDTH, 0.6 + 0.2 * len(shown))
    at = np.arange(len(shown))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    _intervals(axes, at.tolist(), estimates, upright=False, colour=BLUE)
    axes.set(ylim=(len(shown) - 0.5, -0.5), xlim=(0, _top(estimates)))
    axes.set_yticks(at, [_shortened(group.name) for group in shown], color=INK)
    _percent_axis(axes.xaxis)
    axes.set_xlabel(title)
    return figure


def _shortened(name: str, most: int = 36) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _by_layer(data: ReportData) -> Figure | None:
    return _rows(data.by_layer.groups, "SDC rate of faults")


def _by_component(data: ReportData) -> Figure | None:
    return _rows(data.by_component.groups, "SDC rate of faults") if len(data.by_component.groups) > 1 else None


def _by_bit(data: ReportData) -> Figure | None:
    groups = data.by_bit.groups[::-1]  # the most significant bit on the left, as words are written
    met = [(i, group.sdc) for i, group in enumerate(groups) if group.sdc is not None]
    if not met:
        return None
    estimates = [estimate for _, estimate in met]
    figure, axes = axes_of(PAGE_WIDTH, 2.3)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    _intervals(axes, [i for i, _ in met], estimates, upright=True, colour=BLUE)
    top = _top(estimates)
    axes.set(xlim=(-0.6, len(groups) - 0.4), ylim=(0, top))
    for i, group in enumerate(groups):
        if group.sdc is None:
            axes.add_patch(Rectangle((i - 0.5, 0), 1, top, facecolor=ABSENT, hatch="////", edgecolor="none"))
    axes.set_xticks(range(len(groups)), [_bit_name(group.bit) for group in groups])
    _percent_axis(axes.yaxis)
    axes.set_xlabel("bit (0 is the least significant)")
    axes.set_ylabel("SDC rate of faults")
    return figure


def _compact(n: int) -> str:
    if n < 1000:
        return str(n)
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if n < 999.5 * size:
            return f"{n / size:.1f}{unit}" if n < 9.95 * size else f"{n / size:.0f}{unit}"
    return f"{n:.0e}"


def _layer_bit(data: ReportData) -> Figure | None:
    groups = data.by_layer_bit.groups
    if not data.by_layer_bit.met:
        return None
    layers = list(dict.fromkeys(group.name for group in groups))
    bits = sorted({group.bit for group in groups}, key=lambda bit: -1 if bit is None else bit, reverse=True)
    if len(layers) > MOST_ROWS:
        worst: dict[str, float] = {}
        for group in groups:
            worst[group.name] = max(worst.get(group.name, 0.0), group.sdc.best if group.sdc else 0.0)
        kept = set(sorted(layers, key=lambda name: -worst[name])[:MOST_ROWS])
        layers = [name for name in layers if name in kept]
    row, column = {name: i for i, name in enumerate(layers)}, {bit: i for i, bit in enumerate(bits)}
    cell = 0.19
    figure, axes = axes_of(PAGE_WIDTH, 0.75 + cell * len(layers))
    axes.spines["bottom"].set_visible(False)
    top = max((group.sdc.best for group in groups if group.sdc), default=0.0) or 1.0
    small = min(5.0, 5.0 * 32 / max(len(bits), 32))
    for group in groups:
        if group.name not in row:
            continue
        x, y = column[group.bit], row[group.name]
        box = {"xy": (x - 0.46, y - 0.46), "width": 0.92, "height": 0.92, "linewidth": 0}
        if group.sdc is None:
            axes.add_patch(Rectangle(**box, facecolor="none", hatch="//////", edgecolor="none", gid=f"unmet-{y}-{x}"))
            continue
        share = group.sdc.best / top
        colour = HEAT(math.sqrt(share)) if group.sdc.k else PAPER
        edge = {} if group.sdc.k else {"linewidth": 0.5, "edgecolor": "#c3dcee"}
        axes.add_patch(Rectangle(**(box | {"facecolor": colour} | edge)))
        ink = "#ffffff" if group.sdc.k and math.sqrt(share) > 0.4 else "#2a333b"
        axes.text(x, y, _compact(group.sdc.n), ha="center", va="center", fontsize=small, color=ink)
    axes.set(xlim=(-0.5, len(bits) - 0.5), ylim=(len(layers) - 0.5, -0.5))
    axes.set_xticks(range(len(bits)), [_bit_name(bit) for bit in bits])
    axes.set_yticks(range(len(layers)), [_shortened(name, 28) for name in layers], color=INK)
    axes.set_xlabel("bit (0 is the least significant); in each cell: n, faults injected there")
    scale = matplotlib.cm.ScalarMappable(matplotlib.colors.PowerNorm(0.5, 0, top), HEAT)
    bar = figure.colorbar(scale, ax=axes, fraction=0.02, pad=0.01, aspect=14, shrink=min(1.0, 4 / len(layers)))
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
    bar.set_ticks([0, 0.1 * top, 0.25 * top, 0.5 * top, top])
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: given(float(f"{share:.3g}"))))
    return figure


def _convergence(data: ReportData) -> Figure | None:
    points = data.convergence
    if len(points) < 2:
        return None
    trials = [point.trials for point in points]
    estimates = [point.estimate for point in points]
    figure, axes = axes_of(PAGE_WIDTH, 2.1)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.fill_between(trials, [e.low for e in estimates], [e.high for e in estimates], color=BLUE, alpha=0.2, lw=0)
    axes.plot(trials, [e.best for e in estimates], color=BLUE, linewidth=1.6)
    limit = data.verdict.limit if data.verdict.estimate and data.verdict.estimate.unit == "faults" else None
    if limit is not None:
        axes.axhline(limit, color=VERMILION, linewidth=1.2)
        axes.annotate(
            "limit", (1, limit), xycoords=("axes fraction", "data"), xytext=(0, 2), textcoords="offset points",
            ha="right", va="bottom", color=VERMILION, fontsize=7,
        )  # fmt: skip
    top = _top(estimates, limit or 0.0)
    axes.set(xscale="log", xlim=(trials[0], trials[-1]), ylim=(0, top))
    ticks = [n for n in _round_numbers(trials[0], trials[-1]) if trials[0] <= n <= trials[-1]]
    axes.set_xticks(ticks, [f"{n:,}".replace(",", "\u202f") for n in ticks])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    _percent_axis(axes.yaxis)
    axes.set_xlabel("valid trials, evenly from all strata")
    axes.set_ylabel("SDC rate of faults")
    return figure


def _round_numbers(low: int, high: int) -> list[int]:
    steps = (1, 2, 5) if high < 200 * low else (1,)
    return [step * 10**power for power in range(0, 13) for step in steps if low <= step * 10**power <= high] or [
        low,
        high,
    ]


def _severity(data: ReportData) -> Figure | None:
    if not data.severity:
        return None
    figure, axes = axes_of(PAGE_WIDTH, 0.55 + 0.2 * len(data.severity))
    estimates = [kind.share for kind in data.severity]
    at = np.arange(len(estimates))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.barh(at, [e.best for e in estimates], height=0.62, color=SKY, alpha=0.55)
    axes.hlines(at, [e.low for e in estimates], [e.high for e in estimates], color=INK, linewidth=0.9)
    axes.set_yticks(at, [kind.label for kind in data.severity], color=INK)
    axes.set(ylim=(len(at) - 0.5, -0.5), xlim=(0, _top(estimates)))
    _percent_axis(axes.xaxis)
    axes.set_xlabel("share of faults")
    axes.set_ylabel(data.severity_of)
    return figure


def _tolerance(data: ReportData) -> Figure | None:
    if data.accuracy is None or len(data.accuracy.tolerances) < 2:
        return None
    steps = data.accuracy.tolerances
    figure, axes = axes_of(PAGE_WIDTH, 2.1)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    at = range(len(steps))
    estimates = [step.share for step in steps]
    _intervals(axes, list(at), estimates, upright=True, colour=BLUE)
    axes.plot(at, [e.best for e in estimates], color=BLUE, linewidth=0.8, alpha=0.6)
    axes.set_xticks(at, [f"{100 * step.tolerance:g}" for step in steps])
    axes.set(ylim=(0, _top(estimates)), xlim=(-0.4, len(steps) - 0.6))
    _percent_axis(axes.yaxis)
    axes.set_xlabel("points of accuracy that may be lost")
    axes.set_ylabel("faults that cost more")
    return figure


FIGURES: dict[str, Callable[[ReportData], Figure | None]] = {
    "verdict": _verdict,
    "by-layer": _by_layer,
    "by-bit": _by_bit,
    "layer-bit": _layer_bit,
    "by-component": _by_component,
    "convergence": _convergence,
    "severity": _severity,
    "tolerance": _tolerance,
}
"""Name of each figure (and of its file) and what draws it."""
