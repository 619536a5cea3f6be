"""Icarus Verilog as a second opinion: the same design, the same stimulus, values of ports cycle by cycle."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_icarus = pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")


@dataclass(frozen=True)
class Event:
    """Verilog statements executed in a cycle after the inputs are set, before the outputs are looked at."""

    cycle: int
    statement: str


def simulate(
    sources: Sequence[Path],
    top: str,
    inputs: Mapping[str, tuple[int, Sequence[int]]],
    outputs: Mapping[str, int],
    clock: str = "clk",
    events: Sequence[Event] = (),
    parameters: str = "",
) -> dict[str, list[str]]:
    """The outputs before each clock edge as binary digits (with x and z), by port.

    Args:
        inputs: (width, value by cycle) by port.
        outputs: width by expression, such as a port ``y`` or ``dut.u.acc``.
        clock: of the design, that rises once in each cycle; none if empty.
        events: faults.
        parameters: such as ``#(.N(2))``.
    """
    cycles = len(next(iter(inputs.values()))[1])
    with tempfile.TemporaryDirectory() as folder:
        lines = ["`timescale 1ns/1ns", "module testbench;", "integer t;"]
        ports = []
        if clock:
            lines.append(f"reg {clock} = 0;")
            ports.append(f".{clock}({clock})")
        for name, (width, values) in inputs.items():
            Path(folder, f"{name}.hex").write_text("\n".join(f"{int(value):x}" for value in values) + "\n")
            lines += [f"reg [{width - 1}:0] {name}; reg [{width - 1}:0] {name}_at [0:{cycles - 1}];"]
            ports.append(f".{name}({name})")
        ends = [name for name in outputs if "." not in name]
        lines += [f"wire [{outputs[name] - 1}:0] {name};" for name in ends]
        ports += [f".{name}({name})" for name in ends]
        lines += [f"{top} {parameters} dut({', '.join(ports)});", "initial begin"]
        lines += [f'$readmemh("{folder}/{name}.hex", {name}_at);' for name in inputs]
        lines.append(f"for (t = 0; t < {cycles}; t = t + 1) begin")
        lines += [f"{name} = {name}_at[t];" for name in inputs]
        lines += ["#1;"]
        lines += [f"if (t == {event.cycle}) begin {event.statement} end" for event in events]
        formats = " ".join(["%b"] * len(outputs))
        lines += ["#4;", f'$display("{formats}", {", ".join(outputs)});']
        lines += [f"{clock} = 1; #5; {clock} = 0;"] if clock else []
        lines += ["end", "end", "endmodule"]
        text = Path(folder, "testbench.v")
        text.write_text("\n".join(lines) + "\n")
        built = Path(folder, "run")
        command = ["iverilog", "-g2012", "-o", str(built), str(text), *map(str, sources)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        run = subprocess.run(["vvp", "-n", str(built)], check=True, capture_output=True, text=True)
    rows = [line.split() for line in run.stdout.splitlines() if set(line) <= set("01xz ") and line.strip()]
    assert len(rows) == cycles
    return {name: [row[k] for row in rows] for k, name in enumerate(outputs)}


def agree(ours: Sequence[int], theirs: Sequence[str]) -> bool:
    """Whether our two-valued words match wherever the other simulator knows the bit; some bit must be known."""
    known = 0
    for value, digits in zip(ours, theirs, strict=True):
        for k, digit in enumerate(reversed(digits)):
            if digit in "01":
                known += 1
                if int(value) >> k & 1 != int(digit):
                    return False
    return known > 0
