"""The rest of an int8 network after a changed layer output: exact, and only what differs is computed.

A *pair* is a fault and an input. What a pair makes different in the result of a call is kept as *changes*:
positions and new values, nothing where they are golden. Integer layers requantise to eight bits, which swallows
most small differences, so that changes stay few and a pair without any needs no further work. A changed input
value adds ``weight · difference`` to stored golden accumulators of the few outputs in its reach; sums wrap at 32 bits
as the layer's own do (:mod:`saboteur.workloads.int8`), so that the result is that of the whole layer bit for bit,
in any order. Calls of which nothing more is known are made in full, for the pairs that reach them.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from saboteur.errors import TargetError
from saboteur.levels.hardware.compile import load
from saboteur.levels.software.engine.graph import Graph, Node, Untraceable
from saboteur.workloads.int8 import (
    INT8_MAX,
    INT8_MIN,
    MULTIPLIER_FRACTION_BITS,
    SHIFT_MASK,
    Int8Add,
    Int8Conv2d,
    Int8Linear,
    Int8Pad,
    Int8ReLU,
)

_LANES = 16
_ROWS_AT_ONCE = 64
_ROOM = 1 << 20
_MOVES: Mapping[str, Collection[Any]] = {
    "call_module": (),
    "call_function": (operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose),
    "call_method": ("flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze"),
}


def products(
    a: NDArray[np.int8],
    b: NDArray[np.int8],
    image: NDArray[np.int64],
    row: NDArray[np.int64],
    column: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The elements (image, row, column) of A @ B, wrapped to 32 bits.

    Args:
        a: [images, m, k].
        b: [1 or images, k, n].
        image: [count].
        row: [count], m.
        column: [count], n.
    """
    a, transposed = np.ascontiguousarray(a), np.ascontiguousarray(b.transpose(0, 2, 1))
    found = np.empty(len(image), np.int64)
    _library().products(
        *map(_at, (a, transposed)),
        *(ctypes.c_int64(size) for size in (a.shape[1], b.shape[2], a.shape[2], len(b), len(found))),
        *(_at(np.ascontiguousarray(index, np.int64)) for index in (image, row, column)),
        _at(found),
    )
    return found


@dataclass(frozen=True)
class Changes:
    """What differs from golden in one tensor, pair by pair.

    Attributes:
        first: int64 [pairs + 1]; pair p has the rows first[p] .. first[p + 1] − 1.
        position: int32 [rows], flat index into one input's part of the tensor, each at most once in a pair.
        value: [rows], the new values, in the tensor's type.
    """

    first: NDArray[np.int64]
    position: NDArray[np.int32]
    value: NDArray

    @classmethod
    def of(cls, pairs: int, pair: NDArray[np.int64], position: NDArray[np.int64], value: NDArray) -> Changes:
        """From columns in any order; each position at most once in a pair."""
        if (np.diff(pair) < 0).any():
            order = np.argsort(pair, kind="stable")
            pair, position, value = pair[order], position[order], value[order]
        first = np.searchsorted(pair, np.arange(pairs + 1))
        return cls(first, position.astype(np.int32), np.ascontiguousarray(value))

    @property
    def counts(self) -> NDArray[np.int64]:
        """[pairs] how many."""
        return np.diff(self.first)

    @property
    def pair(self) -> NDArray[np.int64]:
        """[rows] the pair of each row."""
        return np.repeat(np.arange(len(self.first) - 1), self.counts)


Rows = Callable[[NDArray[np.int64]], tuple[Tensor, ...]]
"""Gives a call's arguments for some pairs, as the faults before it leave them."""
Hardware = Callable[[NDArray[np.bool_], Rows], Changes]
"""What faulty hardware makes of a call: told for which pairs [pairs] the arguments are no longer golden, and the
arguments, it answers with the elements of the result that it changes, by their new values. A value may be golden again:
it takes the place of what the call itself would give."""


class Call(NamedTuple):
    """A call of a module in an inference."""

    path: str
    number: int


