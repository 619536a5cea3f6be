"""Accelerators without HDL: what a fault in a component of an architecture leaves in the sums of a layer.

A description names the components of an accelerator: registers along the pipeline of an array, the memories before and
behind it, and the control that goes with them. Each component has a *position*, which decides which products and sums
read what it holds, and when (:mod:`saboteur.levels.crosslayer.mapping`):

===============  =========================================  ====================================================
position         one word                                   what still reads it in cycle *c*
===============  =========================================  ====================================================
``memory_a``     for each element of the layer's input      all products with it that are fetched from cycle *c* on
``memory_b``     for each weight (element of B)             likewise
``memory_c``     for each element of C                      the element, once a tile's sum has been put there and
                                                            until the last tile's comes
``entry_a``      for each row of the array                  the row's products of the operand that enters
``entry_b``      for each column                            the column's products of the operand that enters
``operand_a``    in each PE, or more in a file              the products from this PE and cycle on, in all PEs that the
                                                            operand moves to
``operand_b``    likewise                                   likewise
``sum``          in each PE                                 the element of C that the sum becomes a part of
``exit``         for each column                            the element of C that leaves
===============  =========================================  ====================================================

The memories and registers are the components of Li et al. (*Understanding Error Propagation in Deep Learning Neural
Network Accelerators and Applications*, SC 2017): operand latches and accumulators (in Eyeriss the image register,
filter SRAM and psum register of a PE) and the global buffer. The *categories* are the flip-flop classes of He et al.
(*FIdelity*, MICRO 2020): ``datapath`` flip-flops hold the word itself, which the fault model of the campaign corrupts;
``local_control`` decides what happens to one word, which is lost (``dropped``: read as 0) or becomes a ``random`` one;
``global_control`` decides everything, and its fault is a failure of the run. Where several stages of a pipeline hold
the same word in turn, each is a component of its own at the same position.

Exact, that is as the shipped arrays' RTL: datapath faults at ``entry``, ``operand``, ``sum`` and ``exit`` of systolic
dataflows. Of the control, only the words that it goes with are modelled; all of them become the same random word.
Memories hold all of a layer (no refetching from outside), and a word stays in them from the start of the layer's stream
of tiles until it is last read.

**How a target enumerates faults.** For each layer and component there is one region of the fault space: ``site``
``"<layer>/<component>"``, ``format`` of ``component.word_bits`` bits, ``model`` the campaign's for ``datapath`` and
:attr:`Component.model` otherwise. Faults are drawn by time in residence: with ``residence =
architecture.residence(component, layer)``, the region has ``shape = (residence.size, component.flip_flops or 1)`` and
one step; ``residence.at(element // (component.flip_flops or 1))`` is the word and the cycle of the stream, and each
resident (word, cycle) is there once for each bit that can be hit. :meth:`Architecture.errors` then gives what
:meth:`saboteur.levels.crosslayer.tiles.ArraySimulator.errors` gives for RTL; a fault of ``global_control`` leaves no
sums, the target records the run as ended abnormally. ``residence.occupancy`` is the share of word-cycles that matter:
the SDC probability of a fault anywhere, any time, is it times that of a resident one (:func:`component_fit_rate`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from math import prod
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from saboteur.errors import TargetError, near
from saboteur.faults.models import BitFlip, Dead, FaultModel, RandomValue
from saboteur.levels.crosslayer.lowering import LoweredLayer
from saboteur.levels.crosslayer.mapping import Dataflow, Integers, Mapping, Matrix, Reach, mapped, window_of
from saboteur.levels.crosslayer.tiles import Errors

Position = Literal[
    "memory_a", "memory_b", "memory_c", "entry_a", "entry_b", "operand_a", "operand_b", "sum", "exit", "array"
]
Category = Literal["datapath", "local_control", "global_control"]
Words = NDArray[np.uint64]

OPERAND_BITS, SUM_BITS = 8, 32
_SHIPPED = resources.files("saboteur.levels.crosslayer") / "architectures"
_MATRIX: dict[Position, Matrix] = {
    "memory_a": "A",
    "memory_b": "B",
    "memory_c": "C",
    "entry_a": "A",
    "entry_b": "B",
    "operand_a": "A",
    "operand_b": "B",
    "sum": "C",
    "exit": "C",
}

_IN_PE: tuple[Position, ...] = ("operand_a", "operand_b", "sum")


class Component(BaseModel):
    """Like flip-flops or memory cells of an accelerator; see the module's text.

    Attributes:
        name: unique in its architecture.
        position: which words it holds, or decides on; ``array`` for global control.
        category: datapath, local control or global control.
        effect: of local control only: the word is ``dropped`` or ``random``.
        flip_flops: of control only: how many there are for each word of the position (for global control, in all).
        delay: of local control only: the word that it decides on is the one at the position so many cycles later; 1
            where it decides what a register takes in at the end of the cycle.
        travels: of local control only: it moves one PE to the east in each cycle, and decides there too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    position: Position
    category: Category = "datapath"
    effect: Literal["dropped", "random"] | None = None
    flip_flops: Annotated[int, Field(ge=1)] | None = None
    delay: Annotated[int, Field(ge=0)] = 0
    travels: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.effect is not None) != (self.category == "local_control"):
            raise ValueError("effect: local_control needs dropped or random, the others take none")
        if (self.flip_flops is not None) != (self.category != "datapath"):
            raise ValueError("flip_flops: control needs their number, the datapath has those of its words")
        if (self.delay or self.travels) and self.category != "local_control":
            raise ValueError("delay, travels: only local_control has them")
        if self.travels and self.position not in _IN_PE:
            raise ValueError(f"travels: needs a position in the PEs, {', '.join(_IN_PE)}, not {self.position}")
        if (self.position == "array") != (self.category == "global_control"):
            raise ValueError("position: global_control is at the position array, nothing else is")
        return self

    @property
    def matrix(self) -> Matrix | None:
        """Whose words it holds or decides on; ``None`` for global control."""
        return _MATRIX.get(self.position)

    @property
    def word_bits(self) -> int:
        """Bits of the word that a fault changes."""
        return SUM_BITS if self.matrix == "C" else OPERAND_BITS

    @property
    def bits(self) -> int:
        """Bits that can be hit, for each word of the position."""
        return self.flip_flops or self.word_bits

    @property
    def model(self) -> FaultModel:
        """What happens to the word: one flipped bit by default in a datapath; lost or random under local control."""
        if self.category == "local_control":
            return Dead() if self.effect == "dropped" else RandomValue()
        return BitFlip()


