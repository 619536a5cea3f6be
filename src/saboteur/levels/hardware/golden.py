"""Golden runs too long for memory: whole traces in windows, and traces of what is watched only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saboteur.levels.hardware.simulate import Simulator, Stimulus


class GoldenRun:
    """A fault-free run of which windows are computed again when they are needed, from the states at their beginning.

    Args:
        simulator: of the design.
        stimulus: what it gets.
        run: which run of the stimulus.
        cycles: of a window.
        kept: how many windows are in memory at most.
        initial: [slots] states at power-on.
    """

    def __init__(
        self,
        simulator: Simulator,
        stimulus: Stimulus,
        run: int,
        cycles: int,
        kept: int = 3,
        initial: NDArray | None = None,
    ):
        self._simulator = Simulator(simulator.design, simulator.compiled)
        self._stimulus, self._run, self._cycles, self._kept = stimulus, run, cycles, kept
        self._states = np.array(simulator.design.states, np.int64)
        self._windows: dict[int, NDArray] = {}
        first = [image[:, 0].copy() for image in simulator.memories(stimulus, np.array([run]))]
        self._starts: list[tuple[NDArray, list[NDArray[np.uint64]]]] = [
            (simulator.initial if initial is None else initial, first)
        ]
        self._seen: WatchedTrace | None = None

    def __len__(self) -> int:
        """The cycles of the run and one."""
        return self._stimulus.cycles + 1

    def window(self, cycle: int) -> tuple[int, NDArray, list[NDArray[np.uint64]]]:
        """The window that holds a cycle, as :class:`saboteur.levels.hardware.simulate.GoldenWindows` says."""
        number = cycle // self._cycles
        while len(self._starts) <= number:
            self._compute(len(self._starts) - 1)
        if number not in self._windows:
            self._compute(number)
        values = self._windows.pop(number)
        self._windows[number] = values
        return number * self._cycles, values, self._starts[number][1]

    def watched(self, slots: NDArray[np.int32]) -> WatchedTrace:
        """Some slots of the whole run."""
        if self._seen is None or not np.array_equal(self._seen.slots, slots):
            parts = [self.window(first)[1][:, slots] for first in range(0, self._stimulus.cycles, self._cycles)]
            values = np.concatenate([*(part[:-1] for part in parts), parts[-1][-1:]])
            self._seen = WatchedTrace(values, slots, len(self._simulator.design.slots))
        return self._seen

    def _compute(self, number: int) -> None:
        first = number * self._cycles
        part = slice(first, min(first + self._cycles, self._stimulus.cycles))
        inputs = {
            name: np.asarray(words)[self._run : self._run + 1, part] for name, words in self._stimulus.inputs.items()
        }
        initial, images = self._starts[number]
        memories = [image[:, None].copy() for image in images]
        trace = self._simulator.run(Stimulus(inputs), initial=initial, memories=memories)
        assert trace is not None
        self._windows[number] = trace[0]
        while len(self._windows) > self._kept:
            self._windows.pop(next(iter(self._windows)))
        if len(self._starts) == number + 1:
            after = self._simulator.initial.copy()
            after[self._states] = trace[0, -1, self._states]
            self._starts.append((after, [image[:, 0].copy() for image in memories]))


class WatchedTrace:
    """Values [..., cycles, watched slots] that are indexed by slot, like a trace of all slots.

    Args:
        values: in the golden type.
        slots: which they are.
        count: how many slots the design has.
    """

    def __init__(self, values: NDArray, slots: NDArray[np.int32], count: int):
        column = np.full(count, len(slots))
        column[slots] = np.arange(len(slots))
        self.values, self.slots, self._column = values, slots, column

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the trace of all slots."""
        return (*self.values.shape[:-1], len(self._column))

    def __len__(self) -> int:
        """Of the first axis."""
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        """An array where slots are named, else a part."""
        index = index if isinstance(index, tuple) else (index,)
        named = index[0] is Ellipsis or sum(k is not None for k in index) == self.values.ndim
        if named:
            return self.values[(*index[:-1], self._column[index[-1]])]
        return WatchedTrace(self.values[index], self.slots, len(self._column))
