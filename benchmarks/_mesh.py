"""A systolic mesh that another tool writes: CIRCT, in whose Verilog Chisel designs come (``pip install circt``).

The processing element follows the published one of Gemmini (Genc et al., DAC 2021): output- and weight-stationary
dataflow chosen cycle by cycle, two accumulators that take turns, rounding shifts and saturation at the output; every
element passes operands, results and controls on through registers that only move when they are valid.

    python -m benchmarks._mesh 8 > mesh.sv
"""

from __future__ import annotations

import io
import sys

_WORDS = {"b": 20, "d": 20, "dataflow": 1, "propagate": 1, "shift": 5, "id": 3, "last": 1}
"""What a column passes down, by bits; ``a``, of 8, goes right, and ``valid`` down with every word."""


def verilog(size: int) -> str:
    """A mesh of ``size`` × ``size`` elements, as SystemVerilog; its top module is ``Mesh``.

    Raises:
        ImportError: when CIRCT is not installed.
    """
    import circt
    from circt.ir import Context, Location, Module
    from circt.passmanager import PassManager

    passes = "lower-seq-to-sv, canonicalize, cse, hw.module(prettify-verilog)"
    with Context() as context, Location.unknown():
        circt.register_dialects(context)
        module = Module.parse(_element() + _mesh(size))
        PassManager.parse(f"builtin.module({passes})").run(module.operation)
        text = io.StringIO()
        circt.export_verilog(module, text)
    return text.getvalue()


def ports(size: int) -> dict[str, int]:
    """Inputs and their bits, without ``clock`` and ``reset``."""
    columns = {f"in_{name}_{k}": bits for name, bits in (*_WORDS.items(), ("valid", 1)) for k in range(size)}
    return {f"in_a_{k}": 8 for k in range(size)} | columns


def outputs(size: int) -> dict[str, int]:
    """Outputs and their bits."""
    names = {"b": 20, "c": 20, "valid": 1, "propagate": 1, "dataflow": 1, "shift": 5, "id": 3, "last": 1}
    return {f"out_{name}_{k}": bits for name, bits in names.items() for k in range(size)}


def _signed(name: str, value: str, bits: int, wide: int) -> str:
    return f"""
  %{name}_sign = comb.extract {value} from {bits - 1} : (i{bits}) -> i1
  %{name}_top = comb.replicate %{name}_sign : (i1) -> i{wide - bits}
  %{name} = comb.concat %{name}_top, {value} : i{wide - bits}, i{bits}"""


def _rounded(name: str, value: str) -> str:
    """``value`` shifted right by ``%offset``, rounded to nearest even, saturated to 20 bits."""
    return f"""
  %{name}_cut = comb.shrs {value}, %offset : i32
  %{name}_below = comb.sub %offset, %one : i32
  %{name}_half = comb.shru {value}, %{name}_below : i32
  %{name}_half0 = comb.extract %{name}_half from 0 : (i32) -> i1
  %{name}_unit = comb.shl %one, %{name}_below : i32
  %{name}_mask = comb.sub %{name}_unit, %one : i32
  %{name}_rest = comb.and {value}, %{name}_mask : i32
  %{name}_some = comb.icmp ne %{name}_rest, %zero : i32
  %{name}_odd = comb.extract %{name}_cut from 0 : (i32) -> i1
  %{name}_up = comb.or %{name}_some, %{name}_odd : i1
  %{name}_round = comb.and %{name}_half0, %{name}_up, %shifts : i1
  %{name}_more = comb.concat %zero31, %{name}_round : i31, i1
  %{name}_sum = comb.add %{name}_cut, %{name}_more : i32
  %{name}_high = comb.icmp sgt %{name}_sum, %highest : i32
  %{name}_low = comb.icmp slt %{name}_sum, %lowest : i32
  %{name}_clipped = comb.mux %{name}_low, %lowest, %{name}_sum : i32
  %{name}_clip = comb.mux %{name}_high, %highest, %{name}_clipped : i32
  %{name} = comb.extract %{name}_clip from 0 : (i32) -> i20"""


