"""A mapping as a picture: the blocks of a tile in A, B and C, the array in one cycle, and one PE over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

if TYPE_CHECKING:
    from saboteur.levels.crosslayer.mapping import Mapping, Matrix

COLOURS: dict[Matrix, str] = {"A": "#1f6fb4", "B": "#b4511f", "C": "#2c7a3f"}
_IDLE, _GRID, _TEXT = "#f3f3f3", "#9a9a9a", "#222222"
_LABELLED_PES = 16
_LONGEST_STRIP = 120
_FLOWS = {
    "output_stationary": {"A": "east", "B": "south", "C": "stays, then drains south"},
    "weight_stationary": {"A": "east", "B": "loaded south, then stays", "C": "south"},
    "row_stationary": {"A": "image rows on diagonals", "B": "filter rows stay", "C": "adds up south"},
}


def draw(mapping: Mapping, path: Path | str, tile: int, pe: tuple[int, int], cycle: int) -> None:
    """Draw one cycle of one tile; see :meth:`saboteur.levels.crosslayer.mapping.Mapping.picture`."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "saboteur",
        "font.size": 9,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11, 7.6), layout="constrained")
        parts = figure.subplot_mosaic([["blocks", "array"], ["time", "time"]], height_ratios=[2.1, 1])
        figure.suptitle(
            f"{mapping.dataflow.replace('_', '-')}, {mapping.rows} × {mapping.cols} PEs:  "
            f"C[{mapping.m}, {mapping.n}] = A[{mapping.m}, {mapping.k}] · B[{mapping.k}, {mapping.n}]",
            fontsize=11,
        )
        _blocks(parts["blocks"], mapping, tile)
        _array(parts["array"], mapping, cycle, pe)
        _strip(parts["time"], mapping, tile, pe, cycle)
        path = Path(path)
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _blocks(axes: Axes, mapping: Mapping, tile: int) -> None:
    """A to the left of C, B above it, each as large as its sizes allow, with the tile's blocks filled in."""
    m, k, n = (_length(size) for size in (mapping.m, mapping.k, mapping.n))
    gap = 0.35
    block = mapping.block(tile)
    first = {"m": int(block.m) / mapping.m, "k": int(block.k) / mapping.k, "n": int(block.n) / mapping.n}
    size = {"m": int(block.m_size) / mapping.m, "k": int(block.k_size) / mapping.k, "n": int(block.n_size) / mapping.n}
    places: dict[Matrix, tuple[float, float, float, float, str, str]] = {
        "A": (0, 0, k, m, "m", "k"),
        "B": (k + gap, -k - gap, n, k, "k", "n"),
        "C": (k + gap, 0, n, m, "m", "n"),
    }
    for name, (left, top, width, height, rows, cols) in places.items():
        colour = COLOURS[name]
        axes.add_patch(Rectangle((left, top), width, height, facecolor="white", edgecolor=colour, linewidth=1.2))
        corner = left + first[cols] * width, top + first[rows] * height
        axes.add_patch(Rectangle(corner, size[cols] * width, size[rows] * height, facecolor=colour, alpha=0.75))
        axes.text(left + width / 2, top - 0.06, name, ha="center", va="bottom", color=colour, weight="bold")
    axes.text(-0.06, m / 2, f"m: {mapping.m}", ha="right", va="center", rotation=90)
    axes.text(k / 2, m + 0.06, f"k: {mapping.k}", ha="center", va="top")
    axes.text(k + gap + n / 2, m + 0.06, f"n: {mapping.n}", ha="center", va="top")
    axes.set_xlim(-0.3, k + gap + n + 0.1)
    axes.set_ylim(m + 0.3, -k - gap - 0.3)
    axes.set_aspect("equal")
    axes.axis("off")
    ranges = ", ".join(
        f"{name} {int(start)}…{int(start + length) - 1}"
        for name, start, length in zip("mkn", block[:3], block[3:], strict=True)
    )
    axes.set_title(f"tile {tile} of {mapping.tiles}: {ranges}", fontsize=9.5)


def _length(size: int) -> float:
    """Sizes from 1 to thousands as lengths that can be told apart."""
    return 0.5 + np.log10(size) / 2


