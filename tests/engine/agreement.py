"""Injects the same faults by two engines and compares what was recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from saboteur.faults.space import Faults, FaultSpace
from saboteur.levels.software.spec import EngineName, SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes.criteria import STANDARD, Criterion
from saboteur.outcomes.recorder import Recorder

ENGINE_DEPENDENT = ("identical", "bounded", "max_abs_error", "confidence_change")


def drawn(space: FaultSpace, trials: int, seed: int = 0, rows: int = 1) -> Faults:
    """Trials of ``rows`` faults each, uniform over the whole space."""
    rng = np.random.default_rng(seed)
    stratum = space.strata("network")[0]
    region, element, step, variant = space.decode(stratum, rng.integers(0, stratum.size, trials * rows))
    key = rng.integers(0, 2**63, trials).astype(np.uint64)
    return Faults(key, np.repeat(np.arange(trials), rows), region.astype(np.int32), element, step, variant)


def recorded(
    target: SoftwareTarget,
    engine: EngineName,
    space: FaultSpace,
    faults: Faults,
    criteria: Sequence[Criterion] = STANDARD,
    inputs: np.ndarray | None = None,
    keep_outputs: bool = False,
) -> tuple[pa.Table, pa.Table | None]:
    """The recorder's table and kept pairs of an injection by ``engine``."""
    recorder = Recorder(target.golden(), criteria, faults.trials, inputs, keep_outputs)
    target.engine_name = engine
    target.inject(space, faults, recorder)
    return recorder.table(), recorder.pairs()


def assert_agree(
    target: SoftwareTarget,
    specs: Sequence[SoftwareFault],
    trials: int,
    criteria: Sequence[Criterion] = STANDARD,
    engine: EngineName = "exact",
    rows: int = 1,
    **options: object,
) -> pa.Table:
    """Both engines record the same verdicts for every trial of ``rows`` faults; returns the fast engine's table."""
    space = target.space(specs)
    faults = drawn(space, trials, rows=rows)
    fast, _ = recorded(target, engine, space, faults, criteria, **options)
    plain, _ = recorded(target, "plain", space, faults, criteria, **options)
    for name in plain.column_names:
        if name not in ENGINE_DEPENDENT:
            assert fast[name].to_pylist() == plain[name].to_pylist(), name
    finite = plain["max_abs_error"].to_numpy() * (1 - 1e-3) - 1e-3
    assert (fast["max_abs_error"].to_numpy() >= finite).all()
    return fast
