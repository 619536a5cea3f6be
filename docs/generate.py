"""Writes the pages that must agree with the code from the code: ``python docs/generate.py``.

The campaign file from the pydantic models, the command line from its commands, the glossary and the formulas
from what the report itself prints. Sphinx runs this before it reads the pages.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from saboteur.campaign import Campaign, Exhaustive, Fixed, Listed, Requirement, Resources, Statistical, Stopping
from saboteur.cli import app
from saboteur.extensions import Part, registered, resolve
from saboteur.report import FORMULAS, TERMS

PAGES = Path(__file__).parent / "_generated"


_SECTIONS = ("target", "faults", "model", "sampling", "criteria", "requirement", "stopping", "resources")
"""Keys that have a section of their own on the page of the campaign file."""


def write_all() -> None:
    """Write every generated page."""
    PAGES.mkdir(exist_ok=True)
    for name, lines in {
        "campaign-file.md": campaign_file(),
        "command-line.md": command_line(),
        "terms.md": terms(),
        "formulas.md": formulas(),
    }.items():
        text = "\n".join(lines) + "\n"
        path = PAGES / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# -- the campaign file ---------------------------------------------------------------------------------------


def campaign_file() -> Iterator[str]:
    """Every field that a campaign file can have."""
    yield "# The campaign file"
    yield ""
    yield (
        "A campaign is one YAML 1.2 file. This page is generated from the models that read it; `saboteur schema` "
        "prints the same as a JSON Schema, with which editors complete and check the file. A key that is not listed "
        "here, or that appears twice, is an error, not a warning. Relative paths are taken from the file's folder."
    )
    yield from _model("The whole file", Campaign)
    yield from ["", "(target)=", "## `target`: what is assessed", ""]
    yield "A mapping with a `kind`, which says what else it takes."
    yield from _parts("saboteur.targets")
    yield from ["", "(faults)=", "## `faults`: what goes wrong, and where", ""]
    yield (
        "One mapping, or a list of them: together they are the population. The target decides what a fault can say; "
        "`model` is the name of a fault model, or a mapping with its `kind` and settings."
    )
    for kind in sorted(registered("saboteur.targets")):
        spec = resolve("saboteur.targets", kind).fault_spec
        yield from _model(f"A fault in a `{kind}` target", spec, level=3)
    yield from ["", "(model)=", "## `model`: fault models", ""]
    yield "A name where it needs no settings (`bit_flip`), else a mapping: `{kind: stuck_at, value: 1}`."
    yield from _parts("saboteur.fault_models")
    yield from ["", "(sampling)=", "## `sampling`: which faults, and how many"]
    for part in (Statistical, Fixed, Exhaustive, Listed):
        yield from _model(f"`kind: {part.model_fields['kind'].default}`", part, level=3)
    yield from ["", "(criteria)=", "## `criteria`: what counts as wrong", ""]
    yield "A list of names or mappings. In tables, and in `requirement`, a criterion goes by its name and settings."
    yield from _parts("saboteur.criteria")
    yield from ["", "(requirement)="]
    yield from _model("`requirement`: what must hold", Requirement)
    yield from ["", "(stopping)="]
    yield from _model("`stopping`: when to stop early", Stopping)
    yield from ["", "(resources)="]
    yield from _model("`resources`: how it runs", Resources)


def _parts(group: str) -> Iterator[str]:
    for kind in sorted(registered(group)):
        yield from _model(f"`{kind}`", resolve(group, kind), level=3)


def _model(title: str, model: type[BaseModel], level: int = 2) -> Iterator[str]:
    yield from ["", f"{'#' * level} {title}", "", _markdown(model.__doc__ or ""), ""]
    fields = {name: field for name, field in model.model_fields.items() if name != "kind"}
    if not fields:
        yield "No settings."
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        kind = _cell(_type(field))
        meaning = f"[see below](#{name})" if "mapping" in kind and name in _SECTIONS else _cell(field.description or "")
        yield f"| `{name}` | {kind} | {_cell(_default(field))} | {meaning} |"


def _type(field: FieldInfo) -> str:
    text = _annotation(field.annotation)
    limits = _limits(field.metadata)
    return text + (f", {limits}" if limits else "")


def _annotation(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        limits = _limits(metadata)
        return _annotation(inner) + (f" {limits}" if limits else "")
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_annotation(p) for p in get_args(annotation) if p is not type(None)))
    if get_origin(annotation) is tuple:
        inner = list(dict.fromkeys(_annotation(part) for part in get_args(annotation) if part is not Ellipsis))
        plurals = (
            part.replace("name or mapping", "names or mappings").replace("whole number", "whole numbers")
            for part in inner
        )
        return "list of " + " or ".join(f"{part}s" if part in ("mapping", "number") else part for part in plurals)
    if get_origin(annotation) is dict:
        return f"{_annotation(get_args(annotation)[1])}, by name"
    names = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", Path: "path"}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "name or mapping" if issubclass(annotation, Part) else "mapping"
    return names[annotation]


def _limits(metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    found = []
    for item in metadata:
        for inner in getattr(item, "metadata", [item]):
            found += [f"{sign} {getattr(inner, name)}" for name, sign in signs.items() if hasattr(inner, name)]
            if hasattr(inner, "min_length"):
                found.append("not empty")
    return ", ".join(found)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "–"
    if isinstance(value, BaseModel):
        return f"`{getattr(value, 'kind', 'all defaults')}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{getattr(item, 'name', item)}`" for item in value) or "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


# -- the command line ----------------------------------------------------------------------------------------


def command_line() -> Iterator[str]:
    """Every command with its arguments and options."""
    yield from ["# The command line", ""]
    yield (
        "Data go to stdout, progress and messages to stderr; `--json` gives the data as one JSON document. This page "
        "is generated from the commands."
    )
    yield from ["", "| exit code | meaning |", "|---|---|"]
    yield "| 0 | done; with `--strict`, the requirement is met |"
    yield "| 1 | failure; with `--strict`, also a requirement that is not met or still open |"
    yield "| 2 | wrong usage |"
    yield "| 3 | stopped early (Ctrl-C); what was finished is kept, the same command goes on |"
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = [_metavar(p) for p in arguments]
        yield from ["", f"## `saboteur {name}`", "", _markdown(command.help or ""), ""]
        yield from ["```", " ".join(["saboteur", name, *usage, *(["[OPTIONS]"] if options else [])]), "```"]
        if arguments or options:
            yield from ["", "| | meaning | default | environment variable |", "|---|---|---|---|"]
        for p in arguments:
            yield f"| `{_cell(_metavar(p))}` | {_cell(p.help or '')} | {_given(p)} | |"
        for p in options:
            flags = ", ".join(f"`{flag}`" for flag in (*p.opts, *p.secondary_opts))
            variable = f"`{p.envvar}`" if p.envvar else ""
            yield f"| {flags} | {_cell(p.help or '')} | {_given(p)} | {variable} |"


def _metavar(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def _given(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or callable(value):
        return "–"
    return "on" if value is True else f"`{value}`"


# -- terms and formulas --------------------------------------------------------------------------------------


def terms() -> Iterator[str]:
    """The glossary of the report."""
    for term in TERMS:
        yield from [f"**{term.term}**", f": {term.meaning} *{term.source}*", ""]


def formulas() -> Iterator[str]:
    """The formulas of the report."""
    yield from ["| number | how | source |", "|---|---|---|"]
    for formula in FORMULAS:
        yield f"| {_cell(formula.quantity)} | {_cell(formula.formula)} | {_cell(formula.source)} |"


def _markdown(docstring: str) -> str:
    text = inspect.cleandoc(docstring).partition("\nAttributes:")[0].partition("\nArgs:")[0]
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").strip()


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    write_all()
