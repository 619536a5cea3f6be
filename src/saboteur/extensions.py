"""Extension points: built-in and third-party parts are found by the same road.

A part (target, fault model, criterion) is a frozen pydantic model with a ``kind``. It is found by its kind
through the entry-point group of its family, or by ``package.module:Class`` without any registration.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializeAsAny, WrapValidator
from pydantic_core import PydanticCustomError

from saboteur.errors import SaboteurError, near


class Part(BaseModel):
    """A frozen, strictly read piece of a campaign; ``kind`` says which."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    group: ClassVar[str]
    kind: str


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """The entry points of one group by kind."""
    return {point.name: point for point in entry_points(group=group)}


def resolve(group: str, kind: str) -> type[Part]:
    """The class of ``kind``: a registered name, or ``package.module:Class``.

    Raises:
        SaboteurError: when nothing of that kind exists, with the near names.
    """
    if ":" in kind:
        module, _, attribute = kind.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise SaboteurError(f"kind: cannot import {kind!r}: {error}") from error
    elif kind in registered(group):
        found = registered(group)[kind].load()
    else:
        raise SaboteurError(f"kind: unknown {kind!r}{near(kind, registered(group))}")
    if not (isinstance(found, type) and issubclass(found, Part) and found.group == group):
        raise SaboteurError(f"kind: {kind!r} is not a part of {group}")
    return found


def extensible(base: type[Part]) -> Any:
    """The annotation of a field that takes any part of ``base``'s group, as an object, a mapping or a kind."""

    def validate(value: Any, _handler: Any) -> Part:
        if isinstance(value, base):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise PydanticCustomError("kind", "must be a name or a mapping with a 'kind'")
        try:
            return resolve(base.group, value["kind"]).model_validate(value)
        except SaboteurError as error:
            raise PydanticCustomError("kind", "{reason}", {"reason": str(error)}) from error

    return Annotated[SerializeAsAny[base], WrapValidator(validate)]
