"""What a campaign file says about a software-level target and its faults; imports no deep-learning library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from saboteur.campaign.target import FaultSpec, Names, Resources, Target, TargetSpec
from saboteur.errors import SaboteurError
from saboteur.faults.error_models import ErrorModel
from saboteur.faults.formats import number_format
from saboteur.faults.models import FaultModel

Where = Literal[
    "weights",
    "biases",
    "buffers",
    "parameters",
    "activations",
    "operators",
    "inputs",
    "connections",
    "hidden_state",
    "cell_state",
    "outputs",
]


EngineName = Literal["plain", "exact", "screened"]


class SoftwareFault(FaultSpec):
    """Where in a model a fault sits.

    - ``weights``: weight tensors of two or more dimensions, a word each; ``biases``: tensors named
      ``bias*``; ``buffers``: floating-point buffers such as batch-norm statistics; ``parameters``: all of
      the parameters.
    - ``activations``: outputs of leaf modules; ``operators``: outputs of functions called inside modules;
      ``inputs``: the model's input.
    - ``connections``: one input of one neuron of a linear or convolution layer, as that neuron alone reads it.
    - ``hidden_state``, ``cell_state``: the state of an RNN, GRU or LSTM after a time step.
    - ``outputs``: outputs of leaf modules, for a learned error model (``{kind: error_model, file: PATH}``), which says
      how a whole output is wrong once a fault in the hardware below has reached it; a permanent one acts in all of the
      layers, which run on one array.

    A transient fault in an activation or state acts once in each inference it is judged on (at one call of
    the module, or one time step); a permanent one at every call and step.
    """

    where: Where
    layers: Names = Field(default=("*",), description="module names; * and ? match as in file names")
    layer_types: Names | None = Field(default=None, description="module classes, such as Conv2d")
    granularity: Literal["element", "channel", "layer"] = Field(
        default="element",
        description="what is hit at once: one value, a channel (feature map), or the whole output",
    )

    @field_validator("model")
    @classmethod
    def _acts_on_words(cls, model: FaultModel) -> FaultModel:
        if not model.memoryless and not isinstance(model, ErrorModel):
            raise ValueError(
                f"{model.kind} needs the value of the cycle before, which only the nets of HDL designs have"
            )
        return model

    @model_validator(mode="after")
    def _fits_together(self) -> SoftwareFault:
        if (self.where == "outputs") != isinstance(self.model, ErrorModel):
            raise ValueError(f"where: outputs takes an error_model and nothing else does, not {self.model.kind}")
        if isinstance(self.model, ErrorModel):
            transient = self.duration == "transient"
            if not (self.model.profiles if transient else self.model.permanent):
                other = "permanent or intermittent" if transient else "transient"
                raise ValueError(
                    f"duration: {self.duration!r}; the error model {self.model.title!r} was not learned from such "
                    f"faults: use {other}"
                )
        if self.granularity != "element" and self.where not in ("activations", "operators", "inputs"):
            raise ValueError(
                f"granularity: {self.granularity!r} applies to activations, operators and inputs, not to {self.where}"
            )
        return self


class PyTorchTarget(TargetSpec):
    """A PyTorch model in eval mode with its test inputs.

    Either ``workload`` names an embedded network, or ``model`` and ``data`` name the user's own:
    ``package.module:function`` or ``path/to/file.py:function``; the first returns the ``torch.nn.Module``,
    the second ``(inputs, labels)`` with labels possibly ``None``; ``data`` may also be an ``.npz`` file with
    ``x`` and ``y``.
    """

    kind: str = "pytorch"
    fault_spec: ClassVar[type[FaultSpec]] = SoftwareFault

    workload: str | None = None
    model: str | None = None
    data: str | None = None
    inputs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="use only the first so many inputs")
    outputs: Literal["logits", "probabilities", "values"] = "logits"
    output: int | str | None = Field(default=None, description="which element of a tuple or mapping is the output")
    weights_format: str | None = Field(default=None, description="number format that weights are stored in")
    activations_format: str | None = Field(default=None, description="number format that layer outputs travel in")
    per_channel: bool = Field(default=True, description="affine weight formats: one scale for each output channel")
    engine: EngineName = Field(
        default="exact",
        description="plain: every faulty inference in full; exact: the same verdicts from a fraction of the work; "
        "screened: clear cases are predicted, and a sample of them run as an audit",
    )
    audit_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.005, description="engine screened: the share of all inferences that is drawn for the audit"
    )

    @field_validator("weights_format", "activations_format")
    @classmethod
    def _known_format(cls, name: str | None) -> str | None:
        try:
            return None if name is None else number_format(name).name
        except SaboteurError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _one_source(self) -> PyTorchTarget:
        if (self.workload is None) == (self.model is None) or (self.model is None) != (self.data is None):
            raise ValueError("name either a workload, or a model and its data")
        return self

    def located(self, folder: Path) -> PyTorchTarget:
        """The same target with relative paths of ``.py`` and ``.npz`` files taken from ``folder``."""
        changed = {}
        for field in ("model", "data"):
            path, colon, function = (getattr(self, field) or "").partition(":")
            if path.endswith((".py", ".npz")):
                changed[field] = f"{(folder / path).resolve()}{colon}{function}"
        return self.model_copy(update=changed)

    def open(self, resources: Resources) -> Target:
        """Import PyTorch, build the model and load the data."""
        from saboteur.levels.software.target import SoftwareTarget

        return SoftwareTarget.from_spec(self, resources)
