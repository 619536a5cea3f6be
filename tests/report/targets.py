"""Targets that are hard to report on: names that try to get out of the page, outputs without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from saboteur.campaign.target import Resources, Target
from saboteur.faults import Faults, FaultSpace
from saboteur.outcomes import Golden, Recorder
from tests.campaign.toy import Toy, ToyFault, ToyTarget

LAYERS = {"a": "<script>alert(1)</script>", "b": '"><img src=\'http://x.invalid/y\'>&$x^2$ id="z"'}


class HostileTarget(ToyTarget):
    kind: str = "tests.report.targets:HostileTarget"

    def open(self, resources: Resources) -> Target:
        return Hostile(self)


class Hostile(Toy):
    def space(self, specs: Sequence[ToyFault]) -> FaultSpace:
        space = super().space(specs)
        self.plain = space
        return FaultSpace(tuple(replace(r, site=LAYERS[r.layer] + ".w", layer=LAYERS[r.layer]) for r in space.regions))

    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        super().inject(self.plain, faults, recorder)
        for trial in range(0, faults.trials, 7):
            recorder.invalid(trial, "</td><script>boom()</script>")


class UnlabelledTarget(ToyTarget):
    kind: str = "tests.report.targets:UnlabelledTarget"

    def open(self, resources: Resources) -> Target:
        return Unlabelled(self)


class Unlabelled(Toy):
    def golden(self) -> Golden:
        return Golden(self.run(), None, "values")


class ScreenedTarget(ToyTarget):
    kind: str = "tests.report.targets:ScreenedTarget"

    def open(self, resources: Resources) -> Target:
        return Screened(self)


class Screened(Toy):
    """Predicts, rightly, that flips of the ten lowest bits do no harm, and has every fifth input audited."""

    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        everything = np.arange(self.spec.inputs)
        predicted = everything[recorder.radius > 1e-3]
        for trial in range(faults.trials):
            one = faults.take([trial])
            left = everything
            if one.variant[0] < 10:
                audited = predicted[predicted % 5 == 0]
                screened = np.setdiff1d(predicted, audited)
                recorder.audit(np.full(len(audited), trial), audited)
                recorder.screened(np.full(len(screened), trial), screened)
                left = np.setdiff1d(everything, screened)
            alone = _Outputs()
            super().inject(space, one, alone)
            recorder.outputs(np.full(len(left), trial), left, alone.found[left])


class _Outputs:
    """Stands in for a recorder that keeps one trial's outputs."""

    inputs = None

    def outputs(self, trials: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> None:
        self.found = outputs
