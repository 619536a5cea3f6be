"""A target of a few lines, in NumPy, to test everything that lies above the levels: a linear classifier."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from saboteur.campaign.target import FaultSpec, Resources, Target, TargetSpec
from saboteur.errors import FaultError, near
from saboteur.faults import Faults, FaultSpace, Region, number_format
from saboteur.outcomes import Golden, Recorder

FLOAT32 = number_format("float32")


class ToyFault(FaultSpec):
    layers: tuple[str, ...] = ("a", "b")


class ToyTarget(TargetSpec):
    """``misbehave`` makes the golden run random, or one trial fail, or the process die in the middle.

    A target that is ``held`` writes ``kill_flag`` with its process's number added, and injects when ``kill_flag`` is
    gone.
    """

    kind: str = "tests.campaign.toy:ToyTarget"
    fault_spec: ClassVar[type[FaultSpec]] = ToyFault
    inputs: int = 40
    misbehave: Literal["random", "invalid", "nan", "no_logits", "killed", "held"] | None = None
    kill_flag: Path | None = None

    def open(self, resources: Resources) -> Target:
        return Toy(self)


class Toy(Target):
    def __init__(self, spec: ToyTarget):
        rng = np.random.default_rng(7)
        self.spec = spec
        self.x = rng.normal(size=(spec.inputs, 6)).astype(np.float32)
        self.weights = {
            "a": rng.normal(size=(6, 5)).astype(np.float32),
            "b": rng.normal(size=(5, 4)).astype(np.float32),
        }
        clean = self.run()
        self.labels = np.where(rng.random(spec.inputs) < 0.9, clean.argmax(axis=1), 0)
        self.fingerprint = hashlib.sha256(
            b"".join(w.tobytes() for w in self.weights.values()) + bytes(spec.inputs)
        ).hexdigest()

    def run(self) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.maximum(self.x @ self.weights["a"], 0) @ self.weights["b"]

    def golden(self) -> Golden:
        outputs = self.run()
        if self.spec.misbehave == "random":
            outputs = outputs + np.random.default_rng().normal(size=outputs.shape).astype(np.float32)
        if self.spec.misbehave == "nan":
            outputs[3, 1] = np.nan
        if self.spec.misbehave == "no_logits":
            return Golden(outputs[:, 0], None, "values")
        return Golden(outputs, self.labels, "logits", {"numpy": np.__version__})

    def space(self, specs: Sequence[ToyFault]) -> FaultSpace:
        regions = []
        for spec in specs:
            for layer in spec.layers:
                if layer not in self.weights:
                    raise FaultError(f"layers: no layer {layer!r}{near(layer, self.weights)}")
                shape = self.weights[layer].shape
                regions.append(Region(f"{layer}.weight", layer, "weight", shape, FLOAT32, spec.model, spec.duration))
        return FaultSpace(tuple(regions))

    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        for trial in range(faults.trials):
            if self.spec.misbehave == "killed" and self.spec.kill_flag is not None and self.spec.kill_flag.exists():
                self.spec.kill_flag.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.spec.misbehave == "held" and self.spec.kill_flag is not None:
                self.spec.kill_flag.with_suffix(f".{os.getpid()}").touch()
                while self.spec.kill_flag.exists():
                    time.sleep(0.01)
            if self.spec.misbehave == "invalid" and faults.key[trial] % np.uint64(10) == 0:
                recorder.invalid(trial, "the harness lost its way")
                continue
            saved = {name: weight.copy() for name, weight in self.weights.items()}
            for row in range(*faults.bounds[trial : trial + 2]):
                region = space.regions[faults.region[row]]
                words = self.weights[region.layer].reshape(-1).view(np.uint32)
                at, one = faults.element[row], slice(row, row + 1)
                words[at] = region.model.corrupt(
                    words[at : at + 1].astype(np.uint64), faults.variant[one], faults.drawn[one], region.format
                )[0]
            inputs = np.arange(self.spec.inputs) if recorder.inputs is None else recorder.inputs[trial]
            recorder.outputs(np.full(len(inputs), trial), inputs, self.run()[inputs])
            self.weights = saved

    def close(self) -> None:
        self.weights = {}  # a closed target cannot be used

    def trace(self, space: FaultSpace, faults: Faults, input: int) -> pa.Table:
        recorder = Recorder(self.golden(), [], 1)
        self.inject(space, faults.take([0]), recorder)
        error = recorder.table()["max_abs_error"].to_numpy()[0]
        return pa.table(
            {
                "place": ["output"],
                "elements": [4],
                "changed": [int(error > 0) * 4],
                "nonfinite": [0],
                "max_abs_error": [error],
                "rms_error": [error],
            }
        )

    def stored(self, region: Region) -> tuple[np.ndarray, object]:
        return self.weights[region.layer].reshape(-1).view(np.uint32).astype(np.uint64), FLOAT32
