"""Draws ``mapping-*.svg``, the pictures of mappings in ``accelerators.md``: ``python docs/draw_mappings.py``."""

from __future__ import annotations

from pathlib import Path

from saboteur.levels.crosslayer.lowering import Window
from saboteur.levels.crosslayer.mapping import OutputStationary, RowStationary, WeightStationary

HERE = Path(__file__).parent
CONVOLUTION = Window(2, 3, 3, 6, 6, 1, 1, 6, 6)


def draw(folder: Path) -> list[Path]:
    """Draw all of them into ``folder``."""
    drawn = {
        "mapping-output-stationary.svg": (OutputStationary(4, 4, 16, 12, 10), 4),
        "mapping-weight-stationary.svg": (WeightStationary(4, 4, 16, 12, 10), 4),
        "mapping-row-stationary.svg": (RowStationary(6, 4, 36, 18, 4, CONVOLUTION), 2),
    }
    for name, (mapping, tile) in drawn.items():
        mapping.picture(folder / name, tile=tile, pe=(1, 2))
    return [folder / name for name in drawn]


if __name__ == "__main__":
    draw(HERE)
