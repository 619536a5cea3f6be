"""Arrays in HDL that multiply matrix tiles: what Saboteur must know of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from saboteur.levels.hardware import designs
from saboteur.levels.hardware.designs import TileShape


class ArrayAdapter(Protocol):
    """What a user's own array must tell.

    The array computes a *stream* of tile products ``C[t] = A[t] @ B[t]`` of one shape, one after the other. Cycle 0 is
    the first cycle, and a reset of the array is part of :meth:`stimulus`. The clock is not told: it is the input that
    clocks the flip-flops.

    Attributes:
        sources: Verilog or SystemVerilog files.
        top: name of the top module.
        parameters: of the top module.
        dataflow: ``output_stationary`` or ``weight_stationary``.
        rows: output-stationary: rows of C in a tile; weight-stationary: rows of B in a tile.
        cols: columns of C and B in a tile.
        data_width: bits of an operand, two's complement.
        acc_width: bits of an element of C, two's complement; sums wrap.
    """

    @property
    def sources(self) -> Sequence[Path | str]: ...  # noqa: D102
    @property
    def top(self) -> str: ...  # noqa: D102
    @property
    def parameters(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def dataflow(self) -> str: ...  # noqa: D102
    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def cols(self) -> int: ...  # noqa: D102
    @property
    def data_width(self) -> int: ...  # noqa: D102
    @property
    def acc_width(self) -> int: ...  # noqa: D102

    def cycles(self, shape: TileShape) -> int:
        """How many cycles a stream takes, until its last result has been read."""
        ...

    def stimulus(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Mapping[str, NDArray]:
        """The port values of a stream.

        Args:
            a: [tiles, m, k] operands.
            b: [tiles, k, n] operands.

        Returns:
            ``[cycles]`` for each input port except the clock: uint64, or Python integers where a port is wider than 64
            bits.
        """
        ...

    def result(self, outputs: Mapping[str, NDArray], shape: TileShape) -> NDArray[np.int64]:
        """Read the results of a stream, [tiles, m, n], from the output ports, ``[cycles]`` each."""
        ...


@dataclass(frozen=True)
class ShippedArray:
    """A systolic array that ships with Saboteur, as an adapter; see :class:`ArrayAdapter`."""

    array: designs.SystolicArray

    @property
    def sources(self) -> Sequence[Path]:  # noqa: D102
        return designs.sources(self.array.design)

    @property
    def top(self) -> str:  # noqa: D102
        return self.array.design

    @property
    def dataflow(self) -> str:  # noqa: D102
        return self.array.design

    @property
    def parameters(self) -> Mapping[str, int]:  # noqa: D102
        return self.array.parameters

    @property
    def rows(self) -> int:  # noqa: D102
        return self.array.rows

    @property
    def cols(self) -> int:  # noqa: D102
        return self.array.cols

    @property
    def data_width(self) -> int:  # noqa: D102
        return self.array.data_width

    @property
    def acc_width(self) -> int:  # noqa: D102
        return self.array.acc_width

    def cycles(self, shape: TileShape) -> int:  # noqa: D102
        return self.array.cycles(shape)

    def stimulus(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> Mapping[str, NDArray]:  # noqa: D102
        return self.array.stimulus(a, b)

    def result(self, outputs: Mapping[str, NDArray], shape: TileShape) -> NDArray[np.int64]:  # noqa: D102
        return self.array.result(outputs, shape)
