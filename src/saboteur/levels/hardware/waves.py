"""Waveforms: golden against faulty ones for a viewer, the path of an error as a table, and values from dumps of others.

Files are value change dumps (``.vcd``: IEEE 1364-2005, section 18) or GTKWave's ``.fst``, for which the package
``pylibfst`` is needed. Golden and faulty waveforms come from two traces [cycles, signals], such as
:meth:`saboteur.levels.hardware.target.DesignTarget.traces` gives.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.netlist import Slot

WAVE_FILES = (".vcd", ".fst")
_FIRST_CODE, _CODES = 33, 94


def write_waves(path: Path | str, signals: Sequence[Slot], golden: NDArray, faulty: NDArray) -> None:
    """Write both machines, one time unit a clock cycle.

    The scopes ``golden`` and ``faulty`` hold the hierarchy of the design; ``differs`` is 1 in cycles in which any
    signal does.

    Args:
        path: of the file, ``.vcd`` or ``.fst``.
        signals: which the traces hold: the slots of a design, and nets inside of its slices.
        golden: [cycles, signals].
        faulty: the same of the machine with the fault.

    Raises:
        TargetError: for another ending, or where ``pylibfst`` is missing.
    """
    write = {".vcd": _write_vcd, ".fst": _write_fst}.get(Path(path).suffix)
    if write is None:
        raise TargetError(f"waves: {path} must end in {' or '.join(WAVE_FILES)}")
    within = _hierarchy(signals)
    order = [slot for kind, *_, slot in within if kind == "signal"]
    declared = [("scope", "trial"), ("signal", "differs", 1, -1)]
    for name in ("golden", "faulty"):
        declared += [("scope", name), *within, ("end",)]
    differs = (golden != faulty).any(axis=1)[:, None]
    values = np.concatenate([differs, golden[:, order], faulty[:, order]], axis=1).astype(np.uint64)
    write(Path(path), [*declared, ("end",)], values)


def path_of_error(signals: Sequence[Slot], golden: NDArray, faulty: NDArray) -> pa.Table:
    """Where an error came by, in order of time.

    Returns:
        A row for each signal that ever differs: ``cycle`` (the first), ``name``, ``instance``, ``golden`` and
        ``faulty`` (its values then) and ``cycles`` (in how many it differs).
    """
    differs = golden != faulty
    slots = np.flatnonzero(differs.any(axis=0))
    first = differs[:, slots].argmax(axis=0)
    order = np.argsort(first, kind="stable")
    slots, first = slots[order], first[order]
    return pa.table(
        {
            "cycle": first,
            "name": [signals[i].name for i in slots],
            "instance": [signals[i].instance for i in slots],
            "golden": golden[first, slots].astype(np.uint64),
            "faulty": faulty[first, slots].astype(np.uint64),
            "cycles": differs[:, slots].sum(axis=0),
        }
    )


def read_waves(path: Path, names: Collection[str]) -> Iterator[dict[str, int]]:
    """The changes of signals in a dump, time by time: only what changes; X and Z are 0.

    Args:
        path: of the file, ``.vcd`` or ``.fst``.
        names: of the signals; of several of one name, the one in the outermost scope is meant.

    Raises:
        TargetError: when a signal is not in the file (with near names), or ``pylibfst`` is missing.
        OSError, ValueError: when the file cannot be read.
    """
    signals, changes = _read_vcd(path.read_text()) if path.suffix == ".vcd" else _read_fst(path)
    found: dict[str, tuple[int, Any]] = {}
    for depth, name, code in signals:
        if name not in found or depth < found[name][0]:
            found[name] = depth, code
    wanted: dict[Any, list[str]] = {}
    for name in names:
        if name not in found:
            raise TargetError(f"stimulus: {path} has no signal {name!r}{near(name, found)}")
        wanted.setdefault(found[name][1], []).append(name)
    now, new = None, {}
    for time, code, value in changes:
        if time != now and new:
            yield new
            new = {}
        now = time
        for name in wanted.get(code, ()):
            new[name] = int(re.sub("[^01]", "0", value), 2)
    if new:
        yield new


def _hierarchy(signals: Sequence[Slot]) -> list[tuple]:
    """``("scope", name)``, ``("signal", name, width, slot)`` and ``("end",)``, for all of them in their instances."""
    tree: dict = {}
    for i, slot in enumerate(signals):
        scope = tree
        for part in filter(None, slot.instance.split(".")):
            scope = scope.setdefault(part, {})
        prefix = f"{slot.instance}." if slot.instance else ""
        name = slot.name.removeprefix(prefix).replace(" ", "_")
        scope.setdefault("", []).append(("signal", name, slot.width, i))

    def declared(scope: dict) -> list[tuple]:
        lines = list(scope.get("", []))
        for part, inner in scope.items():
            if part:
                lines += [("scope", part), *declared(inner), ("end",)]
        return lines

    return declared(tree)


def _changes(values: NDArray[np.uint64]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """The columns that change, and to what, in each row in which any does."""
    changed = np.ones_like(values, np.bool_)
    changed[1:] = values[1:] != values[:-1]
    for row in np.flatnonzero(changed.any(axis=1)).tolist():
        yield row, [(k, int(values[row, k])) for k in np.flatnonzero(changed[row]).tolist()]


# -- files ---------------------------------------------------------------------------------------------------------


def _write_vcd(path: Path, declared: Sequence[tuple], values: NDArray[np.uint64]) -> None:
    lines, widths = ["$timescale 1ns $end"], []
    for kind, *what in declared:
        if kind == "signal":
            lines.append(f"$var wire {what[1]} {_code(len(widths))} {what[0]} $end")
            widths.append(what[1])
        else:
            lines.append(f"$scope module {what[0]} $end" if kind == "scope" else "$upscope $end")
    lines.append("$enddefinitions $end")
    for cycle, new in _changes(values):
        lines.append(f"#{cycle}")
        lines += [f"{value}{_code(k)}" if widths[k] == 1 else f"b{value:b} {_code(k)}" for k, value in new]
    lines.append(f"#{len(values)}")
    path.write_text("\n".join(lines) + "\n")


def _read_vcd(text: str) -> tuple[list[tuple[int, str, str]], Iterator[tuple[int, str, str]]]:
    header, found, body = text.partition("$enddefinitions")
    if not found:
        raise ValueError("no value change dump: no $enddefinitions")
    signals, depth = [], 0
    for words in re.findall(r"\$(scope|upscope|var)\b\s*(.*?)\s*\$end", header, re.DOTALL):
        if words[0] == "var":
            _, _, code, name, *_ = words[1].split()
            signals.append((depth, name, code))
        else:
            depth += 1 if words[0] == "scope" else -1

    def changes() -> Iterator[tuple[int, str, str]]:
        time = 0
        items = iter(body.split())
        for item in items:
            if item[0] == "#":
                time = int(item[1:])
            elif item[0] in "bB":
                yield time, next(items), item[1:]
            elif item[0] in "01xXzZ":
                yield time, item[1:], item[0]

    return signals, changes()


def _pylibfst() -> Any:
    try:
        import pylibfst
    except ImportError as error:
        raise TargetError("waves: .fst files need the package pylibfst: pip install 'saboteur[waves]'") from error
    return pylibfst


def _write_fst(path: Path, declared: Sequence[tuple], values: NDArray[np.uint64]) -> None:
    fst, handles, widths = _pylibfst().lib, [], []
    file = fst.fstWriterCreate(str(path).encode(), 1)
    if not file:
        raise TargetError(f"waves: cannot write {path}")
    fst.fstWriterSetTimescaleFromString(file, b"1ns")
    for kind, *what in declared:
        if kind == "signal":
            name = what[0].encode()
            handles.append(fst.fstWriterCreateVar(file, fst.FST_VT_VCD_WIRE, fst.FST_VD_IMPLICIT, what[1], name, 0))
            widths.append(what[1])
        elif kind == "scope":
            fst.fstWriterSetScope(file, fst.FST_ST_VCD_MODULE, what[0].encode(), b"")
        else:
            fst.fstWriterSetUpscope(file)
    for cycle, new in _changes(values):
        fst.fstWriterEmitTimeChange(file, cycle)
        for k, value in new:
            fst.fstWriterEmitValueChange(file, handles[k], f"{value:0{widths[k]}b}".encode())
    fst.fstWriterEmitTimeChange(file, len(values))
    fst.fstWriterClose(file)


def _read_fst(path: Path) -> tuple[list[tuple[int, str, int]], Iterator[tuple[int, int, str]]]:
    pylibfst = _pylibfst()
    fst = pylibfst.lib
    file = fst.fstReaderOpen(str(path).encode()) if path.is_file() else None
    if not file:
        raise ValueError("no such file, or not an FST file")
    signals = []
    _, named = pylibfst.get_scopes_signals2(file)
    for signal in named.by_name.values():
        scope, _, name = signal.name.rpartition(".")
        signals.append((scope.count("."), name.partition(" ")[0], signal.handle))
    found: list[tuple[int, int, str]] = []
    fst.fstReaderSetFacProcessMaskAll(file)
    pylibfst.fstReaderIterBlocks(
        file, lambda _, time, handle, value: found.append((time, handle, pylibfst.string(value)))
    )
    fst.fstReaderClose(file)
    return signals, iter(sorted(found, key=lambda change: change[0]))


def _code(number: int) -> str:
    """A short identifier of printable characters."""
    code = chr(_FIRST_CODE + number % _CODES)
    while number >= _CODES:
        number = number // _CODES - 1
        code = chr(_FIRST_CODE + number % _CODES) + code
    return code
