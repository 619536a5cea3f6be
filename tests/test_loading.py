from __future__ import annotations

from pathlib import Path

import pytest

from saboteur.errors import TargetError
from saboteur.loading import call


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Answer:\n    value: int\n"
        "def answer():\n    return Answer(42)\n"
        "def fails():\n    raise OSError('no disk')\n"
        "number = 3\n"
    )
    (tmp_path / "loading_test_module.py").write_text("def answer():\n    return 43\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "cut.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_functions_of_files_and_of_modules(folder: Path) -> None:
    assert call("model", "mine.py:answer").value == 42
    assert call("model", f"{folder}/mine.py:answer").value == 42
    assert call("model", "loading_test_module:answer") == 43


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("answer", "data: 'answer' must be 'package.module:function' or 'path/to/file.py:function'$"),
        ("absent.py:answer", "data: there is no file absent.py"),
        ("no.such.module:f", "data: cannot import 'no.such.module': ModuleNotFoundError: No module named 'no'"),
        ("broken.py:f", "data: cannot import 'broken.py': ZeroDivisionError: division by zero"),
        ("broken:f", "data: cannot import 'broken': ZeroDivisionError: division by zero"),
        ("cut.py:f", "data: cannot import 'cut.py': SyntaxError: invalid syntax"),
        ("mine.py:anwser", r"data: mine.py has no function 'anwser'; did you mean 'answer'"),
        ("mine.py:number", "data: mine.py has no function 'number'"),
        ("mine.py:fails", "data: mine.py:fails failed: OSError: no disk"),
    ],
)
def test_what_cannot_be_called(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        call("data", name)


def test_what_else_a_field_takes() -> None:
    with pytest.raises(TargetError, match=r"'package\.module:function', 'path/to/file\.py:function' or an \.npz file$"):
        call("data", "numbers.csv", "an .npz file")
