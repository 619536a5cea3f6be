"""What faults do, as rows of dtype ROW: words bit by bit, bridges at both nets, one effect at a time at each net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from saboteur.faults import draws
from saboteur.faults.models import FaultModel
from saboteur.faults.space import Faults, Region
from saboteur.levels.hardware.models import mask_table, masks
from saboteur.levels.hardware.simulate import PLACES, ROW, WAYS
from saboteur.levels.hardware.sites import PLACE

_APPLY, _DELAYS, _HOLD, _BRIDGE = 0, range(1, 4), WAYS.index("hold"), WAYS.index("bridge_and")
_CAPTURED_LANE = 211


@dataclass(frozen=True)
class FaultTable:
    """A fault space as columns by region, of which faults make rows.

    Attributes:
        places: of dtype PLACE, of all elements of all regions, those of a region from ``first`` on.
        first: [regions].
        transient: [regions].
        captured: [regions], the share of pulses that meet the capture window; 1 for all other faults.
        kinds: the different pairs of model and bits of a word.
        kind_of: [regions], index into ``kinds``.
        masks: of each kind, where they follow from the variant alone.
    """

    places: NDArray
    first: NDArray[np.int64]
    transient: NDArray[np.bool_]
    captured: NDArray[np.float64]
    kinds: list[tuple[FaultModel, int]]
    kind_of: NDArray[np.int64]
    masks: list[tuple[NDArray[np.uint64], NDArray[np.uint64], int] | None]

    @classmethod
    def of(cls, regions: Sequence[Region], places: Sequence[NDArray], captured: Sequence[float]) -> FaultTable:
        """Of regions, with the places of the elements of each and the share of its pulses that is captured."""
        pairs = [(region.model, region.format.bits) for region in regions]
        kinds = list(dict.fromkeys(pairs))
        number = {kind: i for i, kind in enumerate(kinds)}
        return cls(
            places=np.concatenate(places),
            first=np.cumsum([0, *(len(some) for some in places[:-1])]),
            transient=np.array([region.duration == "transient" for region in regions]),
            captured=np.array(captured),
            kinds=kinds,
            kind_of=np.array([number[pair] for pair in pairs]),
            masks=[mask_table(*kind) for kind in kinds],
        )

    def at(self, faults: Faults) -> NDArray[np.int64]:
        """[rows]: index into ``places`` of each single fault."""
        return self.first[faults.region] + faults.element

    def caught(self, faults: Faults) -> NDArray[np.bool_]:
        """[rows]: all single faults but the pulses that miss the capture window."""
        share = self.captured[faults.region]
        if (share == 1).all():
            return np.ones(len(share), np.bool_)
        return draws.unit_interval(draws.words(faults.drawn, 0, _CAPTURED_LANE)) < share

    def rows(self, faults: Faults, first_cycle: int, end: int) -> NDArray:
        """A row for each single fault, with ``fault`` its trial.

        Args:
            faults: the faults.
            first_cycle: the cycle of step 0.
            end: ``off`` of faults that stay.

        Raises:
            FaultError: when a model does not act bit by bit.
        """
        rows = np.zeros(len(faults.trial), ROW)
        rows["fault"] = faults.trial
        places = self.places[self.at(faults)]
        for column in PLACE.names or ():
            rows[column] = places[column]
        transient = self.transient[faults.region]
        on = np.where(transient, first_cycle + faults.step, 0)
        rows["on"], rows["off"] = on, np.where(transient, on + 1, end)
        kind_of = self.kind_of[faults.region]
        for kind, (model, bits) in enumerate(self.kinds):
            of = np.flatnonzero(kind_of == kind)
            if not len(of):
                continue
            known = self.masks[kind]
            if known is not None:
                variant, way = faults.variant[of], known[2]
                rows["a"][of], rows["x"][of] = known[0][variant], known[1][variant]
            else:
                rows["a"][of], rows["x"][of], way = masks(model, faults.variant[of], faults.drawn[of], bits)
            if way:  # the old value is that of the cycle before
                rows["way"][of], rows["on"][of] = way, on[of] if way >= _BRIDGE else np.maximum(on[of] - 1, 0)
        return rows


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
