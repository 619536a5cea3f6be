"""Fault lists as tables: CSV and Parquet in and out, and the format in which published lists come.

The columns of a list: ``trial`` (rows of one trial act together; absent means one trial a row), ``site``,
``index`` (a tuple as text, ``(3, 0, 2, 1)``), ``step`` (0 if absent), ``model`` (needed where one site has
several), and ``bit`` or ``variant``. Published lists (the benchmark campaigns of Politecnico di Torino) have
``Injection, Layer, TensorIndex, Bit`` and mean flips of that bit of the layer's weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from saboteur.errors import FaultError, near
from saboteur.faults.space import Faults, FaultSpace


def to_table(space: FaultSpace, faults: Faults) -> pa.Table:
    """The faults as a readable table, a row for each single fault."""
    regions = space.regions

    def column(values: list) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(faults.region), pa.array(values))

    return pa.table(
        {
            "trial": faults.trial,
            "site": column([region.site for region in regions]).cast(pa.string()),
            "layer": column([region.layer for region in regions]).cast(pa.string()),
            "component": column([region.component for region in regions]).cast(pa.string()),
            "index": _index_text(space, faults),
            "step": faults.step,
            "model": column([region.model.kind for region in regions]).cast(pa.string()),
            "bit": space.bits(faults.region, faults.variant),
            "variant": faults.variant,
        }
    )


def _index_text(space: FaultSpace, faults: Faults) -> pa.Array:
    text = np.empty(len(faults.region), object)
    for i in np.unique(faults.region):
        rows = np.flatnonzero(faults.region == i)
        index = np.unravel_index(faults.element[rows], space.regions[i].shape)
        text[rows] = [f"({', '.join(map(str, row))})" for row in zip(*(axis.tolist() for axis in index), strict=True)]
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
    from saboteur.faults import draws

    if {"Layer", "TensorIndex", "Bit"} <= set(table.column_names):
        table = pa.table(
            {
                "site": pc.binary_join_element_wise(table["Layer"].cast(pa.string()), "weight", "."),
                "index": table["TensorIndex"],
                "bit": table["Bit"],
            }
        )
    for name in ("site", "index"):
        if name not in table.column_names:
            raise FaultError(f"fault list: no column {name!r}; it has {', '.join(table.column_names)}")
    rows = table.num_rows
    region = _regions(space, table)
    element = _elements(space, region, table["index"])
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


def _integers(table: pa.Table, name: str, default: NDArray[np.int64]) -> NDArray[np.int64]:
    if name not in table.column_names:
        return default
    try:
        return table[name].cast(pa.int64()).combine_chunks().to_numpy(zero_copy_only=False).astype(np.int64)
    except (pa.ArrowInvalid, ValueError) as error:
        raise FaultError(f"fault list: column {name!r} must hold whole numbers: {error}") from error


def _refuse(bad: NDArray[np.bool_], name: str, reason) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise FaultError(f"fault list: row {row + 1}: {name} {reason(row)}")


def _regions(space: FaultSpace, table: pa.Table) -> NDArray[np.int32]:
    sites = table["site"].cast(pa.string()).to_pylist()
    if "model" in table.column_names:
        known = {(r.site, r.model.kind): i for i, r in reversed(list(enumerate(space.regions)))}
        wanted = list(zip(sites, table["model"].to_pylist(), strict=True))
    else:
        known = {r.site: i for i, r in reversed(list(enumerate(space.regions)))}
        wanted = sites
        ambiguous = {r.site for i, r in enumerate(space.regions) if known[r.site] != i} & set(sites)
        if ambiguous:
            raise FaultError(
                f"fault list: site {min(ambiguous)!r} has several fault models in this campaign; "
                "the list needs a column 'model'"
            )
    try:
        return np.array([known[name] for name in wanted], np.int32)
    except KeyError as error:
        row, site = wanted.index(error.args[0]), sites[wanted.index(error.args[0])]
        raise FaultError(
            f"fault list: row {row + 1}: {error.args[0]!r} is not in the fault space{near(site, space.sites)}"
        ) from None


def _elements(space: FaultSpace, region: NDArray[np.int32], index: pa.ChunkedArray) -> NDArray[np.int64]:
    element = np.empty(len(region), np.int64)
    text = np.array(index.cast(pa.string()).to_pylist(), object)
    for i in np.unique(region):
        shape = space.regions[i].shape
        for row in np.flatnonzero(region == i):
            try:
                position = tuple(int(part) for part in str(text[row]).strip("()[] ").split(",") if part.strip())
            except ValueError:
                position = ()
            if len(position) != len(shape) or any(not 0 <= p < n for p, n in zip(position, shape, strict=True)):
                raise FaultError(
                    f"fault list: row {row + 1}: index {text[row]!r} does not address "
                    f"{space.regions[i].site} of shape {shape}"
                )
            element[row] = np.ravel_multi_index(position, shape) if shape else 0
    return element


def _variants(space: FaultSpace, region: NDArray[np.int32], table: pa.Table) -> NDArray[np.int64]:
    if "variant" in table.column_names:
        variant = _integers(table, "variant", region.astype(np.int64))
        limits = np.array([r.variants for r in space.regions])[region]
        _refuse(
            (variant < 0) | (variant >= limits),
            "variant",
            lambda row: f"{variant[row]} is outside 0 .. {limits[row] - 1}",
        )
        return variant
    if "bit" not in table.column_names:
        raise FaultError(f"fault list: no column 'bit' or 'variant'; it has {', '.join(table.column_names)}")
    bit = _integers(table, "bit", region.astype(np.int64))
    variant = np.empty(len(region), np.int64)
    for i in np.unique(region):
        rows = np.flatnonzero(region == i)
        bits = space.regions[i].variant_bits
        first = np.searchsorted(bits, bit[rows])
        last = np.searchsorted(bits, bit[rows], side="right")
        wrong = np.flatnonzero(last - first != 1)
        if wrong.size:
            row = rows[wrong[0]]
            found = (last - first)[wrong[0]]
            raise FaultError(
                f"fault list: row {row + 1}: bit {bit[row]} "
                + (
                    f"is outside {space.regions[i].format} (bits {bits.min()} .. {bits.max()})"
                    if found == 0
                    else f"means {found} faults of {space.regions[i].model.kind}; the list needs a column 'variant'"
                )
            )
        variant[rows] = first
    return variant


def read(path: Path | str) -> pa.Table:
    """A fault list from a ``.csv``, ``.csv.gz`` or ``.parquet`` file.

    Raises:
        FaultError: when the file is missing, of another kind or malformed.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        if path.name.endswith((".csv", ".csv.gz")):
            with pa.input_stream(path) as stream:
                return pyarrow.csv.read_csv(stream)
    except (OSError, pa.ArrowException) as error:
        raise FaultError(f"fault list: cannot read {path}: {error}") from error
    raise FaultError(f"fault list: {path} is neither .csv, .csv.gz nor .parquet")


def write(table: pa.Table, path: Path | str) -> None:
    """Write a fault list as ``.csv`` or ``.parquet``, by its name."""
    path = Path(path)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        raise FaultError(f"fault list: {path} is neither .csv nor .parquet")
