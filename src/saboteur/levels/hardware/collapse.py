"""Fault collapsing: stuck-at faults at gate level of which one stands for many, and those that nothing can show.

Lines are the nets (flip-flop outputs, inputs and cell outputs), and the pins of nets that have several readers. Two
faults are *equivalent* when the faulty machines are the same: a pin and the net that only it reads; an input of an
AND at 0 and its output at 0, and so on (McCluskey and Clegg, IEEE Transactions on Computers C-20(11), 1971). A fault
*dominates* another when every test of the other finds it too; a combinational test set then needs no test for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saboteur.errors import FaultError
from saboteur.levels.hardware.netlist import Design
from saboteur.levels.hardware.simulate import ROW
from saboteur.levels.hardware.sites import PLACE, Sites, stem

_CONTROLLING = {"$_AND_": (0, 0), "$_NAND_": (0, 1), "$_OR_": (1, 1), "$_NOR_": (1, 0)}
"""(value of an input that alone decides the output, that output)."""
_CLOCK_PORTS = ("C", "CLK")

Line = tuple


@dataclass(frozen=True)
class Collapsed:
    """Stuck-at faults, one for each class of equivalent ones.

    Attributes:
        places: [faults], of dtype PLACE; faults of one place are neighbours.
        value: [faults], 0 or 1.
        name: of each.
        size: [faults], how many faults each stands for.
        total: how many faults the lines have: two each.
        untestable: how many of them nothing can show: no path leads from them to an output, or the line is constant
            at that value. They are in no class.
    """

    places: NDArray
    value: NDArray[np.uint8]
    name: tuple[str, ...]
    size: NDArray[np.int64]
    total: int
    untestable: int

    def rows(self, cycles: int) -> NDArray:
        """The faults as rows of dtype ROW, present in all of so many cycles."""
        rows = np.zeros(len(self.places), ROW)
        for column in PLACE.names or ():
            rows[column] = self.places[column]
        rows["fault"], rows["off"], rows["x"] = np.arange(len(rows)), cycles + 1, self.value
        return rows


def collapse(sites: Sites, design: Design, dominance: bool = False) -> Collapsed:
    """All stuck-at faults of a gate-level design, collapsed by structure.

    Args:
        sites: of the design.
        design: at gate level.
        dominance: also leave out faults that dominate others; sound for combinational logic only.

    Raises:
        FaultError: at word level, where operators have no such rules.
    """
    if design.level != "gate":
        raise FaultError("collapse: needs the gate level; word-level operators have no equivalent stuck-at faults")
    lines = _Lines(design)
    parent = list(range(2 * len(lines.names)))

    def root(fault: int) -> int:
        while parent[fault] != fault:
            parent[fault] = parent[parent[fault]]
            fault = parent[fault]
        return fault

    dominated: list[tuple[int, list[int]]] = []
    for kind, output, inputs in lines.gates:
        out = 2 * lines.number[output]
        if kind in ("$_NOT_", "$_BUF_"):
            (pin,) = inputs
            if pin is not None:
                for value in (0, 1):
                    parent[root(2 * pin + value)] = root(out + (value ^ (kind == "$_NOT_")))
        elif kind in _CONTROLLING:
            low, high = _CONTROLLING[kind]
            for pin in inputs:
                if pin is not None:
                    parent[root(2 * pin + low)] = root(out + high)
            pins = [2 * pin + (1 - low) for pin in inputs if pin is not None]
            if dominance and len(pins) == len(inputs):
                dominated.append((out + (1 - high), pins))
    seen, where = lines.observable, sites.lines()
    faults = [2 * i + v for i, line in enumerate(lines.names) for v in (0, 1) if line in where]
    untestable = {fault for fault in faults if fault // 2 not in seen} | lines.constant.intersection(faults)
    classes: dict[int, list[int]] = {}
    for fault in faults:
        if fault not in untestable:
            classes.setdefault(root(fault), []).append(fault)
    dropped = {root(fault) for fault, pins in dominated if any(root(pin) in classes for pin in pins)}
    chosen = [members for fault, members in classes.items() if fault not in dropped]
    picked = [(where[lines.names[members[-1] // 2]], members[-1] % 2, len(members)) for members in chosen]
    picked.sort(key=lambda fault: (int(fault[0][0]["kind"]), int(fault[0][0]["place"]), int(fault[0][0]["offset"])))
    places = np.array([place for (place, _), _, _ in picked], PLACE)
    value = np.array([value for _, value, _ in picked], np.uint8)
    names = tuple(f"{name} stuck at {v}" for (_, name), v, _ in picked)
    size = np.array([size for *_, size in picked], np.int64)
    return Collapsed(places, value, names, size, len(faults), len(untestable))


class _Lines:
    """The lines of a design: ``(instance, cell, port)`` of pins, stems by their driver.

    Of data read from memories: ``(instance, "memory", port, bit)``.
    """

    def __init__(self, design: Design):
        readers: dict[Line, list[Line]] = {}
        self._outputs: set[Line] = set()
        constant_pins: list[tuple[Line, int]] = []
        cells: list[tuple[str, Line, list[Line], list[Line | None]]] = []
        stems: list[Line] = []
        for path, module in design.instances():
            for i, cell in enumerate(module.cells):
                pins, drivers = [], []
                for port, bits in cell.inputs.items():
                    pin, driver = (path, i, port), stem(design, path, bits[0])
                    pins.append(pin)
                    drivers.append(driver)
                    if driver is None:
                        constant_pins.append((pin, int(bits[0] == "1")))
                    else:
                        readers.setdefault(driver, []).append(pin)
                cells.append((cell.kind, (path, i, "Q" if cell.is_flip_flop else "Y"), pins, drivers))
            for i, memory in enumerate(module.memories):
                for k, (_, data) in enumerate(memory.reads):
                    stems += [(path, "memory", (i, k), position) for position in range(len(data))]
            for bit in module.memory_bits():
                if (driver := stem(design, path, bit)) is not None:
                    self._outputs.add(driver)
        for bit in design.output_bits():
            if (driver := stem(design, "", bit)) is not None:
                self._outputs.add(driver)
        stems = [line for _, line, _, _ in cells] + stems
        stems += [line for line in readers if line[0] is None and line[1] != design.clock]
        known = set(stems)
        branches = [
            pin
            for driver, pins in readers.items()
            for pin in pins
            if driver not in known or len(pins) > 1 or driver in self._outputs
        ]
        branches += [pin for pin, _ in constant_pins]
        self.names: list[Line] = [*stems, *branches]
        self.number = {line: i for i, line in enumerate(self.names)}
        self.constant = {2 * self.number[pin] + value for pin, value in constant_pins}
        self.gates: list[tuple[str, Line, list[int | None]]] = []
        self._from: dict[int, list[int]] = {}
        for kind, output, pins, drivers in cells:
            inputs: list[int | None] = []
            for pin, driver in zip(pins, drivers, strict=True):
                line = self.number.get(pin)
                if line is None and driver is not None:
                    line = self.number.get(driver)
                inputs.append(line)
                if line is not None:
                    self._from.setdefault(self.number[output], []).append(line)
                    if driver in self.number and line != self.number[driver]:
                        self._from.setdefault(line, []).append(self.number[driver])
            if not kind.startswith("$_DFF"):
                self.gates.append((kind, output, inputs))

    @cached_property
    def observable(self) -> set[int]:
        """The lines from which a path leads to an output of the design or into a memory."""
        seen: set[int] = set()
        queue = [self.number[line] for line in self._outputs if line in self.number]
        while queue:
            line = queue.pop()
            if line not in seen:
                seen.add(line)
                queue += self._from.get(line, [])
        return seen


def first_detections(differences: NDArray, faults: int) -> NDArray[np.int32]:
    """The cycle in which each fault is first seen at a watched output; −1 where it never is."""
    first = np.full(faults, np.iinfo(np.int32).max, np.int32)
    np.minimum.at(first, differences["fault"], differences["cycle"])
    return np.where(first == np.iinfo(np.int32).max, -1, first).astype(np.int32)


def coverage(collapsed: Collapsed, detected: Iterable[bool]) -> float:
    """The share of all testable faults, each counted, that is detected."""
    hit = np.asarray(list(detected), np.bool_)
    return float(collapsed.size[hit].sum() / collapsed.size.sum())
