"""Functions of the user's own that a campaign file names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from saboteur.errors import TargetError, near


def call(field: str, name: str, alternative: str = "") -> Any:
    """What the function called ``package.module:function`` or ``path/to/file.py:function`` returns.

    Args:
        field: of the campaign file, for messages.
        name: of the function.
        alternative: what else the field takes, for messages, such as "an .npz file".

    Raises:
        TargetError: when there is no such function, or it fails.
    """
    source, _, function = name.rpartition(":")
    if not source:
        forms = ["'package.module:function'", "'path/to/file.py:function'", *filter(None, [alternative])]
        raise TargetError(f"{field}: {name!r} must be {', '.join(forms[:-1])} or {forms[-1]}")
    if source.endswith(".py") and not Path(source).is_file():
        raise TargetError(f"{field}: there is no file {source}")
    try:
        module = _of_file(Path(source)) if source.endswith(".py") else importlib.import_module(source)
    except Exception as error:  # whatever a foreign module raises when it is imported
        raise TargetError(f"{field}: cannot import {source!r}: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise TargetError(f"{field}: {source} has no function {function!r}{near(function, functions)}")
    try:
        return found()
    except Exception as error:
        raise TargetError(f"{field}: {name} failed: {type(error).__name__}: {error}") from error


def _of_file(path: Path) -> ModuleType:
    name = f"saboteur_user_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = ModuleSpec(name, loader, origin=str(path))
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module