def _array(axes: Axes, mapping: Mapping, cycle: int, pe: tuple[int, int]) -> None:
    """The PEs in one cycle: which operands each multiplies, grey where none."""
    rows, cols = mapping.rows, mapping.cols
    row, col = np.indices((rows, cols))
    operation = mapping.operation(row, col, cycle)
    busy = operation.m >= 0
    labelled = max(rows, cols) <= _LABELLED_PES
    font = min(7.5, 62 / max(rows, cols))
    for i, j in np.ndindex(rows, cols):
        face = "#e4efe4" if busy[i, j] else _IDLE
        chosen = (i, j) == pe
        axes.add_patch(
            Rectangle(
                (j + 0.06, i + 0.06),
                0.88,
                0.88,
                facecolor=face,
                edgecolor="black" if chosen else _GRID,
                linewidth=1.8 if chosen else 0.6,
            )
        )
        if labelled and busy[i, j]:
            m, k, n = (int(axis[i, j]) for axis in operation)
            for place, name, label in ((0.27, "A", f"{m},{k}"), (0.52, "B", f"{k},{n}"), (0.77, "C", f"{m},{n}")):
                axes.text(
                    j + 0.5,
                    i + place,
                    label,
                    ha="center",
                    va="center",
                    fontsize=font,
                    color=COLOURS[name],  # pyright: ignore[reportArgumentType]
                )
    axes.set_xlim(-0.1, cols + 0.1)
    axes.set_ylim(rows + 0.1, -0.1)
    axes.set_aspect("equal")
    axes.set_xticks(np.arange(cols) + 0.5, [str(j) for j in range(cols)])
    axes.set_yticks(np.arange(rows) + 0.5, [str(i) for i in range(rows)])
    axes.tick_params(length=0, labelsize=7)
    axes.spines[:].set_visible(False)
    axes.set_title(f"cycle {cycle}: the operands and the sum in each PE", fontsize=9.5)
    flows = _FLOWS[mapping.dataflow]
    for line, name, label in ((0, "A", "m,k"), (1, "B", "k,n"), (2, "C", "m,n")):
        axes.text(
            0.0,
            -0.08 - 0.05 * line,
            f"{name}[{label}]: {flows[name]}",
            transform=axes.transAxes,
            fontsize=8,
            color=COLOURS[name],  # pyright: ignore[reportArgumentType]
            va="top",
        )


def _strip(axes: Axes, mapping: Mapping, tile: int, pe: tuple[int, int], cycle: int) -> None:
    """What the registers of one PE hold over a tile's time: a bar where something still reads it."""
    begin = int(mapping.start(tile))
    end = min(begin + mapping.interval + mapping.rows + mapping.cols, mapping.cycles)
    if end - begin > _LONGEST_STRIP:
        begin = max(begin, cycle - _LONGEST_STRIP // 2)
        end = min(end, begin + _LONGEST_STRIP)
    cycles = np.arange(begin, end)
    labels = []
    for name, matrix in mapping.registers.items():
        for word in range(mapping.words(name)):
            level = len(labels)
            labels.append(f"{name}[{word}]" if mapping.words(name) > 1 else name)
            reach = mapping.reach(name, pe[0], pe[1], cycles, word)
            live = np.zeros(len(cycles), bool)
            live[reach.fault] = True
            # Of all products with a word, the last names it: it stays the last while the word stays.
            held = {int(at): _held(matrix, reach, i) for i, at in enumerate(reach.fault)}
            _bars(axes, cycles, live, held, level, COLOURS[matrix])
    level = len(labels)
    labels.append("multiplies")
    operation = mapping.operation(pe[0], pe[1], cycles)
    busy = operation.m >= 0
    _bars(axes, cycles, busy, {int(at): "" for at in np.nonzero(busy)[0]}, level, "#555555")
    axes.axvline(cycle + 0.5, color="black", linewidth=1, linestyle="--")
    starts = mapping.start(np.arange(mapping.tiles))
    for start in starts[(starts >= begin) & (starts <= end)].tolist():
        axes.axvline(start, color=_GRID, linewidth=0.8, linestyle=":")
    axes.set_yticks(np.arange(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.7)
    axes.set_xlim(begin - 0.5, end + 0.5)
    axes.set_xlabel(
        f"cycle of the layer's stream, of {mapping.cycles} cycles  "
        f"(dashed: cycle {cycle}; dotted: a tile starts, every {mapping.interval} cycles)"
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(
        f"PE ({pe[0]}, {pe[1]}): words that are still read (an upset elsewhere changes nothing)",
        fontsize=9.5,
        loc="left",
    )


def _held(matrix: Matrix, reach: tuple, index: int) -> str:
    """The element that a word is, or becomes a part of."""
    _, m, k, _, n = (int(column[index]) for column in reach)
    return {"A": f"{m},{k}", "B": f"{k},{n}", "C": f"{m},{n}"}[matrix]


def _bars(axes: Axes, cycles: np.ndarray, live: np.ndarray, held: dict[int, str], level: int, colour: str) -> None:
    """A bar for each run of cycles with the same content, with the content where there is room for it."""
    at = 0
    while at < len(cycles):
        if not live[at]:
            at += 1
            continue
        stop = at
        while stop < len(cycles) and live[stop] and held[stop] == held[at]:
            stop += 1
        axes.add_patch(
            Rectangle(
                (cycles[at], level - 0.36),
                stop - at,
                0.72,
                facecolor=colour,
                alpha=0.3,
                edgecolor=colour,
                linewidth=0.6,
            )
        )
        if held[at] and (stop - at) * 170 / len(cycles) > len(held[at]) + 1:
            axes.text(
                (cycles[at] + cycles[stop - 1] + 1) / 2,
                level,
                held[at],
                ha="center",
                va="center",
                fontsize=7,
                color=_TEXT,
            )
        at = stop
