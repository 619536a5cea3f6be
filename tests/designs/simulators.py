"""Run a design in Icarus Verilog or Verilator with given inputs by cycle, and check it with Yosys."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

needs_icarus = pytest.mark.skipif(shutil.which("iverilog") is None, reason="Icarus Verilog is not installed")
needs_verilator = pytest.mark.skipif(shutil.which("verilator") is None, reason="Verilator is not installed")


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def _hexadecimal(values: np.ndarray) -> str:
    return "\n".join(f"{value:x}" for value in values.tolist())


def _bytes(values: np.ndarray, width: int) -> bytes:
    """Port values as little-endian words of 64 bits."""
    return b"".join(value.to_bytes(8 * -(-width // 64), "little") for value in values.tolist())


def _values(integers: Iterable[int], width: int) -> np.ndarray:
    return np.array(list(integers), dtype=np.uint64 if width <= 64 else object)


def icarus(
    folder: Path,
    files: Sequence[Path],
    top: str,
    parameters: Mapping[str, int],
    stimulus: Mapping[str, np.ndarray],
    widths: Mapping[str, int],
    outputs: Mapping[str, int],
    probes: Mapping[str, int] | None = None,
    preload: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Return ``[cycles]`` for each output port and probe (hierarchical name below the top: width).

    Memories in ``preload`` (hierarchical name below the top: unsigned words) are filled before the first cycle.
    """
    probes = probes or {}
    cycles = len(next(iter(stimulus.values())))
    declarations, connections, reads, applies = [], [".clk(clk)"], [], []
    for port, values in stimulus.items():
        (folder / f"{port}.hex").write_text(_hexadecimal(values))
        size = f"[{widths[port] - 1}:0]"
        declarations.append(f"reg {size} {port}_by_cycle [0:{cycles - 1}]; reg {size} {port};")
        reads.append(f'$readmemh("{port}.hex", {port}_by_cycle);')
        applies.append(f"{port} = {port}_by_cycle[cycle];")
        connections.append(f".{port}({port})")
    for port, width in outputs.items():
        declarations.append(f"wire [{width - 1}:0] {port};")
        connections.append(f".{port}({port})")
    for number, (memory, words) in enumerate((preload or {}).items()):
        (folder / f"memory{number}.hex").write_text(_hexadecimal(words))
        declarations.append(f"reg [63:0] memory{number} [0:{len(words) - 1}];")
        reads.append(f'$readmemh("memory{number}.hex", memory{number});')
        reads.append(f"for (cycle = 0; cycle < {len(words)}; cycle = cycle + 1)")
        reads.append(f"dut.{memory}[cycle] = memory{number}[cycle];")
    observed = {**{port: port for port in outputs}, **{probe: f"dut.{probe}" for probe in probes}}
    settings = ", ".join(f".{name}({value})" for name, value in parameters.items())
    (folder / "bench.v").write_text(f"""
module bench;
  reg clk = 0;
  integer cycle, file;
  {" ".join(declarations)}
  {top} #({settings}) dut ({", ".join(connections)});
  initial begin
    {" ".join(reads)}
    file = $fopen("observed.txt", "w");
    for (cycle = 0; cycle < {cycles}; cycle = cycle + 1) begin
      {" ".join(applies)}
      #5 $fdisplay(file, "{" ".join(["%h"] * len(observed))}", {", ".join(observed.values())});
      clk = 1;
      #5 clk = 0;
    end
    $finish;
  end
endmodule
""")
    run("iverilog", "-g2005", "-Wall", "-Wno-timescale", "-o", "bench.vvp", "bench.v", *files, folder=folder)
    run("vvp", "-n", "bench.vvp", folder=folder)
    columns = zip(*(line.split() for line in (folder / "observed.txt").read_text().splitlines()), strict=True)
    all_widths = {**outputs, **probes}
    # An unknown bit (X, before the first reset) reads as 0.
    return {
        name: _values((int(text.replace("x", "0").replace("X", "0"), 16) for text in column), all_widths[name])
        for name, column in zip(observed, columns, strict=True)
    }


