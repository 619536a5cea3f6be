"""The figure of several levels side by side, from :class:`saboteur.reliability.levels.LevelComparison` alone."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from saboteur.errors import SaboteurError
from saboteur.reliability.levels import LevelComparison
from saboteur.report import figures

COLOURS = ("#1c2024", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of levels, in their order: ink for the reference, then those of Okabe and Ito (Color Universal Design, 2008)."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_SPREAD = 0.7
_FLOOR = 0.3
"""Intervals that reach down to 0 are drawn to this share of the smallest rate that is not."""


def draw(comparison: LevelComparison) -> Figure:
    """SDC rates with their intervals, a group of rows a layer, a row a level; rates on a logarithmic axis."""
    with matplotlib.rc_context(figures.STYLE):
        levels = [level for level in comparison.levels if any(row.level == level for row in comparison.rows)]
        height = 0.75 + len(comparison.layers) * (0.16 + 0.15 * len(levels))
        figure, axes = figures.axes_of(figures.PAGE_WIDTH, height)
        positive = [row.estimate.best for row in comparison.rows if row.estimate.best > 0]
        least = _FLOOR * min([*positive, 1.0])
        for number, level in enumerate(levels):
            offset = _SPREAD * ((number + 0.5) / len(levels) - 0.5)
            colour, marker = COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]
            rows = [comparison.row(layer, level) for layer in comparison.layers]
            met = [(place + offset, row.estimate) for place, row in enumerate(rows) if row is not None]
            at, estimates = [place for place, _ in met], [estimate for _, estimate in met]
            low, best, high = (np.array([getattr(e, name) for e in estimates]) for name in ("low", "best", "high"))
            axes.hlines(at, np.maximum(low, least), np.maximum(high, least), color=colour, linewidth=2.2, alpha=0.45)
            axes.plot(np.maximum(best, least), at, marker, color=colour, markersize=3.8, zorder=3, label=level)
        for place in range(1, len(comparison.layers)):
            axes.axhline(place - 0.5, color=figures.RULE, linewidth=0.6, zorder=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xscale("log")
        axes.set(ylim=(len(comparison.layers) - 0.5, -0.5), xlim=(least, None))
        axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        axes.set_yticks(range(len(comparison.layers)), comparison.layers, color=figures.INK)
        confidence = f"{100 * comparison.confidence:g} % intervals"
        axes.set_xlabel(f"SDC rate of {comparison.unit} under {comparison.criterion}, {confidence}")
        figure.legend(
            loc="outside upper left", ncols=min(len(levels), 4), frameon=False, handletextpad=0.3, columnspacing=1.6
        )
        return figure


def write(comparison: LevelComparison, path: Path) -> None:
    """Write the figure as ``.svg`` or ``.png``.

    Raises:
        SaboteurError: for another ending, or when the file cannot be written.
    """
    figure = draw(comparison)
    try:
        if path.suffix == ".svg":
            path.write_bytes(figures.svg(figure, outlines=True))
        elif path.suffix == ".png":
            with matplotlib.rc_context(figures.STYLE):
                FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
        else:
            raise SaboteurError(f"figure: {path} must end in .svg or .png")
    except OSError as error:
        raise SaboteurError(f"figure: cannot write {path}: {error.strerror or error}") from error
