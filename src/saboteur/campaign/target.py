"""The seam between levels and everything else: a target and what a campaign asks of it.

A target knows how its system runs, which faults it can have and how a fault gets in. It knows nothing of
sampling, statistics, storage or reports; those know nothing of how a fault gets in. Every target passes the
contract tests of :mod:`saboteur.testing`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from saboteur.errors import TargetError
from saboteur.extensions import Part, extensible
from saboteur.faults.formats import NumberFormat
from saboteur.faults.models import AnyFaultModel
from saboteur.faults.space import Duration, Faults, FaultSpace, Region
from saboteur.outcomes.golden import Golden
from saboteur.outcomes.recorder import Recorder

Names = Annotated[
    tuple[str, ...],
    BeforeValidator(
        lambda given: (given,) if isinstance(given, str) else given, json_schema_input_type=str | tuple[str, ...]
    ),
]
"""One name or several: names of files, or patterns in which * and ? match as in file names."""


class FaultSpec(BaseModel):
    """One kind of fault that a campaign injects: which model, for how long. Levels add where."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: AnyFaultModel
    duration: Duration = "permanent"
    activity: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of inferences in which an intermittent fault acts"
    )

    @model_validator(mode="after")
    def _only_intermittent_faults_rest(self) -> FaultSpec:
        if (self.duration == "intermittent") == (self.activity == 1.0):
            raise ValueError(
                f"activity: {self.activity} with duration {self.duration!r}; an intermittent fault needs an "
                "activity below 1, and no other fault takes one"
            )
        return self


class Resources(BaseModel):
    """How a campaign runs; nothing here changes an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workers: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1)] = Field(default=1, description="CPU threads of each worker")
    device: str = Field(default="cpu", description="cpu, cuda or cuda:N; part of the golden run's identity")
    batch_size: Annotated[int, Field(ge=1)] | None = Field(default=None, description="inputs in one pass")
    unit_trials: Annotated[int, Field(ge=1)] = Field(
        default=64, description="trials in one work unit: what a kill can lose"
    )
    memory_mb: Annotated[int, Field(ge=64)] | None = Field(
        default=None,
        description="budget of each worker; a quarter of the machine's memory, shared, if absent",
    )

    @property
    def memory_bytes(self) -> int:
        """The budget of each worker in bytes."""
        if self.memory_mb is not None:
            return self.memory_mb * 2**20
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (4 * self.workers)


class TargetSpec(Part):
    """How a campaign file names a target. Reading one imports no deep-learning library; opening it may."""

    group: ClassVar[str] = "saboteur.targets"
    fault_spec: ClassVar[type[FaultSpec]]

    def located(self, folder: Path) -> Self:
        """The same target with relative paths taken from ``folder``, that of the campaign file."""
        return self

    @abstractmethod
    def open(self, resources: Resources) -> Target:
        """Load the system under test and its workload.

        Raises:
            TargetError: when a file, function or field does not give a system that can be assessed.
        """


if TYPE_CHECKING:
    AnyTargetSpec = TargetSpec
else:
    AnyTargetSpec = extensible(TargetSpec)


class Target(ABC):
    """A system under test with its workload, at one level."""

    fingerprint: str
    """A hash of everything that decides the answers: model bytes, input bytes, labels, settings."""

    @abstractmethod
    def golden(self) -> Golden:
        """Run fault-free over the whole workload. Two calls must agree bit for bit."""

    @abstractmethod
    def space(self, specs: Sequence[FaultSpec]) -> FaultSpace:
        """Every fault that ``specs`` (of the target's own fault-spec type) describe.

        Raises:
            FaultError: for an unknown layer (with near names), a bit outside the format, an empty space.
        """

    @abstractmethod
    def inject(self, space: FaultSpace, faults: Faults, recorder: Recorder) -> None:
        """Run every trial of ``faults`` on the inputs that ``recorder.inputs`` gives it, and record all pairs.

        The target is left exactly as it was found, also when an exception passes. A trial without faults
        gives the golden outputs. What happens in one trial never depends on the others in the call.
        """

    @abstractmethod
    def trace(self, space: FaultSpace, faults: Faults, input: int) -> pa.Table:
        """Follow the error of the first trial of ``faults`` through one inference.

        Returns:
            A row for each place in the order of computation: ``place``, ``elements``, ``changed`` (elements
            that differ from golden), ``nonfinite``, ``max_abs_error``, ``rms_error``.
        """

    def stored(self, region: Region) -> tuple[NDArray, NumberFormat]:
        """The fault-free words [elements] that lie in the memory of ``region``, and their lined-up format.

        Raises:
            TargetError: when the site holds no stored value, such as an activation.
        """
        raise TargetError(f"{region.site}: holds no stored value; a data-aware plan needs weights or other memory")

    def close(self) -> None:  # noqa: B027  (most targets hold nothing)
        """Give back what the target holds."""
