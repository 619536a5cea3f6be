"""Fault lists as tables: CSV and Parquet in and out, and the format in which published lists come.

The columns of a list: ``trial`` (rows of one trial act together; absent means one trial a row), ``site``,
``index`` (a tuple as text, ``(3, 0, 2, 1)``), ``step`` (0 if absent), ``model`` and ``duration`` (needed where
one site has several), and ``bit`` or ``variant``. Published lists (the benchmark campaigns of Politecnico di
Torino) have ``Injection, Layer, TensorIndex, Bit`` and mean flips of that bit of the layer's weight.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saboteur.errors import FaultError, near
from saboteur.faults import draws
from saboteur.faults.space import Faults, FaultSpace, Region

_INDEX = r"^\s*[(\[]?\s*(\d{1,18}(\s*,\s*\d{1,18})*\s*,?)?\s*[)\]]?\s*$"


def to_table(space: FaultSpace, faults: Faults) -> pa.Table:
    """The faults as a readable table, a row for each single fault."""

    def column(text: Callable[[Region], str]) -> pa.Array:
        texts = pa.array([text(region) for region in space.regions], pa.string())
        return texts.take(pa.array(faults.region))

    return pa.table(
        {
            "trial": faults.trial,
            "site": column(lambda region: region.site),
            "layer": column(lambda region: region.layer),
            "component": column(lambda region: region.component),
            "index": _index_text(space, faults),
            "step": faults.step,
            "model": column(lambda region: region.model.name),
            "duration": column(lambda region: region.duration),
            "bit": space.bits(faults.region, faults.variant),
            "variant": faults.variant,
        }
    )


def _index_text(space: FaultSpace, faults: Faults) -> pa.Array:
    text = np.empty(len(faults.region), object)
    for i in np.unique(faults.region):
        rows, shape = np.flatnonzero(faults.region == i), space.regions[i].shape
        if not shape:
            text[rows] = "()"
            continue
        axes = [axis.tolist() for axis in np.unravel_index(faults.element[rows], shape)]
        pattern = f"({', '.join(['{}'] * len(axes))})"
        text[rows] = [pattern.format(*position) for position in zip(*axes, strict=True)]
    return pa.array(text, pa.string())


def from_table(space: FaultSpace, table: pa.Table, key: int) -> Faults:
    """The faults of a list.

    Args:
        space: the population that the list draws from.
        table: columns as the module describes them.
        key: the stream key from which each trial's own key is drawn.

    Raises:
        FaultError: when a column is missing, or a site, index, bit or model does not exist in the space;
            the message names the row.
    """
    if {"Layer", "TensorIndex", "Bit"} <= set(table.column_names):
        layers = _texts(table, "Layer")
        site = pc.call_function("binary_join_element_wise", [layers, pa.scalar("weight"), pa.scalar(".")])
        table = pa.table({"site": site, "index": table["TensorIndex"], "bit": table["Bit"]})
    rows = table.num_rows
    region = _regions(space, table)
    element = _elements(space, region, _texts(table, "index"))
    variant = _variants(space, region, table)
    step = _integers(table, "step", np.zeros(rows, np.int64))
    steps = np.array([r.steps for r in space.regions])[region]
    _refuse((step < 0) | (step >= steps), "step", lambda row: f"{step[row]} is outside 0 .. {steps[row] - 1}")
    trial_name = _integers(table, "trial", np.arange(rows))
    order = np.argsort(trial_name, kind="stable")
    names, trial = np.unique(trial_name, return_inverse=True)
    return Faults(
        key=draws.words(key, np.arange(len(names))),
        trial=trial[order].astype(np.int64),
        region=region[order],
        element=element[order],
        step=step[order].astype(np.int32),
        variant=variant[order],
    )


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise FaultError(f"fault list: no column {name!r}; it has {', '.join(table.column_names)}")
    column = table[name].combine_chunks()
    _refuse(column.is_null().to_numpy(zero_copy_only=False), name, lambda row: "is empty")
    return column


def _texts(table: pa.Table, name: str) -> pa.Array:
    try:
        return _column(table, name).cast(pa.string())
    except pa.ArrowException as error:
        raise FaultError(f"fault list: column {name!r} must hold text: {error}") from error


def _integers(table: pa.Table, name: str, default: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    if name not in table.column_names and default is not None:
        return default
    try:
        return _column(table, name).cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        raise FaultError(f"fault list: column {name!r} must hold whole numbers: {error}") from error


def _refuse(bad: NDArray[np.bool_], name: str, reason: Callable[[int], str]) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise FaultError(f"fault list: row {row + 1}: {name} {reason(row)}")


def _regions(space: FaultSpace, table: pa.Table) -> NDArray[np.int32]:
    given = [name for name in ("site", "model", "duration") if name == "site" or name in table.column_names]
    columns = [_texts(table, name).dictionary_encode() for name in given]
    codes = np.stack([column.indices.to_numpy() for column in columns], axis=1)
    distinct, first_row, which = np.unique(codes, axis=0, return_index=True, return_inverse=True)
    texts = [column.dictionary.to_pylist() for column in columns]
    at_site: dict[str, list[int]] = {}
    for i, region in enumerate(space.regions):
        at_site.setdefault(region.site, []).append(i)
    found = [
        _region(
            space, at_site, {name: text[code] for name, text, code in zip(given, texts, entry, strict=True)}, row + 1
        )
        for entry, row in zip(distinct.tolist(), first_row.tolist(), strict=True)
    ]
    return np.array(found, np.int32)[which.reshape(-1)]


def _region(space: FaultSpace, at_site: dict[str, list[int]], wanted: dict[str, str], row: int) -> int:
    there = at_site.get(wanted["site"], [])
    if not there:
        nearest = near(wanted["site"], space.sites)
        raise FaultError(f"fault list: row {row}: site {wanted['site']!r} is not in the fault space{nearest}")
    found = there
    if "model" in wanted:
        found = [i for i in there if space.regions[i].model.name == wanted["model"]]
        found = found or [i for i in there if space.regions[i].model.kind == wanted["model"]]
    if "duration" in wanted:
        found = [i for i in found if space.regions[i].duration == wanted["duration"]]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(f"{space.regions[i].duration} {space.regions[i].model.name}" for i in there)
    asked = " ".join(wanted[name] for name in ("duration", "model") if name in wanted)
    raise FaultError(
        f"fault list: row {row}: "
        + (
            f"{wanted['site']} has several faults ({choices}); the list needs the columns 'model' and 'duration'"
            if found
            else f"{asked!r} is not a fault of {wanted['site']}, which has {choices}"
        )
    )


def _elements(space: FaultSpace, region: NDArray[np.int32], text: pa.Array) -> NDArray[np.int64]:
    def refuse(bad: NDArray[np.bool_]) -> None:
        _refuse(
            bad,
            "index",
            lambda row: (
                f"{text[row].as_py()!r} does not address {space.regions[region[row]].site} of shape "
                f"{space.regions[region[row]].shape}"
            ),
        )

    well_formed = pc.call_function("match_substring_regex", [text], pc.MatchSubstringOptions(_INDEX))
    refuse(~well_formed.to_numpy(zero_copy_only=False))
    trimmed = pc.call_function("utf8_trim", [text], pc.TrimOptions("()[], "))
    parts = pc.call_function("split_pattern", [trimmed], pc.SplitPatternOptions(","))
    numbers = pc.call_function("utf8_trim_whitespace", [parts.flatten()])
    scalar = pc.call_function("equal", [trimmed, pa.scalar("")]).to_numpy(zero_copy_only=False)
    lengths = np.where(scalar, 0, np.diff(parts.offsets.to_numpy()))
    starts = parts.offsets.to_numpy()[:-1]
    number = pc.call_function("if_else", [pc.call_function("equal", [numbers, pa.scalar("")]), pa.scalar("0"), numbers])
    number = number.cast(pa.int64()).to_numpy()
    refuse(lengths != np.array([len(r.shape) for r in space.regions])[region])
    element = np.zeros(len(region), np.int64)
    outside = np.zeros(len(region), np.bool_)
    for i in np.unique(region):
        shape, rows = space.regions[i].shape, np.flatnonzero(region == i)
        for axis, length in enumerate(shape):
            position = number[starts[rows] + axis]
            outside[rows] |= position >= length
            element[rows] = element[rows] * length + position
    refuse(outside)
    return element


def _variants(space: FaultSpace, region: NDArray[np.int32], table: pa.Table) -> NDArray[np.int64]:
    if "variant" in table.column_names:
        variant = _integers(table, "variant")
        limits = np.array([r.variants for r in space.regions])[region]
        _refuse(
            (variant < 0) | (variant >= limits),
            "variant",
            lambda row: f"{variant[row]} is outside 0 .. {limits[row] - 1}",
        )
        if "bit" in table.column_names:
            given, bits = _integers(table, "bit"), space.bits(region, variant)
            _refuse(
                given != bits, "bit", lambda row: f"{given[row]} contradicts variant {variant[row]}, bit {bits[row]}"
            )
        return variant
    if "bit" not in table.column_names:
        raise FaultError(f"fault list: no column 'bit' or 'variant'; it has {', '.join(table.column_names)}")
    bit = _integers(table, "bit")
    variant = np.empty(len(region), np.int64)
    matches = np.empty(len(region), np.int64)
    for i in np.unique(region):
        rows = np.flatnonzero(region == i)
        bits = space.regions[i].variant_bits
        variant[rows] = np.searchsorted(bits, bit[rows])
        matches[rows] = np.searchsorted(bits, bit[rows], side="right") - variant[rows]

    def reason(row: int) -> str:
        hit = space.regions[region[row]]
        if matches[row]:
            return f"{bit[row]} means {matches[row]} faults of {hit.model.name}; the list needs a column 'variant'"
        if hit.variant_bits[-1] < 0:
            return f"{bit[row]}, but {hit.model.name} acts on the value; the list needs a column 'variant'"
        bits = hit.variant_bits
        return f"{bit[row]} is not one that {hit.model.name} hits in {hit.format} (bits {bits[0]} .. {bits[-1]})"

    _refuse(matches != 1, "bit", reason)
    return variant


def read(path: Path | str) -> pa.Table:
    """A fault list from a ``.csv``, ``.csv.gz`` or ``.parquet`` file.

    Raises:
        FaultError: when the file is missing, of another kind or malformed.
    """
    path = Path(path)
    kind = _kind(path)
    try:
        if kind == ".parquet":
            return pq.read_table(path)
        with pa.input_stream(path) as stream:
            return pyarrow.csv.read_csv(stream)
    except (OSError, pa.ArrowException) as error:
        raise FaultError(f"fault list: cannot read {path}: {error}") from error


def write(table: pa.Table, path: Path | str) -> None:
    """Write a fault list as ``.csv``, ``.csv.gz`` or ``.parquet``, by its name.

    Raises:
        FaultError: when the name has another ending or the file cannot be written.
    """
    path = Path(path)
    kind = _kind(path)
    try:
        if kind == ".parquet":
            pq.write_table(table, path)
        else:
            with pa.output_stream(path) as stream:
                pyarrow.csv.write_csv(table, stream)
    except (OSError, pa.ArrowException) as error:
        raise FaultError(f"fault list: cannot write {path}: {error}") from error


def _kind(path: Path) -> str:
    for ending in (".parquet", ".csv", ".csv.gz"):
        if path.name.endswith(ending):
            return ending
    raise FaultError(f"fault list: {path} is neither .csv, .csv.gz nor .parquet")
