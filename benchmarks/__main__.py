"""``python -m benchmarks [NAME …] [--json FILE] [--full]``: measures, and prints a table.

A benchmark is a public function of a module of this package, called ``module.function``; it takes ``full`` and
returns rows with exactly the keys benchmark, quantity, value, unit, baseline and ratio. Value and baseline were
measured in the same run; the ratio is value / baseline.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

Row = dict[str, object]


def names() -> list[str]:
    """All benchmarks."""
    import benchmarks

    modules = [part.name for part in pkgutil.iter_modules(benchmarks.__path__) if not part.name.startswith("_")]
    return [f"{module}.{function}" for module in modules for function in _functions(module)]


def _functions(module: str) -> dict[str, Callable[[bool], list[Row]]]:
    loaded = importlib.import_module(f"benchmarks.{module}")
    return {
        name: function
        for name, function in vars(loaded).items()
        if inspect.isfunction(function) and function.__module__ == loaded.__name__ and not name.startswith("_")
    }


def main() -> int:
    """Run the benchmarks that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Saboteur against the plain way.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="module or module.function; all if absent")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file as well")
    parser.add_argument("--full", action="store_true", help="larger runs, which may take longer than two minutes")
    arguments = parser.parse_args()
    known = names()
    chosen = [name for name in known if not arguments.names or {name, name.split(".")[0]} & set(arguments.names)]
    unknown = [name for name in arguments.names if not any(name in (one, one.split(".")[0]) for one in known)]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(known)}")
    rows: list[Row] = []
    for name in chosen:
        module, function = name.split(".")
        for row in _functions(module)[function](arguments.full):
            rows.append(row)
            _show(row)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


def _show(row: Row) -> None:
    baseline = "" if row["baseline"] is None else f"baseline {row['baseline']:.4g}  ratio {row['ratio']:.4g}"
    print(f"{row['benchmark']:26} {row['quantity']:64} {row['value']:12.5g} {row['unit']:16} {baseline}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
