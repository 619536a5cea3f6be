from __future__ import annotations

import time
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saboteur.errors import FaultError
from saboteur.faults import BitFlip, Dead, Faults, FaultSpace, Region, StuckAt, draws, number_format
from saboteur.faults.models import FaultModel
from saboteur.faults.space import StratifyBy

CUTS = get_args(StratifyBy)


@st.composite
def spaces(draw) -> FaultSpace:
    models = [BitFlip(), BitFlip(count=2), BitFlip(bits=(1, 3)), StuckAt(), StuckAt(value=0), Dead()]
    regions = []
    for layer in range(draw(st.integers(1, 3))):
        for component in draw(st.lists(st.sampled_from(["weight", "bias"]), min_size=1, unique=True)):
            shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
            fmt = number_format(draw(st.sampled_from(["int4", "int8", "float16"])))
            steps = draw(st.integers(1, 3))
            for model in draw(st.lists(st.sampled_from(models), min_size=1, max_size=3, unique=True)):
                site = f"layer{layer}.{component}"
                regions.append(Region(site, f"layer{layer}", component, shape, fmt, model, steps=steps))
    return FaultSpace(tuple(regions))


def enumerate_by_hand(space: FaultSpace) -> set[tuple[int, int, int, int]]:
    return {
        (i, element, step, variant)
        for i, region in enumerate(space.regions)
        for element in range(int(np.prod(region.shape)))
        for step in range(region.steps)
        for variant in range(region.model.variants(region.format.bits))
    }


@settings(max_examples=60, deadline=None)
@given(spaces(), st.sampled_from(CUTS))
def test_strata_hold_every_fault_once_and_number_it(space, by):
    strata = space.strata(by)
    faults = []
    for stratum in strata:
        index = np.arange(stratum.size)
        decoded = space.decode(stratum, index)
        np.testing.assert_array_equal(space.encode(stratum, *decoded), index)
        faults += list(zip(*(column.tolist() for column in decoded), strict=True))
        for other in strata:
            if other is not stratum:
                assert (space.encode(other, *decoded) == -1).all()
        regions = [space.regions[i] for i in decoded[0]]
        if stratum.layer is not None:
            assert {region.layer for region in regions} == {stratum.layer}
        if stratum.bit is not None:
            assert set(space.bits(decoded[0], decoded[3]).tolist()) == {stratum.bit}
        if by in ("site", "component"):
            assert {getattr(region, by) for region in regions} == {stratum.name}
    assert len(faults) == space.size == sum(stratum.size for stratum in strata)
    assert set(faults) == enumerate_by_hand(space)
    assert len({stratum.name for stratum in strata}) == len(strata)


def region(site="a.weight", shape=(2, 3), model=None, fmt="int8", **more) -> Region:
    return Region(site, site.split(".")[0], "weight", shape, number_format(fmt), model or BitFlip(), **more)


def test_strata_names():
    space = FaultSpace((region(), region(model=Dead()), region("b.weight", (1,), fmt="int4")))
    assert [s.name for s in space.strata("network")] == ["network"]
    assert [s.name for s in space.strata("layer")] == ["a", "b"]
    assert [s.name for s in space.strata("bit")] == [*(f"bit {b}" for b in range(8)), "value"]
    assert [s.size for s in space.strata("bit")] == [7] * 4 + [6] * 5
    assert [s.name for s in space.strata("layer_bit")][7:10] == ["a bit 7", "a value", "b bit 0"]
    assert space.strata("layer_bit")[8].bit == -1


def test_a_huge_space_opens_and_samples_at_once():
    start = time.perf_counter()
    space = FaultSpace(tuple(region(f"l{i}.weight", (1_000_000, 1000), fmt="float32", steps=2) for i in range(20)))
    assert space.size == 20 * 10**9 * 2 * 32
    strata = space.strata("layer_bit")
    index = draws.permuted(1, strata[5].size, np.arange(1000))
    decoded = space.decode(strata[5], index)
    whole = space.strata("network")[0]
    last = space.decode(whole, np.array([space.size - 1]))
    assert time.perf_counter() - start < 0.25
    assert [int(column[0]) for column in last] == [19, 10**9 - 1, 1, 31]
    np.testing.assert_array_equal(space.encode(strata[5], *decoded), index)


def test_scalars_are_sites_too():
    assert FaultSpace((region(shape=()),)).size == 8


