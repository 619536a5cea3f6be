"""Extension points: built-in and third-party parts are found by the same road.

A part (target, fault model, criterion) is a frozen pydantic model with a ``kind``. It is found by its kind
through the entry-point group of its family, or by ``package.module:Class`` without any registration.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, SerializeAsAny, ValidationInfo, WrapValidator
from pydantic_core import CoreSchema, PydanticCustomError

from saboteur.errors import SaboteurError, near

_PATH_PATTERN = r"^[\w.]+:[\w.]+$"


class Part(BaseModel):
    """A frozen, strictly read piece of a campaign; ``kind`` says which."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    group: ClassVar[str]
    kind: str


_Part = TypeVar("_Part", bound=Part)


def described(part: Part) -> str:
    """How tables call a part: its kind and the settings that differ from the defaults, ``bit_flip(count=2)``."""
    settings = part.model_dump(exclude={"kind"}, exclude_defaults=True)
    return part.kind + (f"({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else "")


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """The entry points of one group by kind."""
    return {point.name: point for point in entry_points(group=group)}


def resolve(group: str, kind: str) -> type[Part]:
    """The class of ``kind``: a registered name, or ``package.module:Class``.

    Raises:
        SaboteurError: when nothing of that kind exists (with the near names), it cannot be imported, or it is
            not a part of the group that can be made.
    """
    point = EntryPoint(kind, kind, group) if ":" in kind else registered(group).get(kind)
    if point is None:
        raise SaboteurError(f"kind: unknown {kind!r}{near(kind, registered(group))}")
    try:
        found = point.load()
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise SaboteurError(f"kind: cannot import {kind!r}: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Part) and getattr(found, "group", None) == group):
        raise SaboteurError(f"kind: {kind!r} is not a part of {group}")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise SaboteurError(f"kind: {kind!r} is abstract; a class that can be used defines {missing}")
    return found


def importable(base: type[_Part]) -> dict[str, type[_Part]]:
    """The registered parts of ``base``'s group by kind, without those of packages that are not installed in full."""
    found = {}
    for kind in sorted(registered(base.group)):
        with suppress(SaboteurError):
            part = resolve(base.group, kind)
            if issubclass(part, base):
                found[kind] = part
    return found


def extensible(base: type[Part]) -> Any:
    """The annotation of a field that takes any part of ``base``'s group, as an object, a mapping or a kind.

    Its JSON Schema lists every registered part.
    """

    def validate(value: Any, _handler: Any, info: ValidationInfo) -> Part:
        if isinstance(value, base):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise PydanticCustomError("kind", "must be a name or a mapping with a 'kind'")
        try:
            return resolve(base.group, value["kind"]).model_validate(value, context=info.context)
        except SaboteurError as error:
            raise PydanticCustomError("kind", "{reason}", {"reason": str(error)}) from error

    return Annotated[SerializeAsAny[base], WrapValidator(validate), _SchemaOfGroup(base)]


@dataclass(frozen=True)
class _SchemaOfGroup:
    base: type[Part]

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mappings, names = [], []
        known = importable(self.base)
        for kind in sorted(registered(self.base.group)):
            tag = {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
            part = known.get(kind)
            if part is None:
                mappings.append({"type": "object"} | tag)
                names.append(kind)
                continue
            mappings.append({"allOf": [handler(part.__pydantic_core_schema__), tag]})
            if not any(field.is_required() for field in part.model_fields.values()):
                names.append(kind)
        return {
            "anyOf": [
                *mappings,
                {
                    "type": "object",
                    "properties": {"kind": {"type": "string", "pattern": _PATH_PATTERN}},
                    "required": ["kind"],
                },
                {"type": "string", "enum": names},
                {"type": "string", "pattern": _PATH_PATTERN},
            ]
        }
