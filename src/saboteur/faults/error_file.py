"""What all parts of the file of an error model have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from saboteur.faults.error_values import CHANGE_NAME

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
ChangeName = Annotated[str, Field(pattern=CHANGE_NAME)]


class Frozen(BaseModel):
    """A part of the file; unknown names and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
