"""The cache of compiled designs stays small."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saboteur.levels.hardware import compile


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    for age, name in enumerate(["newest", "newer", "old", "oldest"]):
        (tmp_path / f"{name}.so").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.so", (1000 - age, 1000 - age))
    (tmp_path / "design.c").write_text("kept")
    compile._prune(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["design.c", "newer.so", "newest.so"]
    compile._prune(tmp_path, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["design.c", "newest.so"]


def test_use_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is loaded again is younger than one that was compiled since, and is not compiled again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile.load("int first(void) { return 1; }")
    (path,) = (tmp_path / "saboteur" / "hardware").glob("*.so")
    os.utime(path, (1000, 1000))
    content = path.read_bytes()
    compile.load("int second(void) { return 2; }")
    assert compile.load("int first(void) { return 1; }").first() == 1
    assert path.stat().st_mtime > 1000 and path.read_bytes() == content
    other = next(p for p in path.parent.glob("*.so") if p != path)
    os.utime(other, (2000, 2000))
    compile._prune(path.parent, len(content) + 1)
    assert [p.name for p in path.parent.glob("*.so")] == [path.name]
