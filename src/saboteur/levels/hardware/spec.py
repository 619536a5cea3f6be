"""What a campaign file says about an HDL design and its faults; reading it runs no tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from saboteur.campaign.target import FaultSpec, Names, Resources, Target, TargetSpec

Where = Literal["flip_flops", "memories", "inputs", "nets", "pins", "bridges"]


class HardwareFault(FaultSpec):
    """Where in a design a fault sits.

    - ``flip_flops``: registers and latches. A transient fault changes the stored bit in one cycle, for as long as
      the design keeps it; a permanent one holds it in every cycle.
    - ``memories``: words of memories, likewise.
    - ``inputs``: input ports, in one cycle or in all.
    - ``nets``: outputs of cells, as all that read them see them (stem); ``pins``: one input of one cell (branch). A
      transient fault is a pulse (single-event transient) that lasts for the one cycle.
    - ``bridges``: shorts between the given ``pairs`` of nets of a gate-level design, or between all ``neighbours``,
      with the model ``bridge``.

    At gate level, too, a register is a word: models of several adjacent bits hit its neighbouring flip-flops.
    """

    where: Where
    instances: Names = Field(
        default=("*",), description="module instances; * and ? match as in file names; '' is the top module"
    )
    names: Names = Field(default=("*",), description="registers, memories or ports, without their instance")
    pairs: tuple[tuple[str, str], ...] = Field(default=(), description="bridges: hierarchical names of the two nets")
    neighbours: bool = Field(
        default=False, description="bridges: every two nets that meet at a cell, as its inputs or as input and output"
    )
    captured: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="transient faults on nets and pins: the share of pulses that meet the capture window, (pulse "
        "width + setup + hold time) / clock period; the rest leave no trace",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> HardwareFault:
        if self.captured < 1 and (self.where not in ("nets", "pins") or self.duration != "transient"):
            raise ValueError("captured: only transient faults on nets and pins have a capture window")
        bridges = self.where == "bridges"
        if bool(self.pairs) + self.neighbours != bridges or bridges != (self.model.kind == "bridge"):
            raise ValueError(
                "pairs: bridges need pairs of nets or neighbours, and the model bridge, and nothing else takes them"
            )
        return self


class OutputPort(BaseModel):
    """An output port that is part of the answer; see :class:`saboteur.levels.hardware.testbench.Observed`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    port: str
    lanes: Annotated[int, Field(ge=1)] = Field(default=1, description="equal numbers in the port, lowest bits first")
    signed: bool = Field(default=False, description="the numbers are in two's complement")


class HardwareTarget(TargetSpec):
    """A design in Verilog with what it is fed and what is looked at.

    Either ``network`` names an embedded int8 network, which runs on a pipeline of shipped layer engines at
    register-transfer level; or ``array`` names a shipped systolic array, which multiplies random tiles; or
    ``sources`` and ``top`` name the user's own design, with ``stimulus`` and ``outputs``.

    ``stimulus`` is an ``.npz``, ``.csv``, ``.vcd`` or ``.fst`` file, or ``package.module:function`` or
    ``path/to/file.py:function``, which returns a mapping of arrays [cycles] or [runs, cycles] by port, as
    :func:`saboteur.levels.hardware.testbench.read_stimulus` describes them. A run is an *input* of the campaign.
    """

    kind: str = "hdl"
    fault_spec: ClassVar[type[FaultSpec]] = HardwareFault

    network: str | None = None
    array: Literal["output_stationary", "weight_stationary"] | None = None
    sources: Names = ()
    top: str | None = None
    parameters: dict[str, int | str] = Field(default_factory=dict, description="of the top module")
    defines: dict[str, str | int | None] = Field(default_factory=dict, description="preprocessor macros")
    include: Names = Field(default=(), description="folders of included files")
    level: Literal["word", "gate"] = Field(
        default="word", description="word: registers and operators (RTL); gate: synthesised to simple gates"
    )
    liberty: Names = Field(
        default=(), description="gate level: Liberty files of the cells to map to, or of which the sources are made"
    )
    under_test: str | None = Field(
        default=None,
        description="the instance in top that is the design, and that alone faults strike; the rest of top is a "
        "synthesisable testbench that answers it",
    )
    stimulus: str | None = None
    memories: dict[str, str] = Field(default_factory=dict, description="$readmemh files by memory")
    outputs: tuple[str | OutputPort, ...] = ()
    valid: str | None = Field(default=None, description="the output that is 1 when the outputs count")
    first_cycle: Annotated[int, Field(ge=0)] = Field(
        default=0, description="look at outputs and alarms, and let faults begin, from this cycle on: after the reset"
    )
    alarms: Names = Field(default=(), description="outputs of safety mechanisms, 1 when they detect an error")
    answer: Literal["values", "logits"] = Field(default="values", description="how the outputs are read")
    inputs: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="use only the first so many runs; images of a network, tiles of an array (4 if absent)",
    )
    pes: Annotated[int, Field(ge=1)] = Field(default=8, description="processing elements of each layer of a network")

    @field_validator("outputs", mode="before", json_schema_input_type=str | OutputPort | tuple[str | OutputPort, ...])
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str | dict | OutputPort) else value

    @model_validator(mode="after")
    def _one_source(self) -> HardwareTarget:
        if (self.network is not None) + (self.array is not None) + bool(self.sources) != 1:
            raise ValueError("name one of network, array and sources")
        if self.sources and not (self.top and self.stimulus and self.outputs):
            raise ValueError("sources need top, stimulus and outputs")
        return self

    def located(self, folder: Path) -> HardwareTarget:
        """The same target with relative paths taken from ``folder``."""

        def at(path: str) -> str:
            return str((folder / path).resolve())

        stimulus = self.stimulus
        if stimulus is not None:
            path, colon, function = stimulus.partition(":")
            if Path(path).suffix in (".py", ".npz", ".csv", ".vcd", ".fst"):
                stimulus = f"{at(path)}{colon}{function}"
        return self.model_copy(
            update={
                "sources": tuple(map(at, self.sources)),
                "include": tuple(map(at, self.include)),
                "liberty": tuple(map(at, self.liberty)),
                "memories": {name: at(path) for name, path in self.memories.items()},
                "stimulus": stimulus,
            }
        )

    def open(self, resources: Resources) -> Target:
        """Read and compile the design, and load the stimulus."""
        from saboteur.levels.hardware.target import DesignTarget

        return DesignTarget.from_spec(self, resources)