def verilator(
    folder: Path,
    files: Sequence[Path],
    top: str,
    parameters: Mapping[str, int],
    stimulus: Mapping[str, np.ndarray],
    widths: Mapping[str, int],
    outputs: Mapping[str, int],
) -> dict[str, np.ndarray]:
    """Return ``[cycles]`` for each output port; any lint warning of Verilator is an error.

    Off are warnings about signed operands that Verilog extends by itself, about comparisons that the parameters
    decide, and about bits that nobody reads: what flows past the last column, the upper bits of load data.
    """
    cycles = len(next(iter(stimulus.values())))
    for port, values in stimulus.items():
        (folder / f"{port}.bin").write_bytes(_bytes(values, widths[port]))
    opens = "".join(f'FILE* {port} = fopen("{port}.bin", "rb");' for port in stimulus)
    applies = "".join(
        f"fread(word, 8, {-(-widths[port] // 64)}, {port}); memcpy(&top->{port}, word, sizeof top->{port});"
        for port in stimulus
    )
    creates = "".join(f'FILE* {port} = fopen("{port}.bin", "wb");' for port in outputs)
    records = "".join(
        f"memset(word, 0, sizeof word); memcpy(word, &top->{port}, sizeof top->{port});"
        f"fwrite(word, 8, {-(-width // 64)}, {port});"
        for port, width in outputs.items()
    )
    closes = "".join(f"fclose({port});" for port in outputs)
    (folder / "main.cpp").write_text(f"""
#include <cstdint>
#include <cstdio>
#include <cstring>
#include "V{top}.h"
int main() {{
  V{top}* top = new V{top};
  uint64_t word[4096];
  {opens}
  {creates}
  for (long cycle = 0; cycle < {cycles}; ++cycle) {{
    top->clk = 0;
    {applies}
    top->eval();
    {records}
    top->clk = 1;
    top->eval();
  }}
  {closes}
  delete top;
  return 0;
}}
""")
    settings = [f"-G{name}={value}" for name, value in parameters.items()]
    flags = ["--cc", "--exe", "--build", "-O3", "--x-assign", "0", "-CFLAGS", "-O1", "-Wall", "-Wno-DECLFILENAME"]
    flags += ["-Wno-WIDTH", "-Wno-UNUSEDSIGNAL", "-Wno-PINCONNECTEMPTY", "-Wno-UNSIGNED", "-Wno-CMPCONST"]
    run("verilator", *flags, "--top-module", top, *settings, "main.cpp", *files, folder=folder)
    run(folder / "obj_dir" / f"V{top}", folder=folder)
    recorded = {}
    for port, width in outputs.items():
        size = 8 * -(-width // 64)
        content = (folder / f"{port}.bin").read_bytes()
        chunks = (content[at : at + size] for at in range(0, len(content), size))
        recorded[port] = _values((int.from_bytes(chunk, "little") for chunk in chunks), width)
    return recorded


def yosys(folder: Path, files: Sequence[Path], top: str, parameters: Mapping[str, int], *, gates: bool = True) -> str:
    """Check a design as it is written and (``gates``) synthesised, and return the log; a failed check is an error.

    Raises:
        AssertionError: If Yosys reports an error, a latch, a combinational loop or an undriven net.
    """
    pytest.importorskip("pyosys", reason="pyosys is not installed")
    settings = " ".join(f"-chparam {name} {value}" for name, value in parameters.items())
    synthesis = ["synth", "select -assert-none t:$_DLATCH_*", "check -assert"] if gates else []
    script = [
        f"read_verilog {' '.join(str(path) for path in files)}",
        f"hierarchy -check -top {top} {settings}",
        "proc",
        "select -assert-none t:$dlatch t:$adlatch t:$dlatchsr",
        "check -assert",
        *synthesis,
    ]
    (folder / "check.ys").write_text("\n".join([*script, ""]))
    python = "from pyosys import libyosys as ys; d = ys.Design(); ys.run_pass('script check.ys', d)"
    return run(sys.executable, "-c", python, folder=folder)
