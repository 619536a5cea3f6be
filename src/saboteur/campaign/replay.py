"""Replays a single trial: what it was, what came of it, and how the error spread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from saboteur.campaign.runner import Session
from saboteur.errors import CampaignError
from saboteur.faults import lists
from saboteur.outcomes.recorder import Recorder, outcome


@dataclass(frozen=True)
class Replay:
    """One trial, run again alone.

    Attributes:
        faults: its single faults, as a fault list.
        observations: one row, as the store has it.
        outcomes: criterion name -> ``masked``, ``sdc``, ``due`` or ``invalid``.
        input: the input whose inference ``trace`` follows.
        golden, faulty: that inference's outputs; ``faulty`` is ``None`` where it gave none.
        trace: the error, place by place (see :meth:`saboteur.campaign.target.Target.trace`).
    """

    faults: pa.Table
    observations: pa.Table
    outcomes: dict[str, str]
    input: int
    golden: np.ndarray
    faulty: np.ndarray | None
    trace: pa.Table


def replay(session: Session, stratum: int, trial: int, input: int | None = None) -> Replay:
    """Run trial ``trial`` of stratum number ``stratum`` again.

    Args:
        session: the opened campaign.
        stratum: its number in the plan.
        trial: its number in the stratum.
        input: which inference to follow; by default the one whose output moves most.

    Raises:
        CampaignError: when there is no such stratum, trial or input.
    """
    sampler, golden = session.sampler, session.golden
    if not 0 <= stratum < len(sampler.strata):
        raise CampaignError(f"stratum: {stratum} is outside 0 .. {len(sampler.strata) - 1}")
    if not 0 <= trial < sampler.limits[stratum]:
        raise CampaignError(f"trial: {trial} is outside 0 .. {sampler.limits[stratum] - 1} of stratum {stratum}")
    faults = sampler.faults(stratum, trial, trial + 1)
    inputs = sampler.inputs(faults, golden.inputs)
    met = np.arange(golden.inputs) if inputs is None else inputs[0]
    if input is not None and input not in met:
        raise CampaignError(f"input: {input} is not among the {len(met)} inputs that the trial meets")
    recorder = Recorder(golden, session.campaign.criteria, 1, inputs, keep_outputs=True)
    session.target.inject(session.space, faults, recorder)
    observations, pairs = recorder.table(), recorder.pairs()
    assert pairs is not None
    moved = {
        int(i): np.array(out) for i, out in zip(pairs["input"].to_numpy(), pairs["output"].to_pylist(), strict=True)
    }
    if input is None:
        input = max(moved, key=lambda i: _error(moved[i], golden.outputs[i]), default=int(met[0]))
    faulty = moved.get(input)
    if faulty is not None:
        faulty = faulty.reshape(golden.outputs.shape[1:])
    elif observations["identical"].to_numpy()[0] + len(moved) == len(met):
        faulty = golden.outputs[input]
    return Replay(
        faults=lists.to_table(session.space, faults),
        observations=observations,
        outcomes={c.name: str(outcome(observations, c, golden)[0]) for c in session.campaign.criteria},
        input=input,
        golden=golden.outputs[input],
        faulty=faulty,
        trace=session.target.trace(session.space, faults, input),
    )


def _error(faulty: np.ndarray, golden: np.ndarray) -> float:
    error = np.abs(faulty - golden.ravel()).max()
    return float(error) if np.isfinite(error) else np.inf
