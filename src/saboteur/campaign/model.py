"""The campaign: one assessment as a frozen value, read from YAML or built in Python."""

from __future__ import annotations

import hashlib
import json
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import CoreSchema
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from saboteur.campaign.target import AnyTargetSpec, FaultSpec, Resources, TargetSpec
from saboteur.errors import CampaignError
from saboteur.extensions import importable
from saboteur.faults.space import StratifyBy
from saboteur.outcomes.criteria import STANDARD, AnyCriterion, Criterion, FaultCriterion

ID_VERSION = 1
"""Raised whenever the meaning of a trial number, a fault or an observation changes."""

Unit = Literal["faults", "inferences"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Statistical(_Frozen):
    """As many faults as a margin of error takes (Leveugle et al., DATE 2009), drawn without replacement.

    The margin is meant for the whole population (``margin_for: total``; the sample is shared among strata
    in proportion to their sizes) or for each stratum by itself (``margin_for: stratum``). ``prior`` is the
    rate assumed for planning: a number, or ``data_aware`` for one per bit from how far a flip moves the
    stored values (Ruospo et al., DATE 2023). ``refine`` starts from a pilot and adds faults until the
    measured rates meet the margin (iterative statistical fault injection, Ruospo et al., IEEE TC 2025).
    """

    kind: Literal["statistical"] = "statistical"
    stratify: StratifyBy = "network"
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.01
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    margin_for: Literal["total", "stratum"] = "total"
    prior: Annotated[float, Field(gt=0, lt=1)] | Literal["data_aware"] = 0.5
    quantile: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="normal quantile to plan with, such as the 2.58 of published 99 % plans; exact if absent",
    )
    refine: bool = False
    pilot: Annotated[int, Field(ge=2)] = Field(default=100, description="faults a stratum in the first round of refine")


class Fixed(_Frozen):
    """A given number of faults, shared among strata in proportion to their sizes or the same for each."""

    kind: Literal["fixed"] = "fixed"
    stratify: StratifyBy = "network"
    n: Annotated[int, Field(ge=1)]
    n_for: Literal["total", "stratum"] = "total"
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99


class Exhaustive(_Frozen):
    """Every fault of the space, in a random order, so that a part is a sample of the whole."""

    kind: Literal["exhaustive"] = "exhaustive"
    stratify: StratifyBy = "layer"
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99


class Listed(_Frozen):
    """The faults of a list.

    ``represents`` says what the estimates speak of: the listed faults only, or the whole space, from which
    the list then must be a simple random sample.
    """

    kind: Literal["list"] = "list"
    path: Path
    first: Annotated[int, Field(ge=1)] | None = Field(default=None, description="use only the first so many trials")
    represents: Literal["list", "space"] = "list"
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99


Sampling = Annotated[Statistical | Fixed | Exhaustive | Listed, Field(discriminator="kind")]


class Requirement(_Frozen):
    """What must hold: the SDC rate under ``criterion`` is at most ``at_most``, at the sampling's confidence."""

    criterion: str
    at_most: Annotated[float, Field(ge=0, le=1)]
    unit: Unit = "faults"


class Stopping(_Frozen):
    """Stop early when the estimate is tight enough, looked at after every tenth of the plan.

    The interval that is looked at is a confidence sequence, which holds at all looks together.
    """

    criterion: str
    half_width: Annotated[float, Field(gt=0, lt=1)]
    relative: bool = Field(default=False, description="half_width is a share of the estimate")


