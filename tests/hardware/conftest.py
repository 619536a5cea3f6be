"""The tests of the hardware level need Yosys and a C compiler."""

from __future__ import annotations

import pytest

from saboteur.errors import TargetError
from saboteur.levels.hardware import compile, importing


@pytest.fixture(autouse=True, scope="session")
def tools() -> None:
    """Skip where a tool is missing, and say which."""
    try:
        importing.yosys()
        compile.compiler()
    except TargetError as error:
        pytest.skip(str(error))
