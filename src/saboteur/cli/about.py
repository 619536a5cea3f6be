"""Commands about Saboteur itself: list, schema, doctor."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from saboteur import __version__
from saboteur.cli.source import Json, example_names, read_campaign
from saboteur.cli.terminal import facts, number, percent, show, show_json, table
from saboteur.errors import SaboteurError, near

_GROUPS = {"targets": "saboteur.targets", "fault_models": "saboteur.fault_models", "criteria": "saboteur.criteria"}
_PACKAGES = ("numpy", "scipy", "pyarrow", "pydantic", "matplotlib", "ml_dtypes", "torch", "pyosys", "pylibfst")
_PROGRAMS = ("cc", "gcc", "clang", "yosys", "ghdl", "iverilog", "verilator")
"""What the hardware level uses where it is there; one of the compilers it needs."""


def list_parts(
    what: Annotated[
        str | None,
        typer.Argument(help="workloads, examples, targets, fault_models, criteria or formats; all if absent."),
    ] = None,
    json: Json = False,
) -> None:
    """List what a campaign can name, and which package each part comes from."""
    makers = {
        "workloads": _workloads,
        "examples": _examples,
        **{name: (lambda group=group: _parts(group)) for name, group in _GROUPS.items()},
        "formats": _formats,
    }
    if what is not None and what not in makers:
        raise typer.BadParameter(f"unknown {what!r}{near(what, makers)}", param_hint="WHAT")
    found = {name: make() for name, make in makers.items() if what in (None, name)}
    if json:
        return show_json(found)
    for name, rows in found.items():
        columns = list(rows[0]) if rows else ["name"]
        show(table(name.replace("_", " ").capitalize(), columns, ([row[c] for c in columns] for row in rows)))


def _workloads() -> list[dict[str, Any]]:
    from saboteur import workloads

    return [
        {"name": name, "accuracy": percent(record["accuracy"]), "description": record["description"]}
        for name in workloads.names()
        for record in [workloads.metadata(name)]
    ]


def _examples() -> list[dict[str, Any]]:
    return [
        {"name": name, "description": " ".join(read_campaign(name).description.split())} for name in example_names()
    ]


def _parts(group: str) -> list[dict[str, Any]]:
    from saboteur.extensions import registered, resolve

    rows = []
    for kind, point in sorted(registered(group).items()):
        try:
            found = resolve(group, kind)
            about = (found.__doc__ or "").strip().partition("\n")[0].replace("``", "")
        except SaboteurError as error:
            about = f"cannot be used: {error}"
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        rows.append({"name": kind, "description": about, "defined in": point.value, "from": origin})
    return rows


def _formats() -> list[dict[str, Any]]:
    from saboteur.faults.formats import AFFINE, FLOATING, number_format

    rows = [{"name": name, "bits": str(number_format(name).bits), "description": "floating point"} for name in FLOATING]
    rows += [
        {"name": name, "bits": str(number_format(name).bits), "description": "affine: scale and zero point"}
        for name in AFFINE
    ]
    rows.append(
        {"name": "Qm.n", "bits": "1 + m + n", "description": "fixed point, m integer and n fraction bits: Q5.10"}
    )
    rows.append({"name": "Wb_rbF", "bits": "W", "description": "fixed point of W bits, F of them fraction: 16b_rb10"})
    return rows


def schema() -> None:
    """Print the JSON Schema of campaign files, for editors and other tools."""
    from saboteur.campaign import Campaign

    show_json(Campaign.model_json_schema())


def doctor(
    folder: Annotated[Path, typer.Argument(help="Where results will lie.")] = Path(),
    json: Json = False,
) -> None:
    """Show versions, devices, threads and free disk: what a bug report needs."""
    if not folder.exists():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="FOLDER")
    disk = shutil.disk_usage(folder)
    found: dict[str, Any] = {
        "saboteur": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        "packages": {name: _installed(name) for name in _PACKAGES},
        "programs": {name: path for name in _PROGRAMS if (path := shutil.which(name))},
        "cuda": _cuda(),
        "disk_free_gb": round(disk.free / 1e9, 1),
    }
    if json:
        return show_json(found)
    packages = Text("\n").join(
        Text(f"{name} {installed}") if installed else Text(f"{name} is not installed", "yellow")
        for name, installed in found["packages"].items()
    )
    show(
        facts(
            [
                ("saboteur", found["saboteur"]),
                ("python", Text.assemble(found["python"], (f"  {found['executable']}", "dim"))),
                ("system", found["system"]),
                ("packages", packages),
                ("programs", ", ".join(found["programs"]) or "none"),
                ("cpus", number(found["cpus"])),
                ("thread settings", ", ".join(f"{k}={v}" for k, v in found["threads"].items()) or "none"),
                ("cuda", found["cuda"]),
                ("free disk", f"{found['disk_free_gb']:,} GB in {folder.resolve()}"),
            ]
        )
    )


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda() -> str:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        return f"unknown: {error}"
    if not torch.cuda.is_available():
        return "none"
    return ", ".join(
        f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB)"
        for i in range(torch.cuda.device_count())
    )
