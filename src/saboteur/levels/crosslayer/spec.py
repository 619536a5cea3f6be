"""What a campaign file says about a network on an accelerator and its faults; imports no deep-learning library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from saboteur.campaign.target import FaultSpec, Names, Resources, Target, TargetSpec

Where = Literal["flip_flops", "memories", "nets", "pins", "components"]


class AcceleratorFault(FaultSpec):
    """Where in an array a fault sits.

    - ``flip_flops``: registers. A transient fault changes the stored bit in one cycle of a layer's stream of tiles; a
      permanent one holds it in every cycle of every layer.
    - ``memories``: words of memories, likewise.
    - ``nets``: outputs of cells; ``pins``: one input of one cell. A transient fault is a pulse of one cycle.
    - ``components``: those of an ``architecture``, while they hold something that is still read. The model says what
      happens to words of the datapath; for control, the architecture does.

    Like registers of all processing elements make one component: ``acc`` is every accumulator of the array.
    """

    where: Where
    names: Names = Field(default=("*",), description="components, such as acc; * and ? match as in file names")
    captured: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="transient faults on nets and pins: the share of pulses that meet the capture window, (pulse "
        "width + setup + hold time) / clock period; the rest leave no trace",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AcceleratorFault:
        if self.captured < 1 and (self.where not in ("nets", "pins") or self.duration != "transient"):
            raise ValueError("captured: only transient faults on nets and pins have a capture window")
        if self.model.kind == "bridge":
            raise ValueError("model: bridges are faults of pairs of nets, which only the target hdl takes")
        return self


class AcceleratorSpec(TargetSpec):
    """An int8 network whose convolutions, fully connected layers and matrix products run on an array.

    Either ``workload`` names an embedded int8 network, or ``model`` and ``data`` name the user's own, as of the target
    ``pytorch``; the model is made of layers of :mod:`saboteur.workloads.int8`. ``array`` is a shipped systolic array of
    ``rows`` × ``cols`` processing elements (output-stationary if absent), or ``path/to/file.py:function``, which gives
    an adapter for the user's own, an :class:`saboteur.levels.crosslayer.arrays.ArrayAdapter`. Instead, ``architecture``
    describes an accelerator without HDL: a YAML file, or one that ships.
    """

    kind: str = "accelerator"
    fault_spec: ClassVar[type[FaultSpec]] = AcceleratorFault

    workload: str | None = None
    model: str | None = None
    data: str | None = None
    inputs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="use only the first so many inputs")
    outputs: Literal["logits", "probabilities", "values"] = "logits"
    output: int | str | None = Field(default=None, description="which element of a tuple or mapping is the output")
    array: str | None = Field(default=None, description="output_stationary, weight_stationary or a function")
    architecture: str | None = Field(default=None, description="a .yaml file, or eyeriss, output_stationary ...")
    rows: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None, description="of a shipped array; 8 if absent"
    )
    cols: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None, description="of a shipped array; 8 if absent"
    )
    level: Literal["word", "gate"] = Field(
        default="word", description="word: registers and operators (RTL); gate: synthesised to simple gates"
    )
    layers: Names = Field(
        default=("*",), description="the layers that run on the array; * and ? match as in file names"
    )
    engine: Literal["plain", "exact"] = Field(
        default="exact",
        description="plain: all tiles of a faulty layer are simulated, and the network after it runs in full; exact: "
        "the same outputs from the tiles that the fault meets and from what changes in the network",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AcceleratorSpec:
        if (self.workload is None) == (self.model is None) or (self.model is None) != (self.data is None):
            raise ValueError("name either a workload, or a model and its data")
        if self.architecture is not None:
            if self.array is not None or self.rows is not None or self.cols is not None or self.level != "word":
                raise ValueError("architecture: goes without array, rows, cols and level; it tells its own size")
        elif self.array not in (None, "output_stationary", "weight_stationary"):
            if ":" not in self.array:
                raise ValueError(
                    f"array: {self.array!r} is neither output_stationary nor weight_stationary nor "
                    "path/to/file.py:function"
                )
            if self.rows is not None or self.cols is not None:
                raise ValueError("rows, cols: only a shipped array takes them; an adapter tells its own")
        return self

    def located(self, folder: Path) -> AcceleratorSpec:
        """The same target with relative paths of files taken from ``folder``."""
        changed = {}
        for field in ("model", "data", "array", "architecture"):
            path, colon, function = (getattr(self, field) or "").partition(":")
            if path.endswith((".py", ".npz", ".yaml", ".yml")):
                changed[field] = f"{(folder / path).resolve()}{colon}{function}"
        return self.model_copy(update=changed)

    def open(self, resources: Resources) -> Target:
        """Import PyTorch, build the model, load the data and compile the array."""
        from saboteur.levels.crosslayer import loading

        return loading.load(self, resources)