def _element() -> str:
    return f"""
hw.module @PE(in %clock : !seq.clock, in %a : i8, in %b : i20, in %d : i20, in %dataflow : i1, in %propagate : i1,
              in %shift : i5, in %valid : i1, out out_b : i20, out out_c : i20) {{
  %zero = hw.constant 0 : i32
  %one = hw.constant 1 : i32
  %zero31 = hw.constant 0 : i31
  %zero27 = hw.constant 0 : i27
  %highest = hw.constant 524287 : i32
  %lowest = hw.constant -524288 : i32
  %c1 = seq.firreg %c1_next clock %clock : i32
  %c2 = seq.firreg %c2_next clock %clock : i32
  %before = seq.firreg %before_next clock %clock : i1
  %before_next = comb.mux %valid, %propagate, %before : i1
  %flip = comb.xor %before, %propagate : i1
  %amount = comb.concat %zero27, %shift : i27, i5
  %offset = comb.mux %flip, %amount, %zero : i32
  %shifts = comb.icmp ne %offset, %zero : i32{_signed("a32", "%a", 8, 32)}{_signed("b32", "%b", 20, 32)}
  %b8 = comb.extract %b from 0 : (i20) -> i8{_signed("b8w", "%b8", 8, 32)}{_signed("d32", "%d", 20, 32)}
  %kept = comb.mux %propagate, %c1, %c2 : i32
  %summed = comb.mux %propagate, %c2, %c1 : i32
  %weight = comb.extract %summed from 0 : (i32) -> i8{_signed("w32", "%weight", 8, 32)}
  %factor = comb.mux %dataflow, %w32, %b8w : i32
  %addend = comb.mux %dataflow, %b32, %summed : i32
  %product = comb.mul %a32, %factor : i32
  %mac = comb.add %product, %addend : i32
  %next_summed = comb.mux %dataflow, %summed, %mac : i32
  %c1_new = comb.mux %propagate, %d32, %next_summed : i32
  %c2_new = comb.mux %propagate, %next_summed, %d32 : i32
  %c1_next = comb.mux %valid, %c1_new, %c1 : i32
  %c2_next = comb.mux %valid, %c2_new, %c2 : i32{_rounded("r", "%kept")}
  %kept20 = comb.extract %kept from 0 : (i32) -> i20
  %mac20 = comb.extract %mac from 0 : (i32) -> i20
  %result_c = comb.mux %dataflow, %kept20, %r : i20
  %result_b = comb.mux %dataflow, %mac20, %b : i20
  hw.output %result_b, %result_c : i20, i20
}}
"""


def _mesh(size: int) -> str:
    lines, results = [], []

    def register(name: str, bits: int, value: str, enable: str | None) -> str:
        if enable is None:
            lines.append(f"%{name} = seq.firreg {value} clock %clock reset sync %reset, %off : i1")
        else:
            lines.append(f"%{name}_next = comb.mux {enable}, {value}, %{name} : i{bits}")
            lines.append(f"%{name} = seq.firreg %{name}_next clock %clock : i{bits}")
        return f"%{name}"

    down = {name: [f"%in_{name}_{k}" for k in range(size)] for name in _WORDS}
    valid = [f"%in_valid_{k}" for k in range(size)]
    for row in range(size):
        a = f"%in_a_{row}"
        for column in range(size):
            at = f"{row}_{column}"
            here = {
                name: register(f"{name}_{at}", bits, down[name][column], valid[column]) for name, bits in _WORDS.items()
            }
            enabled = register(f"valid_{at}", 1, valid[column], None)
            a = register(f"a_{at}", 8, a, "%always")
            given = f"clock: %clock: !seq.clock, a: {a}: i8, b: {here['b']}: i20, d: {here['d']}: i20"
            given += f", dataflow: {here['dataflow']}: i1, propagate: {here['propagate']}: i1"
            given += f", shift: {here['shift']}: i5, valid: {enabled}: i1"
            lines.append(f'%out_b_{at}, %out_c_{at} = hw.instance "pe_{at}" @PE({given}) -> (out_b: i20, out_c: i20)')
            for name in _WORDS:
                down[name][column] = here[name]
            down["b"][column], down["d"][column] = f"%out_b_{at}", f"%out_c_{at}"
            valid[column] = enabled
    down["c"], down["valid"] = down.pop("d"), valid
    declared = [f"in %{name} : i{bits}" for name, bits in ports(size).items()]
    for name, bits in outputs(size).items():
        declared.append(f"out {name} : i{bits}")
        _, word, column = name.split("_")
        results.append((down[word][int(column)], f"i{bits}"))
    values, kinds = zip(*results, strict=True)
    body = "\n  ".join(["%off = hw.constant 0 : i1", "%always = hw.constant 1 : i1", *lines])
    return (
        f"hw.module @Mesh(in %clock : !seq.clock, in %reset : i1, {', '.join(declared)}) {{\n  {body}\n"
        f"  hw.output {', '.join(values)} : {', '.join(kinds)}\n}}\n"
    )


if __name__ == "__main__":
    sys.stdout.write(verilog(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
