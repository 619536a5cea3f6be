"""Hidden and cell states of recurrent layers between two time steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saboteur.levels.software.corruption import Hits, corrupted
from saboteur.levels.software.emulation import tensor_of, words_of
from saboteur.levels.software.flow import Event
from saboteur.levels.software.signals import Signal, active
from saboteur.levels.software.site import position

HIDDEN, CELL = "hidden_state", "cell_state"


@dataclass(frozen=True, eq=False, kw_only=True)
class State(Signal):
    """The state of an ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM`` after a time step, [layers, units] for each input.

    A fault in step t changes the state that step t + 1 starts from, and the output at t, which is the hidden
    state of the last layer. What layers above computed at t from the fault-free state of a layer stays.

    Attributes:
        lengths: time steps in each call of the layer; its steps are counted through all of them.
    """

    lengths: tuple[int, ...]

    def with_faults(self, state: Tensor, hits: Hits) -> Tensor:
        """A copy of ``state`` [layers, batch, units] with the faults in every input's own state."""
        elements = np.unique(hits.element)
        state = state.clone()
        rows, index = state.movedim(1, 0), (slice(None), *position(elements, self.shape, state.device))
        words = corrupted(words_of(rows[index], self.format), elements, hits, self.format_at)
        rows[index] = tensor_of(words, self.format, state)
        return state


def with_faulty_states(event: Event, edits: Sequence[tuple[State, Hits]]) -> Any:
    """The output of a recurrent layer whose states are faulty: run to each faulty step, corrupt, go on.

    Until a fault first changes an input's state, that input's outputs stay those of the undivided run.
    """
    module, x = event.module, event.argument
    time_axis = 1 if module.batch_first else 0
    length = x.shape[time_axis]
    start = sum(edits[0][0].lengths[: event.call])
    faulty = {}
    for step in range(length):
        acting = [(state, active(hits, start + step)) for state, hits in edits]
        if any(len(hits) for _, hits in acting):
            faulty[step] = acting
    state = event.args[1] if len(event.args) > 1 else event.kwargs.get("hx")
    pieces, done = [], 0
    first_change = torch.full((x.shape[1 - time_axis],), length, device=x.device)
    for step in [*faulty, None]:
        stop = length if step is None else step + 1
        if stop == done:
            break
        piece, state = module.forward(x.narrow(time_axis, done, stop - done), state)
        if step is not None:
            state, changed = _corrupted(state, faulty[step])
            hidden = state[0] if isinstance(state, tuple) else state
            piece = piece.clone()
            piece.select(time_axis, step - done).copy_(hidden[-1])
            first_change = torch.where(changed, first_change.clamp(max=step), first_change)
        pieces.append(piece)
        done = stop
    assert state is not None  # the last piece gave one
    return _spliced(event.output, torch.cat(pieces, time_axis), state, first_change, time_axis)


def _corrupted(
    state: Tensor | tuple[Tensor, Tensor], acting: Sequence[tuple[State, Hits]]
) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor]:
    parts = list(state) if isinstance(state, tuple) else [state]
    changed = torch.zeros(parts[0].shape[1], dtype=torch.bool, device=parts[0].device)
    for site, hits in acting:
        if len(hits):
            which = 1 if site.component == CELL else 0
            before, parts[which] = parts[which], site.with_faults(parts[which], hits)
            moved = words_of(before, site.format) != words_of(parts[which], site.format)
            changed |= torch.from_numpy(moved.any(axis=(0, 2))).to(changed.device)
    return (parts[0], parts[1]) if isinstance(state, tuple) else parts[0], changed


def _spliced(
    golden: Any, output: Tensor, state: Tensor | tuple[Tensor, Tensor], first_change: Tensor, time_axis: int
) -> Any:
    length = output.shape[time_axis]
    late = torch.arange(length, device=output.device)[None, :] >= first_change[:, None]
    late = (late if time_axis == 1 else late.T)[..., None]
    hit = (first_change < length)[None, :, None]
    if isinstance(state, tuple):
        last = tuple(torch.where(hit, new, old) for new, old in zip(state, golden[1], strict=True))
    else:
        last = torch.where(hit, state, golden[1])
    return torch.where(late, output, golden[0]), last