@dataclass(frozen=True)
class Residence:
    """When the words of a component hold something that is still read, in one layer, as columns of intervals.

    Attributes:
        word: [intervals], which word of the component, flat.
        first: [intervals], first cycle.
        length: [intervals], cycles.
        words: how many words the component has.
        cycles: of the layer's stream.
    """

    word: Integers
    first: Integers
    length: Integers
    words: int
    cycles: int

    @property
    def size(self) -> int:
        """Pairs of a word and a cycle in which it is resident."""
        return int(self.length.sum())

    @property
    def occupancy(self) -> float:
        """The share of word-cycles that are resident; 0 where there are no words."""
        return self.size / max(self.words * self.cycles, 1)

    def at(self, index: ArrayLike) -> tuple[Integers, Integers]:
        """The word and the cycle of the pairs that ``index`` numbers, from 0 to ``size − 1``."""
        index = np.asarray(index, np.int64)
        ends = np.cumsum(self.length)
        interval = np.searchsorted(ends, index, side="right")
        return self.word[interval], self.first[interval] + index - (ends - self.length)[interval]


class Architecture(BaseModel):
    """An accelerator as its components; read from YAML, for example one of those that ship (:func:`shipped`).

    Attributes:
        name: what tables call it.
        source: where the description comes from.
        dataflow: of its array.
        rows: rows of processing elements (PEs).
        cols: columns of PEs.
        components: what can be hit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str = ""
    dataflow: Dataflow
    rows: Annotated[int, Field(ge=1)]
    cols: Annotated[int, Field(ge=1)]
    components: Annotated[tuple[Component, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [component.name for component in self.components]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"components: {name!r} is there {names.count(name)} times")
        for component in self.components:
            if self.dataflow == "row_stationary" and component.position in ("entry_a", "entry_b", "exit"):
                raise ValueError(
                    f"components: {component.name}: {component.position} is a position of systolic dataflows only"
                )
            if self.dataflow == "row_stationary" and component.travels:
                raise ValueError(f"components: {component.name}: control travels in systolic dataflows only")
            if self.dataflow == "output_stationary" and component.position == "memory_c":
                raise ValueError(f"components: {component.name}: an output-stationary array puts no sums aside")
        return self

    @classmethod
    def read(cls, path: Path | str) -> Architecture:
        """Read a description.

        Raises:
            TargetError: naming the file and the field, when it is missing, no YAML, or not a description.
        """
        path = Path(path)
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 2)
        try:
            return cls.model_validate(yaml.load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, YAMLError) as error:
            raise TargetError(f"{path}: {error}") from error
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
            raise TargetError(f"{path}: {'; '.join(lines)}") from error

    def component(self, name: str) -> Component:
        """The component of that name.

        Raises:
            TargetError: when there is none, with near names.
        """
        found = {component.name: component for component in self.components}
        if name not in found:
            raise TargetError(f"component: {self.name} has no {name!r}{near(name, found)}")
        return found[name]

    def mapping(self, layer: LoweredLayer) -> Mapping:
        """Which PE computes what of a layer, and when."""
        return mapped(layer, self.dataflow, self.rows, self.cols)

    def shape(self, component: Component, layer: LoweredLayer) -> tuple[int, ...]:
        """How the words of a component are indexed while it works on a layer."""
        mapping, window = self.mapping(layer), window_of(layer)
        rows, cols = self.rows, self.cols
        match component.position:
            case "operand_a" | "operand_b" | "sum":
                words = mapping.words(_register(mapping, component))
                return (rows, cols, words) if words > 1 else (rows, cols)
            case "memory_a":
                return window.channels, window.in_rows, window.in_columns
            case "memory_b":
                return layer.k, layer.n
            case "memory_c":
                return layer.m, layer.n
            case "entry_a":
                return (rows,)
            case "entry_b" | "exit":
                return (cols,)
            case "array":
                return (1,)

    def residence(self, component: Component, layer: LoweredLayer) -> Residence:
        """When the words of a component hold something that is still read while the array works on a layer."""
        mapping = self.mapping(layer)
        words = prod(self.shape(component, layer))
        if component.position == "array":
            word, first, length = (np.array([value], np.int64) for value in (0, 0, mapping.cycles))
        elif component.position.startswith("memory"):
            word, first, length = _in_memory(mapping, component.position, layer, words)
        else:
            word, first, length = self._in_registers(component, mapping, words)
        kept = length > 0
        return Residence(word[kept], first[kept], length[kept], words, mapping.cycles)

    def _in_registers(self, component: Component, mapping: Mapping, words: int) -> tuple[Integers, Integers, Integers]:
        """Tiles of one size have one pattern, which is found for one tile of each size."""
        sizes = np.stack(mapping.block(np.arange(mapping.tiles))[3:], axis=1)
        _, representative, kind = np.unique(sizes, axis=0, return_index=True, return_inverse=True)
        element = np.arange(words)
        begin = self._first_cycle(component, mapping, element)
        found = []
        for number, tile in enumerate(representative.tolist()):
            age = np.arange(mapping.interval)
            cycle = begin[:, None] + age + tile * mapping.interval
            reach = self._reach(component, mapping, None, np.repeat(element, mapping.interval), cycle.ravel(), most=1)
            live = np.zeros((words, mapping.interval + 2), np.int8)
            live.reshape(-1)[(reach.fault // mapping.interval) * live.shape[1] + reach.fault % mapping.interval + 1] = 1
            edges = np.diff(live, axis=1)
            word, start = np.nonzero(edges == 1)
            _, stop = np.nonzero(edges == -1)
            tiles = np.nonzero(kind.ravel() == number)[0][:, None] * mapping.interval
            found.append(
                (
                    np.broadcast_to(word, (len(tiles), len(word))).ravel(),
                    (begin[word] + start + tiles).ravel(),
                    np.broadcast_to(stop - start, (len(tiles), len(word))).ravel(),
                )
            )
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))  # pyright: ignore[reportReturnType]

    def errors(
        self,
        component: Component,
        layer: LoweredLayer,
        a: NDArray[np.int8],
        b: NDArray[np.int8],
        image: Integers,
        word: Integers,
        cycle: Integers,
        corrupt: Callable[[Words, Integers], Words],
    ) -> Errors:
        """What faults in one component change in ``C = A @ B`` of a layer.

        Args:
            component: not global control.
            layer: the layer in whose stream the faults act.
            a: [images, m, k] operands.
            b: [1 or images, k, n] operands.
            image: [faults], which image each fault meets.
            word: [faults], which word of the component, flat.
            cycle: [faults], of the layer's stream; what is held changes at its start, and stays changed.
            corrupt: gives the faulty words for fault-free ones, ``(words uint64 [count], fault [count])``; both have
                ``component.word_bits`` bits, two's complement.

        Returns:
            Errors in 32-bit two's complement; a fault in a word that nothing reads has none.

        Raises:
            TargetError: for global control, whose fault is no error of a sum.
        """
        if component.category == "global_control":
            raise TargetError(f"{component.name}: a fault in global control is a failure of the run, not of sums")
        mapping = self.mapping(layer)
        word, cycle = np.asarray(word, np.int64), np.asarray(cycle, np.int64)
        owner = np.arange(len(word))
        if component.travels:
            place, step = np.divmod(np.arange(len(word) * self.cols), self.cols)
            inside = word[place] % self.cols + step < self.cols
            owner, step = place[inside], step[inside]
            word, cycle = word[owner] + step, cycle[owner] + step
        reach = self._reach(component, mapping, layer, word, cycle)
        faults = owner[reach.fault]
        which = np.asarray(image, np.int64)[faults]
        if component.matrix == "C":
            golden = _partial_sums(a, b, which, reach)
            change = _changed(golden, corrupt(_word(golden, SUM_BITS), faults), SUM_BITS)
            return _collected(faults, reach.m, reach.n, change)
        left, right = a[which, reach.m, reach.k], b[which if len(b) > 1 else 0, reach.k, reach.n]
        held, other = (left, right) if component.matrix == "A" else (right, left)
        hit, first = np.unique(reach.fault, return_index=True)
        golden = held[first].astype(np.int64)
        change = np.zeros(len(word), np.int64)
        change[hit] = _changed(golden, corrupt(_word(golden, OPERAND_BITS), owner[hit]), OPERAND_BITS)
        return _collected(faults, reach.m, reach.n, change[reach.fault] * other)

    def _first_cycle(self, component: Component, mapping: Mapping, element: Integers) -> Integers:
        register = _register(mapping, component)
        none = np.zeros_like(element)
        match component.position:
            case "entry_a":
                first = mapping.first_cycle(register, element, none) - 1
            case "entry_b":
                first = mapping.first_cycle(register, none, element) - 1
            case "exit":
                first = mapping.first_cycle(register, none + self.rows - 1, element)
            case _:
                first = mapping.first_cycle(register, *np.divmod(element // mapping.words(register), self.cols))
        return first - component.delay

    def _reach(
        self,
        component: Component,
        mapping: Mapping,
        layer: LoweredLayer | None,
        word: Integers,
        cycle: Integers,
        most: int | None = None,
    ) -> Reach:
        position, cycle = component.position, cycle + component.delay
        if position.startswith("memory"):
            assert layer is not None
            return _read_from_memory(mapping, position, layer, word, cycle)
        register = _register(mapping, component)
        none = np.zeros_like(word)
        match position:
            case "entry_a":
                return mapping.reach(register, word, none, cycle + 1, most=most)
            case "entry_b":
                reach = mapping.reach(register, none, word, cycle + 1, most=most)
                # A register that keeps its word takes in nothing new.
                return _where(reach, mapping.fetched(reach.m, reach.k, reach.n)[1] == cycle[reach.fault])
            case "exit":
                reach = mapping.reach(register, none + self.rows - 1, word, cycle, most=most)
                return _where(reach, mapping.left(reach.m, reach.k, reach.n) == cycle[reach.fault])
            case _:
                place, in_file = np.divmod(word, mapping.words(register))
                row, col = np.divmod(place, self.cols)
                return mapping.reach(register, row, col, cycle, in_file, most)


def shipped(name: str) -> Architecture:
    """A description that ships with the package.

    Raises:
        TargetError: when there is none of that name, with near names.
    """
    known = sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))
    if name not in known:
        raise TargetError(f"architecture: {name!r} is not one of {', '.join(known)}{near(name, known)}")
    with resources.as_file(_SHIPPED / f"{name}.yaml") as path:
        return Architecture.read(path)


def component_fit_rate(*, bits: int, raw_fit_per_bit: float, sdc_probability: float, occupancy: float = 1.0) -> float:
    """Failures in 10⁹ hours that upsets of one component cause: ``FIT = raw FIT per bit · bits · P(SDC)``.

    After Li et al., SC 2017; an accelerator's rate is the sum over its components.

    Args:
        bits: size of the component.
        raw_fit_per_bit: upsets of one bit in 10⁹ hours, whatever comes of them.
        sdc_probability: share of silent data corruption among the faults that were injected.
        occupancy: share of bit-cycles that these faults were drawn from, ``Residence.occupancy`` where they were drawn
            by time in residence, 1 where they were drawn from all; the others are masked.

    Raises:
        ValueError: when a rate or size is negative, or a share is outside of [0, 1].
    """
    for name, value in (("bits", bits), ("raw_fit_per_bit", raw_fit_per_bit)):
        if value < 0:
            raise ValueError(f"{name} is {value}; it must not be negative")
    for name, value in (("sdc_probability", sdc_probability), ("occupancy", occupancy)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it must be in [0, 1]")
    return bits * raw_fit_per_bit * sdc_probability * occupancy


def _register(mapping: Mapping, component: Component) -> str:
    return next(name for name, matrix in mapping.registers.items() if matrix == component.matrix)


def _where(reach: Reach, chosen: NDArray[np.bool_]) -> Reach:
    return Reach(*(column[chosen] for column in reach))


def _in_memory(
    mapping: Mapping, position: Position, layer: LoweredLayer, words: int
) -> tuple[Integers, Integers, Integers]:
    """Word, first cycle and cycles of residence of each word of a memory."""
    word, none = np.arange(words), np.zeros(words, np.int64)
    if position == "memory_c":
        m, n = np.divmod(word, layer.n)
        first = mapping.left(m, none, n)
        return word, first + 1, mapping.left(m, none + layer.k - 1, n) - first
    stop = none.copy()
    if position == "memory_b":
        k, n = np.divmod(word, layer.n)
        stop = mapping.fetched(none + layer.m - 1, k, n)[1] + 1
    else:
        m, k = (axis.ravel() for axis in np.meshgrid(np.arange(layer.m), np.arange(layer.k), indexing="ij"))
        element, stored = _input_of(layer, m, k)
        fetched = mapping.fetched(m, k, np.full_like(m, layer.n - 1))[0]
        np.maximum.at(stop, element[stored], fetched[stored] + 1)
    return word, none, stop


def _input_of(layer: LoweredLayer, m: Integers, k: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """The element of the layer's input that is ``A[m, k]``, and whether it is one and not padding."""
    window = window_of(layer)
    out_row, out_column = np.divmod(m, window.out_columns)
    filter_row, kernel_column = np.divmod(k, window.kernel_columns)
    channel, kernel_row = np.divmod(filter_row, window.kernel_rows)
    row = out_row * window.stride + kernel_row - window.padding
    column = out_column * window.stride + kernel_column - window.padding
    inside = (row >= 0) & (row < window.in_rows) & (column >= 0) & (column < window.in_columns)
    return (channel * window.in_rows + row) * window.in_columns + column, inside


