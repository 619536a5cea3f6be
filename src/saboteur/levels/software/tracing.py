"""How one trial's error spreads, place by place."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software.corruption import Hits
from saboteur.levels.software.flow import Event
from saboteur.levels.software.injection import acting_together, present
from saboteur.levels.software.runner import Edit, ModelError, Runner
from saboteur.levels.software.site import Site

OUTPUT = "output"
CRASH = "crash"


def trace(
    runner: Runner,
    sites: Mapping[str, Site],
    batch_axes: Mapping[str, int],
    space: FaultSpace,
    faults: Faults,
    one: int,
) -> pa.Table:
    """Compare every output on the way through the inference of input ``one`` with the fault-free one.

    Args:
        runner: runs the model.
        sites: by name, those of the space.
        batch_axes: which axis of a place's output tells the inputs apart; other places are left out.
        space: where the faults come from.
        faults: of which the first trial is followed.
        one: the input.

    Returns:
        As :meth:`saboteur.campaign.target.Target.trace` says. A place reached again is named ``place[1]``
        and so on; the last is ``output``, or ``crash``, without elements, where the model fails.
    """
    hits = Hits.of_trial(space, faults, 0)
    hits, _ = next(acting_together(space, faults, 0, hits, np.array([one])))
    before, after = _signals(runner, batch_axes, one, []), {}
    with present(sites, hits) as edits:
        after = _signals(runner, batch_axes, one, edits)
    rows = [_compared(place, before[place], after[place]) for place in after if place in before]
    if OUTPUT not in after:
        rows.append(_compared(CRASH, np.zeros(0), np.zeros(0)))
    return pa.Table.from_pylist(rows)


def _signals(runner: Runner, batch_axes: Mapping[str, int], one: int, edits: list[Edit]) -> dict[str, NDArray]:
    batch = runner.batch_of(one)
    seen: dict[str, NDArray] = {}

    def watch(event: Event) -> None:
        tensor = event.tensor
        if event.place in batch_axes and tensor is not None:
            name = event.place + (f"[{event.call}]" if event.call else "")
            row = tensor.select(batch_axes[event.place], int(batch.kept[0]))
            row = row.dequantize() if row.is_quantized else row
            seen[name] = row.to("cpu").double().numpy().copy()

    with contextlib.suppress(ModelError):
        seen[OUTPUT] = runner.run(batch, edits, watch)[0].astype(np.float64)
    return seen


def _compared(place: str, before: NDArray, after: NDArray) -> dict[str, object]:
    changed = before.view(np.uint64) != after.view(np.uint64)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(after - before)[changed]
        return {
            "place": place,
            "elements": before.size,
            "changed": int(changed.sum()),
            "nonfinite": int((~np.isfinite(after)).sum()),
            "max_abs_error": float(error.max(initial=0.0)),
            "rms_error": float(np.sqrt((error**2).sum() / max(before.size, 1))),
        }