class GoldenValues:
    """Fault-free values of some inputs of a network, as far as changes have to be compared with them.

    Each input has a slot; where there are not enough for all, the inputs that were filled in first make room.

    Args:
        network: what is run.
        tensors: all inputs.
        slots: how many are kept.
    """

    def __init__(self, network: Network, tensors: Sequence[Tensor], slots: int):
        self.network, self.tensors, self.slots = network, tensors, min(slots, len(tensors[0]))
        self.values: dict[int, NDArray] = {
            index: np.empty((self.slots, *shape), kind) for index, shape, kind in network.kept
        }
        """By node: [slots, elements]."""
        self.layers: dict[int, tuple[NDArray[np.int32], NDArray[np.int8]]] = {
            index: step.empty(self.slots) for index, step in network.layers.items()
        }
        """By integer layer: accumulators and results, [slots, positions, lanes]."""
        self._slot = np.full(len(tensors[0]), -1)
        self._input = np.full(self.slots, -1)
        self._next = 0

    def slots_of(self, inputs: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots that hold ``inputs`` [n], run first where they are not there: [n].

        Raises:
            ValueError: when these are more inputs than there are slots.
        """
        wanted = np.unique(inputs)
        if len(wanted) > self.slots:
            raise ValueError(f"inputs: {len(wanted)} at once with {self.slots} slots")
        missing = wanted[self._slot[wanted] < 0]
        if len(missing):
            held = np.zeros(self.slots, bool)
            held[self._slot[wanted[self._slot[wanted] >= 0]]] = True
            order = (self._next + np.arange(self.slots)) % self.slots
            free = order[~held[order]][: len(missing)]
            self._next = (int(free[-1]) + 1) % self.slots
            for begin in range(0, len(missing), _ROWS_AT_ONCE):
                self._fill(missing[begin : begin + _ROWS_AT_ONCE], free[begin : begin + _ROWS_AT_ONCE])
        return self._slot[inputs]

    def _fill(self, inputs: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        before = self._input[slots]
        self._slot[before[before >= 0]] = -1
        rows = torch.from_numpy(inputs)
        with torch.inference_mode():
            found = self.network.graph.run([tensor[rows] for tensor in self.tensors])
        for index, kept in self.values.items():
            kept[slots] = found[index].numpy().reshape(len(inputs), -1)
        for index, step in self.network.layers.items():
            step.fill(self.values, self.layers[index], slots)
        self._slot[inputs], self._input[slots] = slots, inputs


class Network:
    """An int8 network that can be run from changes of the results of some calls on.

    Args:
        model: in eval mode, on the CPU.
        tensors: its arguments for a few inputs, to learn shapes from.
        calls: the calls whose results faulty hardware may change.
        output: which element of a returned tuple or mapping is the output.

    Raises:
        TargetError: when the model cannot be run from the middle.
    """

    def __init__(
        self, model: nn.Module, tensors: Sequence[Tensor], calls: Sequence[Call], output: int | str | None = None
    ):
        try:
            self.graph = graph = Graph(model, output)
            with torch.inference_mode():
                probed = graph.check([tensor[:3] for tensor in tensors])
        except Untraceable as error:
            raise TargetError(f"model: {error}; engine exact cannot run from its middle, engine plain can") from error
        self._shapes = {index: tuple(probed[index].shape[1:]) for index in graph.tensors}
        self._types = {index: np.dtype(str(probed[index].dtype).removeprefix("torch.")) for index in graph.tensors}
        self._constants = {node.index: probed[node.index] for node in graph.nodes if not graph.varies[node.index]}
        self._node_of: dict[Call, int] = {}
        for call in calls:
            nodes = graph.calls_of(model.get_submodule(call.path))
            if call.number >= len(nodes):
                raise TargetError(f"model: {call.path} is called within a module that engine exact cannot look into")
            self._node_of[call] = nodes[call.number].index
        self._tensors_of: dict[int, set[int]] = {}
        self._call_of = {index: call for call, index in self._node_of.items()}
        reached = graph.after(tuple(self._node_of.values())) | set(self._node_of.values())
        self._steps = {
            index: self._step(graph.nodes[index])
            for index in sorted(reached)
            if graph.leads_to_output[index] and index in graph.tensors
        }
        self.layers = {index: step for index, step in self._steps.items() if isinstance(step, _Layer)}
        """The integer layers among the calls after a fault."""
        self._last_use = {source: index for index in self._steps for source in self._tensors_before(index)}

    @property
    def kept(self) -> list[tuple[int, tuple[int], np.dtype]]:
        """The nodes whose fault-free values are needed, each with the size and type of one input's."""
        found: set[int] = {self.graph.output} | set(self._steps)
        for index in self._steps:
            found |= self._tensors_before(index)
        return [(index, (int(np.prod(self._shapes[index])),), self._types[index]) for index in sorted(found)]

    def _tensors_before(self, index: int) -> set[int]:
        """The nodes of whose tensors a node is made, with no other tensor in between, as far as inputs change them."""
        if index not in self._tensors_of:
            found: set[int] = set()
            for source in self.graph.nodes[index].inputs:
                if source not in self._shapes:
                    found |= self._tensors_before(source)
                elif self.graph.varies[source]:
                    found.add(source)
            self._tensors_of[index] = found
        return self._tensors_of[index]

    @property
    def bytes_each(self) -> int:
        """Memory that :class:`GoldenValues` takes for each input."""
        values = sum(size * kind.itemsize for _, (size,), kind in self.kept)
        return values + sum(array.nbytes for step in self.layers.values() for array in step.empty(1))

    def arguments(self, golden: GoldenValues, call: Call, slots: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """The fault-free arguments of a call for the inputs in some slots."""
        sources = self.graph.nodes[self._node_of[call]].inputs
        return tuple(self._dense(golden, {}, slots, np.arange(len(slots)), source) for source in sources)

    def results(self, golden: GoldenValues, call: Call) -> NDArray:
        """The fault-free results of a call: [slots, elements]."""
        return golden.values[self._node_of[call]]

    def outputs(
        self, golden: GoldenValues, slot: NDArray[np.int64], hardware: Mapping[Call, Hardware]
    ) -> tuple[NDArray[np.int64], NDArray]:
        """Run pairs whose hardware fails in some calls.

        Args:
            golden: the fault-free run.
            slot: [pairs], where each pair's input lies in ``golden``; it is faster if like ones follow each other.
            hardware: what the hardware does.

        Returns:
            The pairs whose output differs from golden, ascending, and their outputs [n, ...].
        """
        slot = np.ascontiguousarray(slot, np.int64)
        changes: dict[int, Changes] = {}
        for index, step in self._steps.items():
            node = self.graph.nodes[index]
            found = None
            sources = [source for source in self._tensors_before(index) if source in changes]
            if sources:
                found = step.changes(golden, slot, changes)
            call = self._call_of.get(index)
            if call is not None and call in hardware:
                moved = np.zeros(len(slot), bool)
                for source in sources:
                    moved |= changes[source].counts > 0

                def rows(pairs: NDArray[np.int64], node: Node = node) -> tuple[Tensor, ...]:
                    return tuple(self._dense(golden, changes, slot, pairs, source) for source in node.inputs)

                found = _overridden(golden.values[index], slot, found, hardware[call](moved, rows))
            if found is not None and len(found.position):
                changes[index] = found
            for source in sources:
                if self._last_use[source] == index and source != self.graph.output:
                    del changes[source]
        last, output = changes.get(self.graph.output), self.graph.output
        if last is None:
            return np.zeros(0, np.int64), np.zeros((0, *self._shapes[output]), self._types[output])
        pairs = np.flatnonzero(last.counts)
        return pairs, self._dense(golden, changes, slot, pairs, output).numpy()

    def _dense(
        self,
        golden: GoldenValues,
        changes: Mapping[int, Changes],
        slot: NDArray[np.int64],
        pairs: NDArray[np.int64],
        index: int,
    ) -> Any:
        """The value of a node for some pairs."""
        if index in self._constants:
            return self._constants[index]
        if index not in golden.values:
            node = self.graph.nodes[index]
            values = {source: self._dense(golden, changes, slot, pairs, source) for source in node.inputs}
            return self.graph.call(node, values)
        rows = golden.values[index][slot[pairs]]
        found = changes.get(index)
        if found is not None:
            counts = found.counts[pairs]
            at = np.repeat(found.first[pairs] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
            rows[np.repeat(np.arange(len(pairs)), counts), found.position[at]] = found.value[at]
        return torch.from_numpy(rows).reshape(len(pairs), *self._shapes[index])

    def _step(self, node: Node) -> _Step:
        module, types = node.module, {self._types.get(index) for index in (*node.inputs, node.index)}
        shapes = [self._shapes.get(index) for index in (*node.inputs, node.index)]
        if isinstance(module, Int8Conv2d | Int8Linear):
            return _Layer(node, module, self._shapes[node.inputs[0]], self._shapes[node.index])
        varies = all(self.graph.varies[source] for source in node.inputs)
        alike = types == {np.dtype(np.int8)} and len(set(shapes)) == 1
        if isinstance(module, Int8Add | Int8ReLU) and alike and varies:
            return _Elementwise(node, self)
        order = self._order(node) if len(node.inputs) == 1 and shapes[0] is not None else None
        return _Whole(node, self) if order is None else _Move(node, order)

    def _order(self, node: Node) -> NDArray[np.int64] | None:
        """Where a call that moves the elements of its argument puts each, −1 where it drops it.

        ``None`` where it does anything else, or copies elements.
        """
        source, target = node.inputs[0], node.call.target
        size, shape = int(np.prod(self._shapes[source])), self._shapes[source]
        numbers = (torch.arange(2 * size) % size).reshape(2, *shape)
        if isinstance(node.module, Int8Pad):
            moved = F.pad(numbers, node.module.padding, value=-1)
        elif isinstance(node.module, nn.Flatten | nn.Identity | nn.Dropout) or target in _MOVES[node.call.op]:
            moved = self.graph.call(node, {source: numbers})
        else:
            return None
        if moved.shape != (2, *self._shapes[node.index]) or not bool((moved[0] == moved[1]).all()):
            return None
        taken = moved[0].flatten().numpy()
        to = np.flatnonzero(taken >= 0)
        if len(np.unique(taken[to])) != len(to):
            return None
        order = np.full(size, -1, np.int64)
        order[taken[to]] = to
        return order


class _Step:
    """How changes pass through one call."""

    def __init__(self, node: Node):
        self.node = node

    def changes(self, golden: GoldenValues, slot: NDArray[np.int64], changes: Mapping[int, Changes]) -> Changes:
        """The changes of the result."""
        raise NotImplementedError


class _Whole(_Step):
    """A call that is made in full for the pairs that reach it."""

    def __init__(self, node: Node, network: Network):
        super().__init__(node)
        self._network = network
        self._before = network._tensors_before(node.index)

    def changes(self, golden: GoldenValues, slot: NDArray[np.int64], changes: Mapping[int, Changes]) -> Changes:
        network, node = self._network, self.node
        reached = np.zeros(len(slot), bool)
        for source in self._before & set(changes):
            reached |= changes[source].counts > 0
        pairs = np.flatnonzero(reached)
        columns = []
        for begin in range(0, len(pairs), _ROWS_AT_ONCE):
            some = pairs[begin : begin + _ROWS_AT_ONCE]
            values = {source: network._dense(golden, changes, slot, some, source) for source in node.inputs}
            with torch.inference_mode():
                result = network.graph.call(node, values).numpy().reshape(len(some), -1)
            row, position = np.nonzero(_bits(result) != _bits(golden.values[node.index][slot[some]]))
            columns.append((some[row], position, result[row, position]))
        pair, position, value = (np.concatenate(column) for column in zip(*columns, strict=True))
        return Changes.of(len(slot), pair, position, value)


class _Move(_Step):
    """A call that only moves values."""

    def __init__(self, node: Node, order: NDArray[np.int64]):
        super().__init__(node)
        self._order = None if np.array_equal(order, np.arange(len(order))) else order

    def changes(self, golden: GoldenValues, slot: NDArray[np.int64], changes: Mapping[int, Changes]) -> Changes:
        found = changes[self.node.inputs[0]]
        if self._order is None:
            return found
        to = self._order[found.position]
        kept = to >= 0
        return Changes.of(len(slot), found.pair[kept], to[kept], found.value[kept])


class _Layer(_Step):
    """A convolution or fully connected layer in integers."""

    def __init__(self, node: Node, module: Int8Conv2d | Int8Linear, shape: tuple[int, ...], result: tuple[int, ...]):
        super().__init__(node)
        weight = module.weight.detach()
        if isinstance(module, Int8Conv2d):
            planes, out_planes, stride, padding = shape[1:], result[1:], module.stride, module.padding
        else:
            planes = out_planes = (int(np.prod(shape[:-1])), 1)
            stride, padding, weight = 1, 0, weight[:, :, None, None]
        self._outputs, channels, *kernel = weight.shape
        self._lanes = -(-self._outputs // _LANES) * _LANES
        self._positions = int(np.prod(out_planes))
        laned = np.zeros((channels, *kernel, self._lanes), np.int32)
        laned[..., : self._outputs] = weight.permute(1, 2, 3, 0).numpy()
        multiplier, bits = np.zeros(self._lanes, np.int64), np.full(self._lanes, MULTIPLIER_FRACTION_BITS, np.int64)
        multiplier[: self._outputs] = module.multiplier.numpy()
        bits[: self._outputs] += module.shift.numpy().astype(np.int64) & SHIFT_MASK
        self._bias = np.zeros(self._lanes, np.int32)
        self._bias[: self._outputs] = module.bias.detach().numpy()
        self._arrays = laned, multiplier, bits, np.int64(1) << (bits - 1)
        self._geometry = _Geometry(
            *(channels, *planes, *kernel, stride, padding, self._outputs, self._lanes, *out_planes),
            *(int(isinstance(module, Int8Linear)), int(module.input_zero_point), int(module.output_zero_point)),
            *(int(module.relu), *(array.ctypes.data for array in self._arrays)),
        )
        self._sums = np.empty((self._positions, self._lanes), np.uint32)
        self._mark, self._reached = (np.empty(self._positions, np.int32) for _ in range(2))

    def empty(self, slots: int) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
        """Room for accumulators and results, [slots, positions, lanes] each."""
        shape = (slots, self._positions, self._lanes)
        return np.empty(shape, np.int32), np.empty(shape, np.int8)

    def fill(
        self,
        values: Mapping[int, NDArray],
        kept: tuple[NDArray[np.int32], NDArray[np.int8]],
        slots: NDArray[np.int64],
    ) -> None:
        """Compute accumulators and results of some slots.

        Raises:
            TargetError: when these are not the module's own results.
        """
        inputs, expected = values[self.node.inputs[0]], values[self.node.index]
        for slot in slots.tolist():
            accumulators, results = (array[slot] for array in kept)
            accumulators[:] = self._bias
            _library().fault_free(
                ctypes.byref(self._geometry), *map(_at, (inputs[slot], accumulators, results, self._mark))
            )
            own = results[:, : self._outputs]
            if not np.array_equal((own if self._geometry.channels_last else own.T).ravel(), expected[slot]):
                raise TargetError(f"model: {self.node.call.name}: computes something else than int8 layers do")

    def changes(self, golden: GoldenValues, slot: NDArray[np.int64], changes: Mapping[int, Changes]) -> Changes:
        found, index = changes[self.node.inputs[0]], self.node.index
        pairs, capacity = len(slot), max(_ROOM, self._positions * self._outputs)
        first = np.zeros(pairs + 1, np.int64)
        parts: list[tuple[NDArray, NDArray]] = []
        begin = base = 0
        while begin < pairs:
            position, value = np.empty(capacity, np.int32), np.empty(capacity, np.int8)
            self._mark.fill(-1)
            end = _library().layer_changes(
                ctypes.byref(self._geometry),
                *(ctypes.c_int64(count) for count in (begin, pairs)),
                *map(_at, (slot, found.first, found.position, found.value, golden.values[self.node.inputs[0]])),
                *map(_at, (*golden.layers[index], self._sums, self._mark, self._reached)),
                *map(_at, (first, position, value)),
                ctypes.c_int64(capacity),
            )
            count = int(first[end])
            first[begin + 1 : end + 1] += base
            parts.append((position[:count].copy(), value[:count].copy()))
            begin, base = end, base + count
        position, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Changes(first, position, value)


class _Elementwise(_Step):
    """A function of each element of one or two int8 tensors of one shape, as a table of all that it can be."""

    def __init__(self, node: Node, network: Network):
        super().__init__(node)
        self._sources = node.inputs[0], node.inputs[-1]
        every = torch.arange(INT8_MIN, INT8_MAX + 1).to(torch.int8)
        first, second = torch.meshgrid(every, every, indexing="ij")
        of = dict(zip(node.inputs, (first, second), strict=False))
        with torch.inference_mode():
            self._table = np.ascontiguousarray(network.graph.call(node, of).numpy())

    def changes(self, golden: GoldenValues, slot: NDArray[np.int64], changes: Mapping[int, Changes]) -> Changes:
        one, other = self._sources
        nothing = _nothing(len(slot))
        a, b = changes.get(one, nothing), changes.get(other, nothing) if other != one else nothing
        before = golden.values[self.node.index]
        elements = before.shape[1]
        result = _room(len(slot), len(a.position) + len(b.position))
        mark, scratch = np.zeros(elements, np.uint8), np.empty(elements, np.int8)
        _library().element_changes(
            _at(self._table),
            *(ctypes.c_int64(count) for count in (elements, len(slot))),
            *map(_at, (slot, a.first, a.position, a.value, b.first, b.position, b.value)),
            *map(_at, (golden.values[one], golden.values[other], before)),
            *map(_at, (mark, scratch, result.first, result.position, result.value)),
        )
        return _cut(result)


def _overridden(golden: NDArray, slot: NDArray[np.int64], found: Changes | None, by: Changes) -> Changes:
    """Changes in which what ``by`` says holds."""
    found = _nothing(len(slot)) if found is None else found
    result = _room(len(slot), len(found.position) + len(by.position))
    mark = np.zeros(golden.shape[1], np.uint8)
    _library().override_changes(
        *(ctypes.c_int64(count) for count in (golden.shape[1], len(slot))),
        *map(_at, (slot, found.first, found.position, found.value, by.first, by.position, by.value)),
        *map(_at, (golden, mark, result.first, result.position, result.value)),
    )
    return _cut(result)


def _nothing(pairs: int) -> Changes:
    return Changes(np.zeros(pairs + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int8))


def _room(pairs: int, rows: int) -> Changes:
    return Changes(np.zeros(pairs + 1, np.int64), np.empty(rows, np.int32), np.empty(rows, np.int8))


def _cut(changes: Changes) -> Changes:
    rows = changes.first[-1]
    return Changes(changes.first, changes.position[:rows], changes.value[:rows])


def _bits(values: NDArray) -> NDArray:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


class _Geometry(ctypes.Structure):
    """``Layer`` of suffix.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                *("channels", "height", "width", "kernel_height", "kernel_width", "stride", "padding", "outputs"),
                *("lanes", "out_height", "out_width", "channels_last", "zero_point", "output_zero_point", "relu"),
            )
        ),
        *((name, ctypes.c_void_p) for name in ("weight", "multiplier", "bits", "half")),
    ]


@cache
def _library() -> ctypes.CDLL:
    library = load((Path(__file__).parent / "suffix.c").read_text(encoding="utf-8"), "-O3")
    library.layer_changes.restype = ctypes.c_int64
    return library


def _at(array: NDArray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
