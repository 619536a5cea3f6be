"""What faults do, as rows of dtype ROW: words bit by bit, bridges at both nets, one effect at a time at each net."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saboteur.levels.hardware.simulate import PLACES, WAYS
from saboteur.levels.hardware.sites import PLACE

_APPLY, _DELAYS, _HOLD, _BRIDGE = 0, range(1, 4), WAYS.index("hold"), WAYS.index("bridge_and")


def bit_by_bit(rows: NDArray, joined: NDArray[np.uint8], at: NDArray[np.int64], places: NDArray) -> NDArray:
    """Rows that hit joined bits, as rows of those bits that they touch.

    Args:
        rows: of dtype ROW.
        joined: [rows]: bits of the word that each hits; 0 where the word is one place.
        at: [rows]: the place of the lowest bit.
        places: of dtype PLACE.
    """
    bits = np.arange(64, dtype=np.uint8)
    touched = ((~rows["a"] | rows["x"])[:, None] >> bits.astype(np.uint64) & np.uint64(1)).astype(np.bool_)
    touched &= bits < joined[:, None]
    touched[joined == 0, 0] = True
    row, bit = np.nonzero(touched)
    spread, of = rows[row], np.flatnonzero(joined[row])
    for column in PLACE.names or ():
        spread[column][of] = places[column][at[row[of]] + bit[of]]
    for column in ("a", "x"):
        spread[column][of] = spread[column][of] >> bit[of].astype(np.uint64) & np.uint64(1)
    return spread


def with_both_nets(
    rows: NDArray, at: NDArray[np.int64], partners: NDArray, bridged: NDArray[np.bool_]
) -> tuple[NDArray, NDArray[np.int64]]:
    """A row at each net of each bridge, pointing at the other one.

    Args:
        rows: of dtype ROW; ``x`` of a bridge is the variant.
        at: [rows]: index of the place of each.
        partners: by such an index, the other net of a bridge.
        bridged: [rows], which rows are bridges.

    Returns:
        More rows in order of fault, and ``at`` of them.
    """
    first = rows[bridged]
    second, other, variant = first.copy(), partners[at[bridged]], first["x"].copy()
    for column in PLACE.names or ():
        second[column] = other[column]
    for row, partner in ((first, second), (second, first)):
        row["word"], row["a"], row["x"] = partner["place"], partner["offset"], 0
    take = WAYS.index("bridge_take")
    for row, wins in ((first, variant == 0), (second, variant == 1)):
        row[(row["way"] == take) & wins] = _untouched(row[(row["way"] == take) & wins])
    joined = np.concatenate([rows[~bridged], first, second])
    order = np.argsort(joined["fault"], kind="stable")
    return joined[order], np.concatenate([at[~bridged], at[bridged], at[bridged]])[order]


def _untouched(rows: NDArray) -> NDArray:
    """The same places, watched but unchanged."""
    rows = rows.copy()
    rows["way"], rows["a"], rows["x"], rows["word"] = 0, 0xFFFFFFFFFFFFFFFF, 0, 0
    return rows


def one_effect_at_a_time(rows: NDArray) -> NDArray:
    """Rows in order of fault, so that the masks of a net or pin have one effect in each cycle.

    Where several faults of one trial act on one net in the same cycles, an open net hears nothing else (of two opens,
    the first to break), a bridged one only the bridge (the first of the trial), and what changes bits (flips, stuck-at)
    hides a delay. Changes of bits are composed in the order of the trial; slow to rise and slow to fall are slow both
    ways. At word level, the net is the whole word. Flip-flops, inputs and memories take the faults of a trial one after
    the other.
    """
    if (np.diff(rows["fault"]) < 0).any():
        rows = rows[np.argsort(rows["fault"], kind="stable")]
    if (np.diff(rows["fault"]) > 0).all():
        return rows
    at_hook = rows["kind"] == PLACES.index("hook")
    hooked = rows[at_hook]
    _, inverse, counts = np.unique(hooked[["fault", "place", "offset"]], return_inverse=True, return_counts=True)
    alone = counts[inverse.ravel()] == 1
    if alone.all():
        return rows
    parts = [rows[~at_hook], hooked[alone]]
    for k in np.flatnonzero(counts > 1):
        parts += _pieces(hooked[inverse.ravel() == k])
    joined = np.concatenate(parts)
    return joined[np.argsort(joined["fault"], kind="stable")]


def _pieces(same: NDArray) -> Iterator[NDArray]:
    """Rows at one net, in order of time, no two of which act in the same cycle."""
    late = (same["way"] > _APPLY) & (same["way"] < _BRIDGE)  # act a cycle after they begin
    starts = same["on"] + late
    cuts = np.unique(np.concatenate([starts, same["off"]]))
    before: tuple[int, ...] = ()
    piece = same[:0]
    for low, high in pairwise(cuts.tolist()):
        acting = np.flatnonzero((starts <= low) & (same["off"] > low))
        ways = same["way"][acting]
        if (ways == _HOLD).any():
            held = acting[ways == _HOLD]
            chosen = held[np.argmin(starts[held])][None]
        elif (ways >= _BRIDGE).any():
            chosen = acting[ways >= _BRIDGE][:1]
        else:
            chosen = acting[ways == _APPLY] if (ways == _APPLY).any() else acting
        if before and tuple(chosen.tolist()) == before:
            piece["off"] = high
            continue
        if before:
            yield piece
        before = tuple(chosen.tolist())
        if before:
            piece = _merged(same[chosen])
            piece["on"], piece["off"] = low - int(late[chosen[0]]), high
    if before:
        yield piece


def _merged(rows: NDArray) -> NDArray:
    merged = rows[-1:].copy()
    if merged["way"][0] in _DELAYS:
        merged["way"], merged["x"] = np.bitwise_or.reduce(rows["way"]), np.bitwise_or.reduce(rows["x"])
    elif merged["way"][0] == _APPLY:
        a, x = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0)
        for row in rows:
            a, x = a & row["a"], (x & row["a"]) ^ row["x"]
        merged["a"], merged["x"] = a, x
    return merged