class Backwards(FaultModel):
    kind: str = "backwards"

    def variants(self, bits):
        return bits

    def bit(self, variant, bits):
        return (bits - 1 - np.asarray(variant)).astype(np.int16)

    def corrupt(self, words, variant, drawn, fmt):
        return words


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda: FaultSpace(()), "empty"),
        (lambda: FaultSpace((region(shape=(0, 3)),)), "empty"),
        (lambda: FaultSpace((region(shape=(2**60,)),)), r"more than 2\*\*62"),
        (lambda: FaultSpace((region(), region())), "a.weight has the permanent fault bit_flip twice"),
        (lambda: FaultSpace((region(),)).strata("bits"), "'bits' is not one of network, layer"),
        (lambda: FaultSpace((region(),)).region_of("a.weigth"), "did you mean 'a.weight'"),
        (lambda: region(model=Backwards()).variant_bits, "never decrease"),
        (lambda: region(model=BitFlip(count=8), fmt="float64").variant_bits, "too many to tell apart by bit"),
        (lambda: region(model=BitFlip(bits=(8,))).variants, "bit 8 is outside"),
    ],
)
def test_errors(do, message):
    with pytest.raises(FaultError, match=message):
        do()


@pytest.mark.parametrize("index", [[-1], [48]])
def test_numbers_outside_of_a_stratum_are_refused(index):
    space = FaultSpace((region(),))
    with pytest.raises(FaultError, match=r"network numbers its faults 0 \.\. 47"):
        space.decode(space.strata("network")[0], np.array(index))


@st.composite
def fault_columns(draw) -> Faults:
    sizes = draw(st.lists(st.integers(0, 3), max_size=8))
    trial = np.repeat(np.arange(len(sizes)), sizes)
    n = len(trial)
    return Faults(
        draws.words(draw(st.integers(0, 2**32)), np.arange(len(sizes))),
        trial,
        np.zeros(n, np.int32),
        np.arange(n),
        np.zeros(n, np.int32),
        np.arange(n) % 8,
    )


@settings(max_examples=100, deadline=None)
@given(fault_columns(), st.data())
def test_taken_trials_keep_their_faults_and_draws(faults, data):
    trials = data.draw(st.lists(st.integers(0, faults.trials - 1), max_size=6)) if faults.trials else []
    taken = faults.take(trials)
    assert taken.trials == len(trials)
    for new, old in enumerate(trials):
        ours, theirs = slice(*taken.bounds[new : new + 2]), slice(*faults.bounds[old : old + 2])
        np.testing.assert_array_equal(taken.element[ours], faults.element[theirs])
        np.testing.assert_array_equal(taken.drawn[ours], faults.drawn[theirs])
        np.testing.assert_array_equal(taken.acts(0.5, np.arange(9), new), faults.acts(0.5, np.arange(9), old))


@settings(max_examples=100, deadline=None)
@given(fault_columns(), st.data())
def test_chosen_rows_keep_their_draws(faults, data):
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=len(faults.trial), max_size=len(faults.trial))), bool)
    chosen = faults.rows(rows)
    assert chosen.trials == faults.trials
    np.testing.assert_array_equal(chosen.drawn, faults.drawn[rows])
    np.testing.assert_array_equal(chosen.rows(np.arange(len(chosen.trial))).drawn, faults.drawn[rows])
    np.testing.assert_array_equal(chosen.element, faults.element[rows])


def test_draws_of_one_trial_differ_and_follow_its_key():
    zeros = np.zeros(3, np.int32)
    faults = Faults(np.array([7, 9], np.uint64), np.array([0, 0, 1]), zeros, np.arange(3), zeros, np.arange(3))
    assert len(np.unique(faults.drawn)) == 3
    np.testing.assert_array_equal(faults.drawn, draws.words([7, 7, 9], [0, 1, 0], lane=101))
    assert faults.bounds.tolist() == [0, 2, 3]


def test_intermittent_faults_act_in_their_share_of_inputs():
    zeros = np.zeros(1, np.int32)
    faults = Faults(np.array([3], np.uint64), np.array([0]), zeros, np.zeros(1, int), zeros, np.zeros(1, int))
    acts = faults.acts(0.2, np.arange(20_000), 0)
    assert abs(acts.mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 20_000)
    np.testing.assert_array_equal(faults.acts(0.2, np.arange(20_000)[::-1], 0), acts[::-1])
    assert (faults.acts(0.5, np.arange(20_000), 0) | ~acts).all(), "acting grows with the activity"


@pytest.mark.parametrize(
    ("trial", "message"), [([1, 0], "non-decreasing"), ([0, 2], r"0 \.\. 1"), ([0], "differ in length")]
)
def test_malformed_columns_are_refused(trial, message):
    two = np.zeros(2, np.int32)
    with pytest.raises(FaultError, match=message):
        Faults(np.zeros(2, np.uint64), np.array(trial), two, np.zeros(2, int), two, np.zeros(2, int))