def _read_from_memory(
    mapping: Mapping, position: Position, layer: LoweredLayer, word: Integers, cycle: Integers
) -> Reach:
    if position == "memory_c":
        return _partial_sums_in_memory(mapping, layer, word, cycle)
    if position == "memory_b":
        k, n = np.divmod(word, layer.n)
        fault, m = (axis.ravel() for axis in np.indices((len(word), layer.m)))
        k, n = k[fault], n[fault]
    else:
        window = window_of(layer)
        channel, row, column = np.unravel_index(word, (window.channels, window.in_rows, window.in_columns))
        fault, kernel_row, kernel_column, n = (
            axis.ravel() for axis in np.indices((len(word), window.kernel_rows, window.kernel_columns, layer.n))
        )
        out_row, row_rest = np.divmod(row[fault] + window.padding - kernel_row, window.stride)
        out_column, column_rest = np.divmod(column[fault] + window.padding - kernel_column, window.stride)
        there = (row_rest == 0) & (out_row >= 0) & (out_row < window.out_rows)
        there &= (column_rest == 0) & (out_column >= 0) & (out_column < window.out_columns)
        m = out_row * window.out_columns + out_column
        k = (channel[fault] * window.kernel_rows + kernel_row) * window.kernel_columns + kernel_column
        fault, m, k, n = (axis[there] for axis in (fault, m, k, n))
    fetched = mapping.fetched(m, k, n)[0 if position == "memory_a" else 1]
    return _where(Reach(fault, m, k, k + 1, n), fetched >= cycle[fault])


