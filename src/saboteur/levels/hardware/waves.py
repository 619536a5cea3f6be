"""Golden against faulty waveforms for a waveform viewer, and the path of an error as a table.

Both come from two traces [cycles, slots], such as :meth:`saboteur.levels.hardware.target.DesignTarget.traces` gives.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.levels.hardware.netlist import Design

_FIRST_CODE, _CODES = 33, 94


def write_vcd(path: Path | str, design: Design, golden: NDArray, faulty: NDArray) -> None:
    """Write both machines as a value change dump (IEEE 1364-2005, section 18), one time unit a clock cycle.

    The scopes ``golden`` and ``faulty`` hold the hierarchy of the design; ``differs`` is 1 in cycles in which any
    signal does.

    Args:
        path: of the file.
        design: whose slots the traces hold.
        golden: [cycles, slots].
        faulty: the same of the machine with the fault.
    """
    lines = ["$timescale 1ns $end", "$scope module trial $end", f"$var wire 1 {_code(0)} differs $end"]
    for name, first in (("golden", 1), ("faulty", 1 + len(design.slots))):
        lines.append(f"$scope module {name} $end")
        lines += _scopes(design, first)
        lines.append("$upscope $end")
    lines += ["$upscope $end", "$enddefinitions $end"]
    values = np.concatenate([(golden != faulty).any(axis=1)[:, None], golden, faulty], axis=1).astype(np.uint64)
    widths = [1, *(slot.width for slot in design.slots), *(slot.width for slot in design.slots)]
    changed = np.ones_like(values, np.bool_)
    changed[1:] = values[1:] != values[:-1]
    for cycle in np.flatnonzero(changed.any(axis=1)):
        lines.append(f"#{cycle}")
        for k in np.flatnonzero(changed[cycle]).tolist():
            value = int(values[cycle, k])
            lines.append(f"{value}{_code(k)}" if widths[k] == 1 else f"b{value:b} {_code(k)}")
    lines.append(f"#{len(golden)}")
    Path(path).write_text("\n".join(lines) + "\n")


def path_of_error(design: Design, golden: NDArray, faulty: NDArray) -> pa.Table:
    """Where an error came by, in order of time.

    Returns:
        A row for each slot that ever differs: ``cycle`` (the first), ``name``, ``instance``, ``golden`` and ``faulty``
        (its values then) and ``cycles`` (in how many it differs).
    """
    differs = golden != faulty
    slots = np.flatnonzero(differs.any(axis=0))
    first = differs[:, slots].argmax(axis=0)
    order = np.argsort(first, kind="stable")
    slots, first = slots[order], first[order]
    return pa.table(
        {
            "cycle": first,
            "name": [design.slots[i].name for i in slots],
            "instance": [design.slots[i].instance for i in slots],
            "golden": golden[first, slots].astype(np.uint64),
            "faulty": faulty[first, slots].astype(np.uint64),
            "cycles": differs[:, slots].sum(axis=0),
        }
    )


def _scopes(design: Design, first: int) -> list[str]:
    """Declarations of all slots in the scopes of their instances."""
    tree: dict = {}
    for i, slot in enumerate(design.slots):
        scope = tree
        for part in filter(None, slot.instance.split(".")):
            scope = scope.setdefault(part, {})
        prefix = f"{slot.instance}." if slot.instance else ""
        scope.setdefault("", []).append((slot.name.removeprefix(prefix).replace(" ", "_"), slot.width, i))

    def declared(scope: dict) -> list[str]:
        lines = [f"$var wire {width} {_code(first + i)} {name} $end" for name, width, i in scope.get("", [])]
        for part, inner in scope.items():
            if part:
                lines += [f"$scope module {part} $end", *declared(inner), "$upscope $end"]
        return lines

    return declared(tree)


def _code(number: int) -> str:
    """A short identifier of printable characters."""
    code = chr(_FIRST_CODE + number % _CODES)
    while number >= _CODES:
        number = number // _CODES - 1
        code = chr(_FIRST_CODE + number % _CODES) + code
    return code