class Campaign(_Frozen):
    """One assessment: a target, faults, how many of them, and what counts as wrong."""

    saboteur: Literal[1] = Field(default=1, description="version of the file format")
    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    target: AnyTargetSpec
    faults: Annotated[tuple[SerializeAsAny[FaultSpec], ...], Field(min_length=1)]
    simultaneous: Annotated[int, Field(ge=1)] = Field(default=1, description="faults that act together in a trial")
    bit_error_rate: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="instead: each fault of a stratum is present with this probability, in each trial"
    )
    sampling: Sampling = Statistical()
    inputs_per_fault: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="judge each fault on so many randomly drawn inputs instead of on all"
    )
    criteria: Annotated[tuple[AnyCriterion, ...], Field(min_length=1)] = STANDARD
    requirement: Requirement | None = None
    allowed_wrong_rate: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-3,
        description="where inferences are predicted and not run: the requirement is not met unless their audit shows, "
        "at the sampling's confidence, that at most this share of the predictions is wrong",
    )
    stopping: Stopping | None = None
    keep_outputs: bool = Field(default=False, description="keep raw outputs, so that any criterion can re-score them")
    seed: Annotated[int, Field(ge=0)] = 0
    resources: Resources = Resources()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Of faults, one may stand without a list; which fields they take depends on the target's kind."""

        def one_or_many(fault: dict[str, Any]) -> dict[str, Any]:
            return {"anyOf": [fault, {"type": "array", "items": fault, "minItems": 1}]}

        schema = handler.resolve_ref_schema(handler(core_schema))
        common = handler.resolve_ref_schema(handler(FaultSpec.__pydantic_core_schema__))
        open_to_others = {name: value for name, value in common.items() if name != "additionalProperties"}
        schema["properties"]["faults"] = one_or_many(open_to_others)
        schema["allOf"] = [
            {
                "if": {
                    "properties": {
                        "target": {
                            "anyOf": [
                                {"const": kind},
                                {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]},
                            ]
                        }
                    }
                },
                "then": {"properties": {"faults": one_or_many(handler(spec.fault_spec.__pydantic_core_schema__))}},
            }
            for kind, spec in importable(TargetSpec).items()
        ]
        return schema

    @model_validator(mode="before")
    @classmethod
    def _faults_of_the_target(cls, data: Any, info: ValidationInfo) -> Any:
        """Read each fault as the target's own kind of fault."""
        if not isinstance(data, dict) or "target" not in data or "faults" not in data:
            return data
        target = _TargetOnly.model_validate({"target": data["target"]}).target
        faults = data["faults"]
        if isinstance(faults, (dict, FaultSpec)):
            faults = [faults]
        if not isinstance(faults, (list, tuple)):
            return data
        read = _placed(faults, target.fault_spec, info.context)
        return data | {"target": target, "faults": read}

    @model_validator(mode="after")
    def _consistent(self) -> Campaign:
        names = [criterion.name for criterion in self.criteria]
        if len(set(names)) != len(names):
            raise ValueError(f"criteria: {max(names, key=names.count)!r} is listed twice")
        for field in ("requirement", "stopping"):
            asked = getattr(self, field)
            if asked is not None and asked.criterion not in names:
                raise ValueError(f"{field}.criterion: {asked.criterion!r} is not among the criteria {', '.join(names)}")
        requirement = self.requirement
        if requirement is not None and requirement.unit == "inferences":
            judge = self.criterion(requirement.criterion)
            if isinstance(judge, FaultCriterion):
                raise ValueError(f"requirement.unit: {requirement.criterion} judges faults, not inferences; use faults")
        sampling = self.sampling
        if self.stopping is not None and (
            isinstance(sampling, Listed)
            or (isinstance(sampling, Statistical) and (sampling.refine or sampling.margin_for == "stratum"))
            or (isinstance(sampling, Fixed) and sampling.n_for == "stratum")
        ):
            raise ValueError(
                "stopping: the interval that is looked at holds for samples shared among strata in proportion; use "
                "margin_for: total or n_for: total, without refine, or no stopping"
            )
        if self.bit_error_rate is not None and self.simultaneous != 1:
            raise ValueError("bit_error_rate and simultaneous exclude each other")
        multiple = self.bit_error_rate is not None or self.simultaneous != 1
        if multiple and self.sampling.kind in ("exhaustive", "list"):
            raise ValueError(f"sampling.kind: {self.sampling.kind} campaigns take their faults one by one or as listed")
        return self

    @property
    def multiple(self) -> bool:
        """Whether one trial holds several faults by draw."""
        return self.bit_error_rate is not None or self.simultaneous != 1

    @property
    def question(self) -> Criterion:
        """The criterion the campaign is first of all about: the requirement's, or the first one."""
        return self.criterion(self.requirement.criterion) if self.requirement else self.criteria[0]

    def criterion(self, name: str) -> Criterion:
        """The criterion of that name.

        Raises:
            CampaignError: when the campaign has none of that name.
        """
        for criterion in self.criteria:
            if criterion.name == name:
                return criterion
        raise CampaignError(f"criterion: {name!r} is not among {', '.join(c.name for c in self.criteria)}")

    def identity(self, fingerprint: str, listed: str = "") -> str:
        """The id: a versioned hash of all that decides what trial *i* of a stratum is and what it shows.

        Not in it: names, how many trials are planned, the requirement, the allowed wrong rate, stopping, resources.

        Args:
            fingerprint: the opened target's.
            listed: a hash of the fault list, where there is one.
        """
        sampling = self.sampling.model_dump(mode="json", include={"kind", "stratify"})
        if sampling["kind"] != "list":
            sampling["kind"] = "drawn"
        decisive = self.model_dump(
            mode="json",
            include={
                "faults",
                "simultaneous",
                "bit_error_rate",
                "inputs_per_fault",
                "criteria",
                "keep_outputs",
                "seed",
            },
        )
        text = json.dumps([ID_VERSION, fingerprint, listed, sampling, decisive], sort_keys=True)
        return f"c{ID_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @classmethod
    def from_yaml(cls, source: Path | str) -> Campaign:
        """Read a campaign file, or YAML text with at least one line break.

        Relative paths in it are taken from the file's folder.

        Raises:
            CampaignError: for anything wrong with it, naming the place and what would be right.
        """
        text, folder, label = str(source), Path(), "campaign"
        if "\n" not in text:
            path = Path(source)
            try:
                text, folder, label = path.read_text(encoding="utf-8"), path.parent, str(path)
            except (OSError, UnicodeDecodeError) as error:
                raise CampaignError(f"campaign file: cannot read {path}: {error}") from error
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 2)
        try:
            data = yaml.load(text)
        except DuplicateKeyError as error:
            raise CampaignError(f"{label}: {error.problem} {error.problem_mark}".replace("\n", " ")) from error
        except YAMLError as error:
            raise CampaignError(f"{label}: not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise CampaignError(f"{label}: must be a mapping with name, target and faults")
        campaign = cls.read(data, label, folder)
        changed: dict[str, Any] = {"target": campaign.target.located(folder)}
        if isinstance(campaign.sampling, Listed):
            path = (folder / campaign.sampling.path).resolve()
            changed["sampling"] = campaign.sampling.model_copy(update={"path": path})
        return campaign.model_copy(update=changed)

    @classmethod
    def read(cls, data: dict[str, Any], label: str = "campaign", folder: Path = Path()) -> Campaign:
        """Validate a plain mapping.

        Args:
            data: the mapping.
            label: what error messages call it.
            folder: from which fault models take relative paths of files.

        Raises:
            CampaignError: listing every field that is wrong.
        """
        try:
            return cls.model_validate(data, context={"folder": folder})
        except ValidationError as error:
            lines = []
            for problem in error.errors(include_url=False):
                place = ".".join(str(part) for part in problem["loc"]) or "campaign"
                given = problem.get("input")
                shown = "" if isinstance(given, (dict, BaseModel)) else f" (given: {given!r})"
                lines.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}{shown}")
            raise CampaignError(f"{label}: " + "; ".join(lines)) from error

    def to_yaml(self) -> str:
        """The campaign as a file that reads back as the same value."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        stream = StringIO()
        yaml.dump(self.model_dump(mode="json", exclude_none=True), stream)
        return stream.getvalue()


class _TargetOnly(BaseModel):
    target: AnyTargetSpec


def _placed(faults: list[Any] | tuple[Any, ...], spec: type[FaultSpec], context: Any) -> tuple[FaultSpec, ...]:
    """Validate faults so that an error names its place as ``faults.0.where``."""

    class Faults(BaseModel):
        faults: tuple[spec, ...]  # type: ignore[valid-type]

    return Faults.model_validate({"faults": list(faults)}, context=context).faults
