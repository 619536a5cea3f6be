"""Draws ``dataflows.svg``, the picture of the systolic arrays in ``designs.md``: ``python docs/draw_dataflows.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PICTURE = Path(__file__).parent / "dataflows.svg"

SIZE = 3
DEPTH = 3
PE, GAP, CELL = 64, 28, 34
PITCH = PE + GAP
ORIGIN = 5 * CELL + 3 * GAP
PANEL = ORIGIN + SIZE * PITCH + 30
HEIGHT = ORIGIN + SIZE * PITCH + 3 * CELL + 80
COLOURS = {"west": "#1f6fb4", "north": "#b4511f", "kept": "#2c7a3f", "control": "#666666"}

STYLE = """
text { font: 12px sans-serif; text-anchor: middle; dominant-baseline: central; fill: #222 }
.title { font-size: 15px; font-weight: bold }
.small { font-size: 10.5px }
.note { font-size: 11.5px; text-anchor: start }
"""


def picture() -> str:
    """Return both panels as one SVG document."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * PANEL} {HEIGHT}" role="img" '
        'aria-label="Dataflow of the output-stationary and the weight-stationary array">',
        f"<style>{STYLE}</style>",
        "<defs>",
        *(_arrow_head(colour) for colour in COLOURS.values()),
        "</defs>",
        f'<rect width="{2 * PANEL}" height="{HEIGHT}" fill="white"/>',
        "<g>",
        *_output_stationary(),
        "</g>",
        f'<g transform="translate({PANEL} 0)">',
        *_weight_stationary(),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _output_stationary() -> Iterator[str]:
    yield _text(PANEL / 2, 18, "Output-stationary", "title")
    yield from _array("C", "acc")
    for lane in range(SIZE):
        for k in range(DEPTH):
            yield _west_cell(lane, lane + k, f"A{lane}{k}")
            yield _north_cell(lane, lane + k, f"B{k}{lane}")
        for place in range(SIZE):
            yield _south_cell(lane, place, f"C{place}{lane}", "kept")
    yield _note(0, "A[i, k] and B[k, j] meet in PE (i, j) in cycle T + 1 + i + j + k; the sum stays.")
    yield _note(1, "drain: each PE takes the sum of its northern neighbour; the last row leaves first.")
    yield _note(2, "Controls (grey) travel east with A.")


def _weight_stationary() -> Iterator[str]:
    yield _text(PANEL / 2, 18, "Weight-stationary", "title")
    yield from _array("B", "weight")
    for lane in range(SIZE):
        for m in range(DEPTH):
            yield _west_cell(lane, lane + m, f"A{m}{lane}")
            yield _south_cell(lane, m, f"C{m}{lane}", "north", reverse=True)
        for step in range(SIZE):
            yield _north_cell(lane, lane + step, f"B{SIZE - 1 - step}{lane}", "kept")
    yield _note(0, "load: the weights move south, the last row first; then they stay.")
    yield _note(1, "A[m, i] is in PE (i, j) in cycle T + 1 + m + i + j; the sum with A[m, i] B[i, j] goes south.")
    yield _note(2, "Controls (grey) travel east with A.")


def _array(kept: str, register: str) -> Iterator[str]:
    for row in range(SIZE):
        for column in range(SIZE):
            x, y = ORIGIN + column * PITCH, ORIGIN + row * PITCH
            yield (
                f'<rect x="{x}" y="{y}" width="{PE}" height="{PE}" rx="8" fill="#eef5ee" '
                f'stroke="{COLOURS["kept"]}" stroke-width="1.5"/>'
            )
            yield _text(x + PE / 2, y + 14, f"PE ({row}, {column})", "small")
            yield _text(x + PE / 2, y + 34, f"{kept}{row}{column}")
            yield _text(x + PE / 2, y + 51, register, "small")
            yield _arrow(x - GAP + 3, y + PE / 2 - 8, x - 3, y + PE / 2 - 8, "west")
            yield _arrow(x - GAP + 3, y + PE / 2 + 8, x - 3, y + PE / 2 + 8, "control")
            yield _arrow(x + PE / 2 - 8, y - GAP + 3, x + PE / 2 - 8, y - 3, "north" if kept == "C" else "kept")
            yield _arrow(x + PE / 2 + 8, y - GAP + 3, x + PE / 2 + 8, y - 3, "kept" if kept == "C" else "north")


def _west_cell(row: int, cycle: int, label: str) -> str:
    """An operand that enters a row in the given cycle: the later, the farther away."""
    return _cell(ORIGIN - GAP - (cycle + 1) * CELL, ORIGIN + row * PITCH + (PE - CELL) / 2, label, "west")


def _north_cell(column: int, cycle: int, label: str, colour: str = "north") -> str:
    return _cell(ORIGIN + column * PITCH + (PE - CELL) / 2, ORIGIN - GAP - (cycle + 1) * CELL, label, colour)


def _south_cell(column: int, place: int, label: str, colour: str, *, reverse: bool = False) -> str:
    """A result below its column: what left first is at the bottom."""
    distance = SIZE - 1 - place if reverse else place
    return _cell(
        ORIGIN + column * PITCH + (PE - CELL) / 2, ORIGIN + SIZE * PITCH - GAP + 10 + distance * CELL, label, colour
    )


def _cell(x: float, y: float, label: str, colour: str) -> str:
    box = (
        f'<rect x="{x + 1:g}" y="{y + 1:g}" width="{CELL - 2}" height="{CELL - 2}" rx="3" fill="white" '
        f'stroke="{COLOURS[colour]}"/>'
    )
    return box + _text(x + CELL / 2, y + CELL / 2, label, "small")


def _text(x: float, y: float, text: str, style: str = "") -> str:
    chosen = f' class="{style}"' if style else ""
    return f'<text x="{x:g}" y="{y:g}"{chosen}>{text}</text>'


def _note(line: int, text: str) -> str:
    return _text(40, HEIGHT - 62 + 20 * line, text, "note")


def _arrow(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    shade = COLOURS[colour]
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{shade}" stroke-width="1.5" '
        f'marker-end="url(#{_marker(shade)})"/>'
    )


def _arrow_head(colour: str) -> str:
    return (
        f'<marker id="{_marker(colour)}" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="5" markerHeight="5" '
        f'orient="auto"><path d="M0,0 L6,3 L0,6 z" fill="{colour}"/></marker>'
    )


def _marker(colour: str) -> str:
    return f"head{colour.removeprefix('#')}"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
