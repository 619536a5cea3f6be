"""The contract catches targets that break it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from saboteur.errors import TargetError
from saboteur.faults import BitFlip, Faults, FaultSpace
from saboteur.levels.software.spec import SoftwareFault
from saboteur.levels.software.target import SoftwareTarget
from saboteur.outcomes import Golden, Recorder
from saboteur.testing import TargetContract, draw_faults
from tests.software import models


class Contract(TargetContract):
    kind: type[SoftwareTarget] = SoftwareTarget

    def open(self) -> SoftwareTarget:
        return self.kind(models.mlp(), models.numbers(9, 5), engine="plain")

    def open_changed(self) -> SoftwareTarget:
        model = models.mlp()
        model[0].weight.data[0, 0] += 1
        return self.kind(model, models.numbers(9, 5), engine="plain")

    def specs(self) -> list[SoftwareFault]:
        return [SoftwareFault(where="weights", model=BitFlip(bits=(28, 29, 30)))]


class LeavesTheFault(SoftwareTarget):
    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        super().inject(space, faults, recorder)
        self._model[0].weight.data[0, 0] += 1


class LeavesTheFaultAfterAnException(SoftwareTarget):
    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        try:
            super().inject(space, faults, recorder)
        except Exception:
            self._model[0].weight.data[0, 0] += 1
            raise


class InjectsNothing(SoftwareTarget):
    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        empty = Faults(faults.key, *(column[:0] for column in _columns(faults)))
        super().inject(space, empty, recorder)


class AccumulatesFaults(SoftwareTarget):
    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        rows = [np.flatnonzero(faults.trial <= trial) for trial in range(faults.trials)]
        trial = np.repeat(np.arange(faults.trials), [len(part) for part in rows])
        picked = np.concatenate(rows)
        super().inject(space, Faults(faults.key, trial, *(c[picked] for c in _columns(faults)[1:])), recorder)


class ForgetsAnInput(SoftwareTarget):
    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        keep = recorder.outputs
        recorder.outputs = lambda trials, inputs, outputs: keep(trials[:-1], inputs[:-1], outputs[:-1])
        super().inject(space, faults, recorder)


class DrawsByChance(SoftwareTarget):
    def golden(self) -> Golden:
        self._calls = getattr(self, "_calls", 0) + 1
        golden = super().golden()
        return Golden(golden.outputs + np.float32(self._calls), golden.labels, golden.kind, golden.environment)


class SameFingerprint(SoftwareTarget):
    fingerprint = "1"


class TracesTheGoldenRun(SoftwareTarget):
    def trace(self, space: FaultSpace, faults: Faults, input: int):
        return super().trace(space, Faults(faults.key, *(column[:0] for column in _columns(faults))), input)


def _columns(faults: Faults) -> tuple:
    return faults.trial, faults.region, faults.element, faults.step, faults.variant


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (LeavesTheFault, Contract.test_restored_after_injection),
        (LeavesTheFaultAfterAnException, Contract.test_restored_after_an_exception),
        (InjectsNothing, Contract.test_some_fault_is_seen),
        (AccumulatesFaults, Contract.test_trials_do_not_depend_on_each_other),
        (AccumulatesFaults, Contract.test_empty_trials_give_golden),
        (ForgetsAnInput, Contract.test_many_faults_in_a_trial),
        (DrawsByChance, Contract.test_two_golden_runs_agree),
        (SameFingerprint, Contract.test_fingerprint),
        (TracesTheGoldenRun, Contract.test_trace_ends_with_what_inject_observes),
    ],
)
def test_a_broken_target_fails(broken: type[SoftwareTarget], test: Callable) -> None:
    class OfBroken(Contract):
        kind = broken

    contract = OfBroken()
    target = contract.open()
    golden, space = target.golden(), target.space(contract.specs())
    values = {"target": target, "golden": golden, "space": space, "faults": draw_faults(space, contract.trials)}
    wanted = test.__code__.co_varnames[1 : test.__code__.co_argcount]
    with pytest.raises((AssertionError, TargetError)):
        test(contract, **{name: values[name] for name in wanted})
    sound = Contract()
    values["target"] = sound.open()
    values["golden"] = values["target"].golden()
    test(sound, **{name: values[name] for name in wanted})
