"""Native code for a design: each slice of each module becomes one C function over all lanes, each lane a machine.

At word level a slot holds 64 lanes of the narrowest integer that fits; a slice is one loop over the lanes, which
the C compiler turns into SIMD code. At gate level a slot is one 512-bit vector, a bit for each of 512 machines, and
a slice is straight-line logic on vectors.

A slice comes in two forms: a clean one, and a hooked one in which every operand of every cell (*pin*) and every
output (*net*) passes through two masks of its own, v ← (v AND a) XOR x, lane by lane. A run uses the hooked form
only for instances in which a fault is present at that cycle.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path

from saboteur.errors import TargetError
from saboteur.levels.hardware.importing import Level
from saboteur.levels.hardware.netlist import Bit, Cell, Design, Slice, plain

LANES: dict[Level, int] = {"word": 64, "gate": 512}
_CELLS_OF_A_MOVE = 2
_GATES = {
    "$_NOT_": "~{A}",
    "$_BUF_": "{A}",
    "$_AND_": "{A} & {B}",
    "$_NAND_": "~({A} & {B})",
    "$_OR_": "{A} | {B}",
    "$_NOR_": "~({A} | {B})",
    "$_XOR_": "{A} ^ {B}",
    "$_XNOR_": "~({A} ^ {B})",
    "$_MUX_": "{A} ^ (({A} ^ {B}) & {S})",
    "$_NMUX_": "~({A} ^ (({A} ^ {B}) & {S}))",
    "$_ANDNOT_": "{A} & ~{B}",
    "$_ORNOT_": "{A} | ~{B}",
    "$_AOI3_": "~(({A} & {B}) | {C})",
    "$_OAI3_": "~(({A} | {B}) & {C})",
    "$_AOI4_": "~(({A} & {B}) | ({C} & {D}))",
    "$_OAI4_": "~(({A} | {B}) & ({C} | {D}))",
}
_PRELUDE = """
#include <stdint.h>
typedef uint8_t u8; typedef uint16_t u16; typedef uint32_t u32; typedef uint64_t u64;
typedef int8_t s8; typedef int16_t s16; typedef int32_t s32; typedef int64_t s64;
typedef u64 W __attribute__((vector_size(64)));
static inline u64 udiv(u64 a, u64 b) { return b ? a / b : 0; }
static inline u64 umod(u64 a, u64 b) { return b ? a % b : 0; }
static inline s64 sdiv(s64 a, s64 b) { return b == 0 ? 0 : b == -1 ? (s64)(0 - (u64)a) : a / b; }
static inline s64 smod(s64 a, s64 b) { return b == 0 || b == -1 ? 0 : a % b; }
static inline s64 fdiv(s64 a, s64 b) { s64 q = sdiv(a, b), r = smod(a, b); return r && (r < 0) != (b < 0) ? q - 1 : q; }
static inline s64 fmod_(s64 a, s64 b) { s64 r = smod(a, b); return r && (r < 0) != (b < 0) ? r + b : r; }
"""


@dataclass(frozen=True)
class Site:
    """Where the hooked form of a slice can put a fault.

    Attributes:
        cell: index of the cell in its module.
        port: the input port of the cell, ``Y`` for its output (a flip-flop's output is a slot).
        width: in bits.
        offset: of its masks in the hook memory of a node, in bytes: and-mask, xor-mask, and for outputs the
            value before masking, one after the other.
    """

    cell: int
    port: str
    width: int
    offset: int


def lane_bytes(width: int, level: Level) -> int:
    """Bytes of one lane of a word-level slot: 1, 2, 4 or 8; at gate level, of the whole slot."""
    if level == "gate":
        return 64
    return next(size for size in (1, 2, 4, 8) if width <= 8 * size)


def slot_bytes(width: int, level: Level) -> int:
    """Bytes of all lanes of a slot."""
    return 64 if level == "gate" else LANES["word"] * lane_bytes(width, level)


class SliceCode:
    """C for one slice; the sites of its hooked form."""

    def __init__(self, part: Slice, hooked: bool):
        self.part, self.module, self.hooked = part, part.module, hooked
        self.level: Level = part.module.level
        self.sites: list[Site] = []
        self.hook_bytes = 0
        self._first: dict[int, int] = {}
        self._lines: list[str] = []
        self._defined: set[tuple[str, int]] = set()
        emit = self._gate if self.level == "gate" else self._operator
        for source in part.reads:
            self._load(source)
        for cell in part.cells:
            emit(cell, self.module.cells[cell])
            self._store(("cell", cell), f"c{cell}")
        for flip_flop in part.flip_flops:
            cell = self.module.cells[flip_flop]
            value = self._operand(flip_flop, cell, "D", len(cell.output))
            if self.level == "gate":
                masked, value = value, f"d{flip_flop}"
                self._lines.append(f"W {value} = {self._wire(cell.inputs['D'][0])};")
                self._where_present(flip_flop, f"{value} = {masked};")
            self._store(("state", flip_flop), value)

    def first_site(self, cell: int) -> int:
        """The offset of the first site of a cell.

        There, at gate level, is counted how many faults are in the cell; at each other site, how many are in that.
        """
        return self._first[cell]

    def function(self, name: str) -> str:
        """The C function: pointers to the lanes of each slot read, then written; the hook memory."""
        hook = ", const char *restrict h" if self.hooked else ""
        if self.level == "gate":
            counts = f"const u16 *f = (const u16*)(h + {self.hook_bytes});\n" if self.hooked else ""
            return f"void {name}(char *const *p{hook}) {{\n{counts}" + "\n".join(self._lines) + "\n}\n"
        arguments = [
            f"{'const ' * (k < len(self.part.reads))}{self._type(self._width(source))} *restrict a{k} = (void*)p[{k}];"
            for k, source in enumerate((*self.part.reads, *self.part.writes))
        ]
        return (
            f"void {name}(char *const *p{hook}) {{\n" + "\n".join(arguments) + "\n#pragma GCC ivdep\n"
            f"for (int l = 0; l < {LANES['word']}; l++) {{\n" + "\n".join(self._lines) + "\n}}\n"
        )

    # -- values -----------------------------------------------------------------------------------------------

    @staticmethod
    def _type(width: int, signed: bool = False) -> str:
        return f"{'s' if signed else 'u'}{8 * lane_bytes(width, 'word')}"

    def _width(self, source: tuple[str, int]) -> int:
        return len(self.module.words[source[1]]) if source[0] == "in" else len(self.module.cells[source[1]].output)

    def _variable(self, source: tuple[str, int]) -> str:
        return {"in": "i", "cell": "c", "state": "q"}[source[0]] + str(source[1])

    def _load(self, source: tuple[str, int]) -> None:
        k = self.part.reads.index(source)
        if self.level == "gate":
            self._lines.append(f"W {self._variable(source)} = *(const W*)p[{k}];")
        else:
            self._lines.append(f"{self._type(self._width(source))} {self._variable(source)} = a{k}[l];")

    def _store(self, target: tuple[str, int], value: str) -> None:
        if target in self.part.writes:
            k = len(self.part.reads) + self.part.writes.index(target)
            self._lines.append(f"*(W*)p[{k}] = {value};" if self.level == "gate" else f"a{k}[l] = {value};")

    def _mask(self, value: str, site: tuple[int, str, int]) -> str:
        """Pass a value through the masks of a site of the hooked form."""
        cell, port, width = site
        if not self.hooked or self.module.cells[cell].pin(port) is None:
            return value
        size = slot_bytes(width, self.level)
        self.sites.append(Site(cell, port, width, self.hook_bytes))
        self._first.setdefault(cell, self.hook_bytes)
        at = self.hook_bytes
        self.hook_bytes += size * (3 if port == "Y" else 2)
        kind, lane = ("W", "") if self.level == "gate" else (self._type(width), "[l]")
        star = "*" if self.level == "gate" else ""
        if port == "Y" and self.level == "gate":
            value = f"*(W*)(h + {at + 2 * size}) = {value}"
        elif port == "Y":
            self._lines.append(f"(({kind}*)(h + {at + 2 * size})){lane} = {value};")
        masks = [f"{star}((const {kind}*)(h + {at + k * size})){lane}" for k in range(2)]
        return f"(({kind})(({value}) & {masks[0]}) ^ {masks[1]})"

    def _bits(self, bits: Sequence[Bit], kind: str) -> str:
        """A word of the C type ``kind`` put together from bits."""
        terms, constant, k = [], 0, 0
        while k < len(bits):
            source = self.module.source_of(bits[k])
            if source is None:
                constant |= (bits[k] == "1") << k
                k += 1
                continue
            low = self._position(bits[k])
            n = 1
            while k + n < len(bits) and bits[k + n] == bits[k]:
                n += 1
            if n > 1:  # a sign, extended
                bit = f"({kind})({self._variable(source)} >> {low} & 1)"
                terms.append(f"({kind})((({kind})(0 - {bit}) & {_ones(n)}) << {k})")
                k += n
                continue
            while k + n < len(bits) and self.module.source_of(bits[k + n]) == source:
                if self._position(bits[k + n]) != low + n:
                    break
                n += 1
            term, width = self._variable(source), self._width(source)
            if low:
                term = f"({self._type(width)})({term} >> {low})"
            if low + n < width:
                term = f"({term} & {hex((1 << n) - 1)}u{'ll' * (n > 32)})"
            term = f"({kind})({term})"
            terms.append(f"({kind})({term} << {k})" if k else term)
            k += n
        if constant or not terms:
            terms.append(f"({kind}){hex(constant)}{'ull' * (constant > 0x7FFFFFFF)}")
        return terms[0] if len(terms) == 1 else "(" + " | ".join(terms) + ")"

    def _position(self, bit: Bit) -> int:
        driver = self.module.drivers[bit]
        return driver[2] if driver[0] in ("cell", "state") else self.module.word_of[bit][1]

    def _operand(self, index: int, cell: Cell, port: str, width: int, signed: bool = False) -> str:
        """An input of a cell, extended or cut to ``width`` in the C type of that width."""
        bits = cell.inputs[port]
        if self.level == "gate":
            return self._mask(self._wire(bits[0]), (index, port, 1))
        own = self._type(len(bits))
        value = self._mask(self._bits(bits, own), (index, port, len(bits)))
        kind = self._type(width)
        if len(bits) > width:
            return f"({kind})(({kind})({value}) & {_ones(width)})"
        if not signed or len(bits) == width:
            return f"({kind})({value})"
        return f"({kind})({_sign_extended(value, len(bits), width)} & {_ones(width)})"

    # -- cells ------------------------------------------------------------------------------------------------

    def _gate(self, index: int, cell: Cell) -> None:
        if cell.kind not in _GATES:
            raise TargetError(
                f"{plain(self.module.name)}: {cell.kind} {plain(cell.name)}: not a cell of the gate level"
            )
        clean = _GATES[cell.kind].format(**{port: self._wire(bits[0]) for port, bits in cell.inputs.items()})
        pins = {port: self._operand(index, cell, port, 1) for port in cell.inputs}
        masked, at = _GATES[cell.kind].format(**pins), self.hook_bytes // 64
        output = self._mask(f"c{index}", (index, "Y", 1))
        in_pins = f"f[{self.first_site(index) // 64}] != f[{at}]" if self.hook_bytes // 64 > at else "1"
        self._lines.append(f"W c{index} = {clean};")
        self._where_present(index, f"{{ if ({in_pins}) c{index} = {masked}; c{index} = {output}; }}")

    def _wire(self, bit: Bit) -> str:
        """C for a wire of the gate level."""
        source = self.module.source_of(bit)
        return self._variable(source) if source else f"((W){{}} - {int(bit == '1')})"

    def _where_present(self, cell: int, line: str) -> None:
        """At gate level, masks are only looked at where a fault is present in the cell."""
        if self.sites and self.sites[-1].cell == cell:
            self._lines.append(f"if (__builtin_expect(f[{self.first_site(cell) // 64}], 0)) {line}")

    def _operator(self, index: int, cell: Cell) -> None:
        width = len(cell.output)
        kind = self._type(width)
        value = self._expression(index, cell, width)
        self._lines.append(f"{kind} y{index} = ({kind})({value}) & {_ones(width)};")
        self._lines.append(f"{kind} c{index} = {self._mask(f'y{index}', (index, 'Y', width))};")

    def _expression(self, index: int, cell: Cell, width: int) -> str:
        kind, inputs = cell.kind, cell.inputs
        both_signed = bool(cell.parameters.get("A_SIGNED") and cell.parameters.get("B_SIGNED", 1))

        def operand(port: str, wide: int = width, signed: bool = both_signed) -> str:
            name = f"x{index}{port}"
            self._lines.append(f"{self._type(wide)} {name} = {self._operand(index, cell, port, wide, signed)};")
            return name

        if kind in _GATES:
            values = {port: operand(port, 1, False) for port in inputs}
            return _GATES[kind].format(**values)
        binary = {"$add": "+", "$sub": "-", "$and": "&", "$or": "|", "$xor": "^"}
        if kind in binary:
            return f"{operand('A')} {binary[kind]} {operand('B')}"
        if kind == "$xnor":
            return f"~({operand('A')} ^ {operand('B')})"
        if kind in ("$not", "$neg", "$pos"):
            return {"$not": "~", "$neg": "0 - ", "$pos": ""}[kind] + operand("A")
        if kind == "$mul":
            product = min(width, len(inputs["A"]) + len(inputs["B"]))
            wide = self._type(max(product, 16))
            a, b = operand("A", product), operand("B", product)
            value = f"({wide})({wide}){a} * ({wide}){b}" if wide != "u16" else f"(u16)((u32){a} * (u32){b})"
            self._lines.append(f"{self._type(product)} m{index} = ({self._type(product)})({value}) & {_ones(product)};")
            return _sign_extended(f"m{index}", product, width) if both_signed and product < width else f"m{index}"
        if kind in ("$div", "$mod", "$divfloor", "$modfloor"):
            wide = max(len(inputs["A"]), len(inputs["B"]), width)
            a, b = operand("A", wide), operand("B", wide)
            if not both_signed:
                return f"{'udiv' if 'div' in kind else 'umod'}({a}, {b})"
            name = {"$div": "sdiv", "$mod": "smod", "$divfloor": "fdiv", "$modfloor": "fmod_"}[kind]
            return f"{name}((s64){_sign_extended(a, wide, 64)}, (s64){_sign_extended(b, wide, 64)})"
        comparison = {"$lt": "<", "$le": "<=", "$gt": ">", "$ge": ">="}
        comparison |= {"$eq": "==", "$eqx": "==", "$ne": "!=", "$nex": "!="}
        if kind in comparison:
            wide = max(len(inputs["A"]), len(inputs["B"]))
            a, b = operand("A", wide), operand("B", wide)
            if both_signed and kind in ("$lt", "$le", "$gt", "$ge"):
                signed = self._type(wide, signed=True)
                a, b = (f"({signed}){_sign_extended(v, wide, wide)}" for v in (a, b))
            return f"{a} {comparison[kind]} {b}"
        if kind in ("$shl", "$sshl", "$shr", "$sshr", "$shift", "$shiftx"):
            return self._shift(index, cell, width, operand)
        if kind in ("$mux", "$bwmux"):
            a, b = operand("A", signed=False), operand("B", signed=False)
            s = operand("S", len(inputs["S"]), False)
            select = f"({self._type(width)})(0 - ({self._type(width)}){s})" if kind == "$mux" else s
            return f"{a} ^ (({a} ^ {b}) & {select})"
        if kind == "$pmux":
            return self._pmux(index, cell, width, operand("A", signed=False))
        return self._logic(cell, operand)

    def _logic(self, cell: Cell, operand: Callable[..., str]) -> str:
        wide = {port: len(bits) for port, bits in cell.inputs.items()}
        a = operand("A", wide["A"], False)
        match cell.kind:
            case "$logic_not":
                return f"{a} == 0"
            case "$reduce_or" | "$reduce_bool":
                return f"{a} != 0"
            case "$reduce_and":
                return f"{a} == {_ones(wide['A'])}"
            case "$logic_and":
                return f"({a} != 0) & ({operand('B', wide['B'], False)} != 0)"
            case "$logic_or":
                return f"({a} != 0) | ({operand('B', wide['B'], False)} != 0)"
        folded, step = a, 8 * lane_bytes(wide["A"], "word") // 2
        for shift in (32, 16, 8, 4, 2, 1):
            if shift <= step:
                self._lines.append(f"{a} ^= {a} >> {shift};")
        return f"({folded} & 1)" if cell.kind == "$reduce_xor" else f"(~{folded} & 1)"

    def _pmux(self, index: int, cell: Cell, width: int, default: str) -> str:
        kind = self._type(width)
        cases = [cell.inputs["B"][k : k + width] for k in range(0, len(cell.inputs["B"]), width)]
        select = [self._mask(self._bits([bit], "u8"), (index, f"S{k}", 1)) for k, bit in enumerate(cell.inputs["S"])]
        self._lines.append(f"{kind} z{index} = {default};")
        for k, (bits, s) in enumerate(zip(cases, select, strict=True)):
            value = self._mask(self._bits(bits, kind), (index, f"B{k}", width))
            self._lines.append(f"z{index} ^= (z{index} ^ ({kind})({value})) & ({kind})(0 - ({kind})({s}));")
        return f"z{index}"

    def _shift(self, index: int, cell: Cell, width: int, operand: Callable[..., str]) -> str:
        kind, a_width = cell.kind, len(cell.inputs["A"])
        a_signed = bool(cell.parameters.get("A_SIGNED"))
        amount = operand("B", min(len(cell.inputs["B"]), 64), False)
        b_signed = bool(cell.parameters.get("B_SIGNED")) and kind in ("$shift", "$shiftx")
        if a_width > 64:
            return self._select(index, cell, width, amount, b_signed)
        wide = max(a_width, width)
        a = operand("A", wide, a_signed)
        word, bits = self._type(wide), 8 * lane_bytes(wide, "word")

        def shifted(direction: str, by: str) -> str:
            if kind == "$sshr" and a_signed and direction == ">>":
                signed = self._type(wide, signed=True)
                full = f"({signed}){_sign_extended(a, wide, wide)}"
                return f"({word})({full} >> ({by} < {bits} ? {by} : {bits - 1}))"
            return f"({word})({by} < {bits} ? {a} {direction} {by} : 0)"

        if kind in ("$shl", "$sshl"):
            return shifted("<<", amount)
        if not b_signed:
            return shifted(">>", amount)
        b_width = len(cell.inputs["B"])
        self._lines.append(f"s64 n{index} = (s64){_sign_extended(amount, b_width, 64)};")
        return f"(n{index} < 0 ? {shifted('<<', f'(-n{index})')} : {shifted('>>', f'n{index}')})"

    def _select(self, index: int, cell: Cell, width: int, amount: str, signed: bool) -> str:
        """Bits of a word wider than 64, from a variable position on."""
        bits = [*["0"] * 64, *cell.inputs["A"], *["0"] * 64]
        limbs = [bits[k : k + 64] for k in range(0, len(bits), 64)]
        at = f"(u64)(s64){_sign_extended(amount, len(cell.inputs['B']), 64)}" if signed else f"(u64){amount}"
        self._lines.append(f"u64 z{index} = 0, b{index} = {at} + 64, r{index} = b{index} & 63;")
        for k, limb in enumerate(limbs):
            limb = [*limb, *["0"] * (64 - len(limb))]
            value = self._mask(self._bits(limb, "u64"), (index, f"A{k}", 64))
            self._lines.append(f"u64 v{index}_{k} = {value};")
            self._lines.append(f"z{index} |= (b{index} >> 6) == {k} ? v{index}_{k} >> r{index} : 0;")
            if k:
                high = f"v{index}_{k} << 1 << (63 - r{index})"
                self._lines.append(f"z{index} |= (b{index} >> 6) == {k - 1} ? {high} : 0;")
        return f"z{index}"


def _ones(width: int) -> str:
    return hex((1 << width) - 1) + ("ull" if width > 32 else "u")


def _sign_extended(value: str, width: int, to: int) -> str:
    """C for a ``width``-bit value with its sign in all upper bits of the type of ``to`` bits."""
    bits = 8 * lane_bytes(to, "word")
    if bits == width:
        return f"((u{bits})({value}))"
    return f"((u{bits})((s{bits})((u{bits})({value}) << {bits - width}) >> {bits - width}))"


@dataclass(frozen=True)
class Moves:
    """The flip-flops of a slice that take their word from outside of it through two cells at most, by themselves.

    Attributes:
        writes: which of the writes of the slice they are.
        size: how many cells and flip-flops.
        address: of the code that computes them alone, called like the clean slice.
    """

    writes: frozenset[int]
    size: int
    address: int


def _moving(part: Slice) -> Slice:
    """The flip-flops of :class:`Moves`, with their cells."""
    module, inside = part.module, set(part.cells)
    cells: set[int] = set()
    flip_flops = []
    for flip_flop in part.flip_flops:
        found: list[int] = []
        bits = list(module.cells[flip_flop].inputs["D"])
        while bits and len(found) <= _CELLS_OF_A_MOVE:
            source = module.source_of(bits.pop())
            if source is not None and source[0] == "cell" and source[1] in inside and source[1] not in found:
                found.append(source[1])
                bits += [bit for word in module.cells[source[1]].inputs.values() for bit in word]
        if len(found) <= _CELLS_OF_A_MOVE:
            cells.update(found)
            flip_flops.append(flip_flop)
    in_order = [cell for cell in part.cells if cell in cells]
    return Slice(module, part.index, in_order, flip_flops, part.reads, part.writes)


class CompiledDesign:
    """A design with its native code.

    Args:
        design: the elaborated design.
    """

    def __init__(self, design: Design):
        self.design = design
        self.level: Level = design.level
        self.lanes = LANES[design.level]
        self.slices = [part for module in design.modules.values() for part in module.slices]
        self._hooked: dict[str, dict[int, int]] = {}
        self.number = {(part.module.name, part.index): i for i, part in enumerate(self.slices)}

    @cached_property
    def clean(self) -> list[int]:
        """The addresses of the clean slices."""
        return self._clean(self.slices)

    @cached_property
    def moves(self) -> list[Moves]:
        """What of each slice only moves words on."""
        parts = [_moving(part) for part in self.slices]
        found = []
        for part, address in zip(parts, self._clean(parts), strict=True):
            states = {("state", flip_flop) for flip_flop in part.flip_flops}
            writes = frozenset(i for i, write in enumerate(part.writes) if write in states)
            found.append(Moves(writes, len(part.cells) + len(part.flip_flops), address))
        return found

    def _clean(self, parts: Sequence[Slice]) -> list[int]:
        return _functions([SliceCode(part, hooked=False) for part in parts], "-O3" if self.level == "word" else "-O2")

    @cached_property
    def hooked_code(self) -> list[SliceCode]:
        """The hooked form of every slice, with its sites."""
        return [SliceCode(part, hooked=True) for part in self.slices]

    def hooked(self, slice_number: int) -> int:
        """The address of a hooked slice; the first of a module compiles all of the module."""
        module = self.slices[slice_number].module.name
        if module not in self._hooked:
            numbers = [i for i, part in enumerate(self.slices) if part.module.name == module]
            optimize = ["-O1"]
            if "Free Software Foundation" in _version():
                word = ["-ftree-loop-vectorize"]
                optimize += word if self.level == "word" else ["-fno-tree-pta", "-fno-tree-dse", "-fno-tree-fre"]
            addresses = _functions([self.hooked_code[i] for i in numbers], *optimize)
            self._hooked[module] = dict(zip(numbers, addresses, strict=True))
        return self._hooked[module][slice_number]

    @cached_property
    def runtime(self) -> ctypes.CDLL:
        """What runs a design, for this level."""
        text = "".join((Path(__file__).parent / name).read_text() for name in ("runtime.c", "windows.c"))
        return load(f"#define GATE {int(self.level == 'gate')}\n{text}", "-O3")


def _functions(code: Sequence[SliceCode], *optimize: str) -> list[int]:
    """Compile slices; their addresses."""
    functions = "".join("static " + part.function(f"slice_{i}") for i, part in enumerate(code))
    table = ", ".join(f"(void*)slice_{i}" for i in range(len(code))) or "0"
    library = load(f"{_PRELUDE}\n{functions}\nvoid *slices[] = {{{table}}};\n", *optimize)
    return list((ctypes.c_void_p * max(len(code), 1)).in_dll(library, "slices"))


def load(source: str, *optimize: str) -> ctypes.CDLL:
    """Compile C into a shared library, unless the cache has it, and load it.

    The cache is ``saboteur/hardware`` in the user's cache folder, by a hash of source, compiler and processor. It keeps
    what was used last, up to 512 MiB.

    Raises:
        TargetError: when there is no C compiler, or it fails.
    """
    command = [*compiler(), "-std=gnu11", "-fPIC", "-shared", "-w", *optimize]
    command += ["-march=native"]
    identity = "\0".join([source, *command, _version(), _processor()])
    path = _cache() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            text, built = Path(folder, "design.c"), Path(folder, "design.so")
            text.write_text(source)
            run = subprocess.run([*command, "-o", str(built), str(text)], capture_output=True, text=True)
            if run.returncode:
                raise TargetError(f"the C compiler {command[0]} failed: {run.stderr.strip()[:500]}")
            built.replace(path)
        _prune(path.parent)
    with contextlib.suppress(OSError):  # a cache that is shared, and not ours
        os.utime(path)
    return ctypes.CDLL(str(path))


def _prune(folder: Path, limit: int = 1 << 29) -> None:
    """Delete libraries, the one used longest ago first, until at most ``limit`` bytes are left."""
    known = []
    for path in folder.glob("*.so"):
        with contextlib.suppress(FileNotFoundError):  # another process may delete as well
            status = path.stat()
            known.append((status.st_mtime, status.st_size, path))
    left = sum(size for _, size, _ in known)
    for _, size, path in sorted(known)[:-1]:
        if left <= limit:
            break
        path.unlink(missing_ok=True)
        left -= size


@cache
def compiler() -> tuple[str, ...]:
    """The command of the C compiler: ``CC``, else the system's, else that of the package ``ziglang``.

    Raises:
        TargetError: when there is none.
    """
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        command = shlex.split(name)
        if command and shutil.which(command[0]):
            return tuple(command)
    if find_spec("ziglang"):
        return sys.executable, "-m", "ziglang", "cc"
    raise TargetError("no C compiler: install one, or: pip install ziglang")


@cache
def _version() -> str:
    return subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "saboteur" / "hardware"
