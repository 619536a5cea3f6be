"""Cells of a Liberty file: small modules in Yosys' JSON form, and the gates that stand in the place of an instance.

Only the pins of a cell are fault sites. An input pin that several gates in the cell read, and an output pin that does
not show a gate alone, is a buffer of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Bit = int | str
_MARK = "liberty_cell"
MARKING = f"-setattr {_MARK}"
"""The option of Yosys' ``read_liberty`` by which :func:`is_library_cell` knows its cells."""

ASYNCHRONOUS = "$auto$async2sync"
"""How the nets are called that Yosys puts between a flip-flop and what asynchronous sets and resets make of it."""


def follow(bit: Bit, after: Mapping[Bit, Bit]) -> Bit:
    """The end of a chain."""
    while bit in after:
        bit = after[bit]
    return bit


def is_library_cell(module: Mapping[str, Any]) -> bool:
    """Whether a module of a netlist is a cell of a Liberty file."""
    return bool(int(str(module.get("attributes", {}).get(_MARK, 0)), 2))


@dataclass(frozen=True)
class Part:
    """One gate or flip-flop in a cell. Bits are called as the cell's ports (``pin[0]`` and so on), or are in the cell.

    Attributes:
        kind: of the Yosys cell.
        inputs: bits by port.
        output: the bit that it drives.
        pins: the pins of the cell by port; ``Q`` is the state of a flip-flop.
        clock: a flip-flop's clock and whether it acts on the rising edge; None where every step is one.
        shown: of a flip-flop, the outputs of the cell that depend on its state, in order.
        held: of a flip-flop, its state as an asynchronous set or reset leaves it.
    """

    kind: str
    inputs: dict[str, Bit]
    output: Bit
    pins: dict[str, str]
    clock: tuple[Bit, bool] | None = None
    shown: tuple[str, ...] = ()
    held: Bit = "x"


@dataclass(frozen=True)
class LibraryCell:
    """What an instance of a cell is made of.

    Attributes:
        ports: the bits of each port, as the parts name them.
        parts: gates and flip-flops.
    """

    ports: dict[str, list[str]]
    parts: tuple[Part, ...]


def library_cell(module: Mapping[str, Any]) -> LibraryCell:
    """The cell that a module of :func:`is_library_cell` describes."""
    gates = [(cell["type"], cell["connections"]) for cell in module["cells"].values()]
    driven = {bits[port][0]: (kind, bits) for kind, bits in gates for port in "YQ" if port in bits}
    reads = Counter(of[0] for _, bits in gates for port, of in bits.items() if port not in "YQC")
    ports, given, outputs = {}, {}, []
    for name, port in module["ports"].items():
        labels = [name if len(port["bits"]) == 1 else f"{name}[{i}]" for i in range(len(port["bits"]))]
        ports[name] = labels
        if port["direction"] == "input":
            given |= dict(zip(port["bits"], labels, strict=True))
        else:
            outputs += zip(labels, port["bits"], strict=True)
    reads.update(bit for _, bit in outputs)
    value: dict[Bit, Bit] = {**{bit: bit for bit in (*driven, "0", "1", "x")}, **given}
    alone = {bit: label for label, bit in outputs if bit in driven and reads[bit] == 1}
    value |= alone
    forced = {bit for name, net in module["netnames"].items() if name.startswith(ASYNCHRONOUS) for bit in net["bits"]}
    after = {
        bits[p][0]: bits["Y"][0] for _, bits in gates if "Y" in bits for p in "AB" if bits.get(p, [0])[0] in forced
    }
    parts = []
    for bit, label in given.items():
        if reads[bit] > 1:
            value[bit] = bit
            parts.append(Part("$_BUF_", {"A": label}, bit, {"A": label}))

    def pins(bits: Mapping[str, list[Bit]]) -> dict[str, str]:
        return {port: given[of[0]] for port, of in bits.items() if of[0] in given and reads[of[0]] == 1 and port != "C"}

    for label, bit in outputs:
        if bit not in alone:
            parts.append(Part("$_BUF_", {"A": value[bit]}, label, {**pins({"A": [bit]}), "Y": label}))
    for kind, bits in gates:
        inputs = {port: value[of[0]] for port, of in bits.items() if port not in "YQC"}
        out = bits["Q" if "Q" in bits else "Y"][0]
        if "Q" not in bits:
            shown = {"Y": alone[out]} if out in alone else {}
            parts.append(Part(kind, inputs, value[out], pins(bits) | shown))
        else:
            clock = _clock(bits["C"][0], kind != "$_DFF_N_", driven) if "C" in bits else None
            shown = tuple(label for label, bit in outputs if out in _cone(bit, driven))
            clock = clock and (value[clock[0]] if clock[0] in driven else given.get(clock[0], clock[0]), clock[1])
            held = value[follow(out, after)]
            parts.append(Part(kind, inputs, value[out], pins(bits) | {"Q": "Q"}, clock, shown, held))
    return LibraryCell(ports, tuple(parts))


def with_one_store(module: Mapping[str, Any]) -> Mapping[str, Any]:
    """Yosys writes a flip-flop or latch for each output that shows a state: those of one data and clock are one."""
    first: dict[tuple, int] = {}
    same: dict[Any, Any] = {}
    cells = {}
    for name, cell in module["cells"].items():
        bits = cell["connections"]
        if "Q" in bits:
            (state,) = bits["Q"]
            same[state] = first.setdefault((*bits["D"], *bits.get("C", bits.get("E", ()))), state)
            if same[state] != state:
                continue
        cells[name] = cell

    def renamed(bits: Iterable[Any]) -> list[Any]:
        return [same.get(bit, bit) for bit in bits]

    for name, cell in cells.items():
        cells[name] = {**cell, "connections": {port: renamed(bits) for port, bits in cell["connections"].items()}}
    ports = {name: {**port, "bits": renamed(port["bits"])} for name, port in module["ports"].items()}
    nets = {name: {**module["netnames"][name], "bits": port["bits"]} for name, port in ports.items()}
    return {**module, "cells": cells, "ports": ports, "netnames": nets}


def _clock(bit: Bit, rising: bool, driven: Mapping[Bit, Any]) -> tuple[Bit, bool]:
    """The bit that clocks, and on which edge, before inverters."""
    while bit in driven and driven[bit][0] in ("$_NOT_", "$_BUF_"):
        rising ^= driven[bit][0] == "$_NOT_"
        (bit,) = driven[bit][1]["A"]
    return bit, rising


def _cone(bit: Bit, driven: Mapping[Bit, Any]) -> set[Bit]:
    """The bits before one, up to flip-flops."""
    seen, queue = set(), [bit]
    while queue:
        bit = queue.pop()
        if bit not in seen:
            seen.add(bit)
            bits = driven[bit][1] if bit in driven else {}
            queue += [of[0] for port, of in bits.items() if "Q" not in bits and port != "Y"]
    return seen
