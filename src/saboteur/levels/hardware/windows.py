"""Runs of machines that are in the same phase of different tiles of a stream, side by side."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saboteur.levels.hardware.compile import lane_bytes
from saboteur.levels.hardware.simulate import ROW, Simulator

Integers = NDArray[np.integer[Any]]
WIRE = np.dtype([(name, "i4") for name in ("slot", "shift", "low", "whole")] + [("ones", "u8")])
PATCH = np.dtype([("input", "i4"), ("unused", "i4"), ("value", "u8")])
PIECE = np.dtype([(name, "i4") for name in ("low", "to", "back", "row", "column", "unused")] + [("ones", "u8")])
SNAPSHOT = np.dtype([("cycle", "i4"), ("lane", "i4"), ("to", "i8")])
GROUP = 8
"""Operands are laid side by side in groups of so many words."""
_LINE = 8


@dataclass(frozen=True, eq=False)
class Tables:
    """What a stream of tiles looks like from inside of a design; see ``windows.c``.

    Attributes:
        interval: cycles of a period.
        spill: how many periods after its own a tile is still at work.
        references: periods of the reference stream, whose inputs are in ``constant``.
        middle: which of them is one of those in the middle.
        a_words: words of A in a tile, rounded up to whole groups.
        words: words of A and B in a tile, each rounded up to whole groups.
        operand_bits: bits of a word.
        input_slots: int32 [inputs].
        constants: uint64 [references, interval, inputs]: values of input slots where all operands are 0.
        counted: how many cycles of the reference stream there are; what is in ``constants`` behind them is ignored.
        back: int32 [interval, fields], −1 where a field shows no operand.
        word: int32 [interval, fields].
        wires: for each field, rows of WIRE.
        keep_slots: int32 [keeps]: slots that hold results, in order of phase.
        keep_phase: int32 [keeps]: the phase in which each does.
        piece_first: int32 [keeps + 1]: where the pieces of each keep begin.
        pieces: rows of PIECE: which parts of which elements of a tile a keep holds.
    """

    interval: int
    spill: int
    references: int
    middle: int
    a_words: int
    words: int
    operand_bits: int
    input_slots: NDArray[np.int32]
    constants: NDArray[np.uint64]
    counted: int
    back: NDArray[np.int32]
    word: NDArray[np.int32]
    wires: tuple[NDArray, ...]
    keep_slots: NDArray[np.int32]
    keep_phase: NDArray[np.int32]
    piece_first: NDArray[np.int32]
    pieces: NDArray

    @property
    def kept_row(self) -> int:
        """Length of a row that takes the results of a period; such that rows of many lanes do not share cache sets."""
        lines = len(self.keep_slots) // _LINE + 1
        return _LINE * (lines + 1 - lines % 2)


@dataclass(frozen=True, eq=False)
class Layer:
    """The operands of a stream.

    Attributes:
        a: [images, blocks, a_words]: the words of A in a tile, one after the other.
        b: [images or 1, blocks, words − a_words]: those of B.
        a_block: [tiles]: which block of A a tile has.
        b_block: [tiles].
        first_row: [tiles]: where its block of C begins.
        first_column: [tiles].
        rows: of C.
        columns: of C.
    """

    a: NDArray
    b: NDArray
    a_block: Integers
    b_block: Integers
    first_row: Integers
    first_column: Integers
    rows: int
    columns: int


@dataclass(eq=False)
class Chunk:
    """Machines that run side by side from one phase on.

    Attributes:
        image: [lanes].
        period: [lanes]: the period in which each begins.
        first: the phase in which all begin.
        cycles: for how long they run.
        start: [states, words] states to begin with.
        start_of: [lanes]: which of them.
        rows: of dtype ROW, in order of ``on``; ``fault`` is the lane; cycles count from the beginning of the window.
        snapshots: of dtype SNAPSHOT, in order of ``cycle``: which states are put into ``states``.
        states: [to, words].
        kept: [rows, kept_row]: results are put here, a row a period; the lane's first is row ``kept_of[lane]``.
        golden: [rows, kept_row]: results are compared with these.
        kept_of: [lanes].
        sums: uint64 [rows, columns, lanes of the simulator]: elements of C are added up here.
        end: [states, words]: states to compare with at the end.
        end_of: [lanes]: which of them; −1 for none.
        nodes: of dtype FORM, those that are computed, in order; all if absent.
        fields: [fields]: which of the inputs are wanted; all if absent.
        counted: [keeps]: which results are added up; all if absent.
        add_from: [lanes]: the period since the lane's first from which results are added up. All lanes are in the same
            period if absent.
        add_to: [lanes]: in which column of ``sums``.
    """

    image: Integers
    period: Integers
    first: int
    cycles: int
    start: NDArray
    start_of: Integers
    rows: NDArray = field(default_factory=lambda: np.zeros(0, ROW))
    snapshots: NDArray = field(default_factory=lambda: np.zeros(0, SNAPSHOT))
    states: NDArray | None = None
    kept: NDArray | None = None
    golden: NDArray | None = None
    kept_of: Integers | None = None
    sums: NDArray[np.uint64] | None = None
    end: NDArray | None = None
    end_of: Integers | None = None
    nodes: NDArray | None = None
    fields: NDArray[np.bool_] | None = None
    counted: NDArray[np.bool_] | None = None
    add_from: Integers | None = None
    add_to: Integers | None = None


class Windows:
    """Runs chunks of windows of one stream.

    Args:
        simulator: of the array.
        tables: the stream's schedule.
    """

    def __init__(self, simulator: Simulator, tables: Tables):
        self._simulator, self._tables = simulator, tables
        self._stream = _Stream()
        self._held: dict[str, NDArray] = {}
        design = simulator.design
        self.state_words = len(design.states) + sum(memory.words for memory in design.memories)
        stream, t = self._stream, tables
        for name in ("interval", "references", "words"):
            setattr(stream, name, getattr(t, name))
        stream.inputs, stream.fields, stream.backs = len(t.input_slots), t.back.shape[1], t.spill + 1
        stream.width, stream.bytes, stream.head = t.operand_bits, lane_bytes(t.operand_bits, "word"), t.spill + 1
        stream.row, stream.a_groups = t.kept_row, t.a_words // GROUP
        patches, first = self._patches()
        keep_first = np.searchsorted(t.keep_phase, np.arange(t.interval + 1))
        self._shown: bytes | None = None
        self._show(None)
        self._point(
            input_slot=t.input_slots.astype(np.int32),
            constant=t.constants[t.middle],
            word=t.word.astype(np.int32),
            wire_first=np.cumsum([0, *(len(wires) for wires in t.wires)]).astype(np.int32),
            wire=np.concatenate(t.wires),
            patch_first=first,
            patch=patches,
            keep_first=keep_first.astype(np.int32),
            keep_slot=t.keep_slots.astype(np.int32),
            piece_first=t.piece_first.astype(np.int32),
            piece=t.pieces,
        )

    def _point(self, **arrays: NDArray) -> None:
        for name, array in arrays.items():
            self._held[name] = np.ascontiguousarray(array)
            setattr(self._stream, name, self._held[name].ctypes.data)

    def _patches(self) -> tuple[NDArray, NDArray[np.int32]]:
        t = self._tables
        cycle = np.arange(t.references * t.interval).reshape(t.references, t.interval, 1)
        differs = (t.constants != t.constants[t.middle]) & (cycle < t.counted)
        period, phase, which = np.nonzero(differs)
        patches = np.zeros(len(period), PATCH)
        patches["input"], patches["value"] = which, t.constants[period, phase, which]
        bounds = np.arange(t.references)[:, None] * t.interval + np.arange(t.interval + 1)
        return patches, np.searchsorted(period * t.interval + phase, bounds).astype(np.int32)

    def _show(self, fields: NDArray[np.bool_] | None) -> None:
        """Put operands on these fields only; on all if absent."""
        every = np.ones(self._tables.back.shape[1], np.bool_)
        fields = every if fields is None else fields
        if self._shown != fields.tobytes():
            self._shown = fields.tobytes()
            back = np.where(fields, self._tables.back, -1).astype(np.int32)
            uses = self._uses(back)
            self._point(back=back, first_use=uses[0], last_use=uses[1])

    def _uses(self, back: NDArray[np.int32]) -> NDArray[np.int32]:
        """First and last phase in which each group of words is on an input: [2, backs, groups]."""
        t = self._tables
        groups = t.words // GROUP
        uses = np.zeros((2, t.spill + 1, groups), np.int32)
        uses[0], uses[1] = t.interval, -1
        phase, which = np.nonzero(back >= 0)
        at = back[phase, which], t.word[phase, which] // GROUP
        np.minimum.at(uses[0], at, phase)
        np.maximum.at(uses[1], at, phase)
        return uses

    def load(self, layer: Layer) -> None:
        """Take the operands of a stream: until the next call, all chunks are of this one."""
        stream = self._stream
        stream.tiles, stream.rows_of_c, stream.columns = len(layer.a_block), layer.rows, layer.columns
        size = max(layer.a.shape[2], layer.b.shape[2])
        self._point(
            a=layer.a,
            b=layer.b,
            zero=np.zeros(size, layer.a.dtype),
            a_block=layer.a_block.astype(np.int32),
            b_block=layer.b_block.astype(np.int32),
            first_row=layer.first_row.astype(np.int32),
            first_column=layer.first_column.astype(np.int32),
        )
        stream.a_block_bytes, stream.b_block_bytes = (x.shape[2] * x.itemsize for x in (layer.a, layer.b))
        stream.a_image_bytes = layer.a.shape[1] * stream.a_block_bytes
        stream.b_image_bytes = layer.b.shape[1] * stream.b_block_bytes if len(layer.b) > 1 else 0

    def run(self, chunk: Chunk) -> tuple[NDArray, NDArray[np.bool_]]:
        """Run a chunk.

        Returns:
            What differs from ``golden``, of dtype DIFFERENCE (``fault`` is the lane, ``cycle`` the period since the
            lane's first, ``output`` the keep); for which lanes the state at the end differs from ``end``. Their states
            are put into ``states[lane]``; then there are no snapshots.
        """
        simulator, lanes = self._simulator, len(chunk.image)
        differs = np.zeros(lanes, np.bool_)
        columns = {
            "image": np.ascontiguousarray(chunk.image, np.int32),
            "period": np.ascontiguousarray(chunk.period, np.int32),
            "start": chunk.start,
            "start_of": np.ascontiguousarray(chunk.start_of, np.int64),
            "row": np.ascontiguousarray(chunk.rows),
            "snapshot": np.ascontiguousarray(chunk.snapshots),
            "state": chunk.states,
            "kept": chunk.kept,
            "golden": chunk.golden,
            "kept_of": None if chunk.kept_of is None else np.ascontiguousarray(chunk.kept_of, np.int64),
            "sums": chunk.sums,
            "end": chunk.end,
            "end_of": None if chunk.end_of is None else np.ascontiguousarray(chunk.end_of, np.int64),
            "differs": differs,
            "node": chunk.nodes,
            "counted": chunk.counted,
            "add_from": None if chunk.add_from is None else np.ascontiguousarray(chunk.add_from, np.int32),
            "add_to": None if chunk.add_to is None else np.ascontiguousarray(chunk.add_to, np.int32),
        }
        nodes = 0 if chunk.nodes is None else len(chunk.nodes)
        given = _Chunk(lanes, chunk.first, chunk.cycles, len(chunk.rows), len(chunk.snapshots), nodes)
        self._show(chunk.fields)
        for name, array in columns.items():
            if array is not None:
                setattr(given, name, array.ctypes.data)
        memories = [np.zeros((memory.words, lanes), np.uint64) for memory in simulator.design.memories]
        return simulator.run_window(self._stream, given, chunk.rows, memories), differs

    def changed(
        self,
        sums: NDArray[np.uint64],
        golden: NDArray[np.int64],
        image: Integers,
        width: int,
        compared: NDArray[np.bool_],
    ) -> NDArray:
        """Elements of C that differ from the golden ones modulo 2 ** ``width``.

        Args:
            sums: [rows, columns, lanes of the simulator], as a chunk has added them up.
            golden: [images, rows, columns].
            image: [lanes], index into ``golden``.
            width: of a sum in bits.
            compared: [rows, columns]: which elements are compared.

        Returns:
            Rows of DIFFERENCE: ``fault`` is the lane, ``output`` the element counted flat, ``value`` the difference.
        """
        image = np.ascontiguousarray(image, np.int32)
        return self._simulator.changed_sums(sums, golden, image, width, np.ascontiguousarray(compared))


class _Stream(ctypes.Structure):
    """``Stream`` of windows.c."""

    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in (
                *("interval", "inputs", "fields", "backs", "words", "bytes", "width", "tiles", "head", "references"),
                *("row", "columns", "rows_of_c", "a_groups"),
            )
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("input_slot", "constant", "back", "word", "first_use", "last_use", "wire_first", "wire"),
                *("patch_first", "patch", "keep_first", "keep_slot", "piece_first", "piece", "a", "b", "zero"),
            )
        ),
        *((name, ctypes.c_int64) for name in ("a_block_bytes", "b_block_bytes", "a_image_bytes", "b_image_bytes")),
        *((name, ctypes.c_void_p) for name in ("a_block", "b_block", "first_row", "first_column")),
    ]


class _Chunk(ctypes.Structure):
    """``Chunk`` of windows.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("lanes", "first", "cycles", "rows", "snapshots", "nodes")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("image", "period", "start", "start_of", "row", "snapshot", "state", "kept", "golden", "kept_of"),
                *("sums", "end", "end_of", "differs", "node", "counted", "add_from", "add_to"),
            )
        ),
    ]
