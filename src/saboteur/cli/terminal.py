"""What the commands share: the two streams, tables, numbers as people read them, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, SupportsFloat

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pyarrow as pa

    from saboteur.statistics import Difference, Estimate

_PIPED_WIDTH = 200

messages = Console(stderr=True, highlight=False)


def data() -> Console:
    """The console of stdout; when it is no terminal, wide enough that tables are not cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def say(text: str) -> None:
    """Write a message to stderr."""
    messages.print(text, soft_wrap=True)


def show(*parts: object) -> None:
    """Write to stdout, without breaking lines."""
    console = data()
    for position, part in enumerate(parts):
        if position and isinstance(part, Table) and part.title:
            console.print()
        console.print(part, soft_wrap=isinstance(part, str))


def show_json(value: Any) -> None:
    """Write one JSON document to stdout; NaN becomes null."""
    print(json.dumps(_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; columns whose name ends in ``>`` are numbers, set flush right."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        numeric = name.endswith(">")
        made.add_column(name.removesuffix(">"), justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        made.add_row(*map(_cell, row))
    return made


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one pair a line."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, _cell(value))
    return made


def _cell(value: object) -> Text:
    """Text as it stands: only :class:`rich.text.Text` carries a style, brackets in strings are brackets."""
    if isinstance(value, Text):
        return value
    return Text(value if isinstance(value, str) else number(value))


def number(value: object) -> str:
    """A number with thousands apart; other things as they are; nothing for what is absent."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if hasattr(value, "__index__") else str(value)


def percent(rate: float) -> str:
    """A rate in per cent with as many digits as it needs; never 0 for what is not."""
    if math.isnan(rate):
        return "–"
    hundredth = 100 * rate
    if hundredth == 0 or hundredth >= 0.1:
        return f"{hundredth:.2f} %"
    return f"{hundredth:.2g} %"


def signed_percent(difference: SupportsFloat) -> str:
    """A difference of rates in per cent, with its sign."""
    return f"{100 * float(difference):+.3f} %"


def signed_interval(difference: Difference) -> str:
    """Bounds of a difference of rates."""
    return f"{signed_percent(difference.low)} … {signed_percent(difference.high)}"


def interval(estimate: Estimate) -> str:
    """Bounds of an estimate."""
    return f"{percent(estimate.low)} … {percent(estimate.high)}"


def duration(seconds: float) -> str:
    """A duration in the two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def arrow_table(title: str | None, rows: pa.Table, columns: Sequence[str]) -> Table:
    """Some columns of an Arrow table."""
    numeric = {
        name for name in columns if str(rows.schema.field(name).type).startswith(("int", "uint", "float", "dou"))
    }
    heads = [f"{name.replace('_', ' ')}>" if name in numeric else name.replace("_", " ") for name in columns]
    return table(title, heads, zip(*(rows[name].to_pylist() for name in columns), strict=True))


def _jsonable(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