def _partial_sums_in_memory(mapping: Mapping, layer: LoweredLayer, word: Integers, cycle: Integers) -> Reach:
    m, n = np.divmod(word, layer.n)
    first = np.zeros_like(m)
    step = int(mapping.block(0).k_size)
    live = cycle <= mapping.left(m, first + layer.k - 1, n)
    stop = np.zeros_like(m)
    for start in range(0, layer.k, step):
        stop = np.where(mapping.left(m, first + start, n) < cycle, min(start + step, layer.k), stop)
    return _where(Reach(np.arange(len(m)), m, first, stop, n), live & (stop > 0))


def _partial_sums(a: NDArray[np.int8], b: NDArray[np.int8], image: Integers, reach: Reach) -> Integers:
    """The sums of ``A[m, k'] B[k', n]`` over ``k <= k' < k_stop``, wrapped."""
    found, axis = np.zeros(len(reach.m), np.int64), np.arange(a.shape[2])
    for first in range(0, len(found), _SUMS_AT_ONCE):
        some = slice(first, first + _SUMS_AT_ONCE)
        left = a[image[some], reach.m[some]].astype(np.int64)
        right = b[image[some] if len(b) > 1 else 0, :, reach.n[some]]
        summed = (axis >= reach.k[some, None]) & (axis < reach.k_stop[some, None])
        found[some] = (left * right * summed).sum(1)
    return _signed(found, SUM_BITS)


_SUMS_AT_ONCE = 4096


def _word(values: Integers, bits: int) -> Words:
    return (values & ((1 << bits) - 1)).astype(np.uint64)


def _signed(words: NDArray, bits: int) -> Integers:
    """The two's complement number in the low bits."""
    return words.astype(np.int64) << (64 - bits) >> (64 - bits)


def _changed(golden: Integers, faulty: Words, bits: int) -> Integers:
    return _signed(faulty, bits) - golden


def _collected(fault: Integers, m: Integers, n: Integers, change: Integers) -> Errors:
    """Add up the changes of each element."""
    order = np.lexsort((n, m, fault))
    fault, m, n, change = (column[order] for column in (fault, m, n, change))
    new = np.ones(len(fault), bool)
    new[1:] = (np.diff(fault) != 0) | (np.diff(m) != 0) | (np.diff(n) != 0)
    (first,) = np.nonzero(new)
    delta = _signed(np.add.reduceat(change, first), SUM_BITS) if len(first) else change
    wrong = delta != 0
    fault, m, n = (column[first][wrong] for column in (fault, m, n))
    return Errors(fault, m, n, delta[wrong])
