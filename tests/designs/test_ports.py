"""Lanes and port values convert into each other."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saboteur.levels.hardware.designs import pack, unpack


def test_lane_zero_lies_at_the_least_significant_bits() -> None:
    assert pack(np.array([[1, -1, 2]]), 8).tolist() == [0x02FF01]
    assert pack(np.array([[-1, 0, 5]]), 32).tolist() == [0xFFFFFFFF | 5 << 64]
    assert pack(np.array([[1, 0, 1]]), 1).tolist() == [0b101]


def test_a_lane_may_straddle_two_words() -> None:
    values = pack(np.array([[0, 0, 0x7FFFFF], [-1, 0, 0]]), 24)
    assert values.tolist() == [0x7FFFFF << 48, 0xFFFFFF]
    assert unpack(values, 24, 3).tolist() == [[0, 0, 0x7FFFFF], [-1, 0, 0]]


@given(st.integers(2, 64), st.data())
def test_unpack_inverts_pack(width: int, data: st.DataObject) -> None:
    bound = 2 ** (width - 1)
    lanes = data.draw(
        hnp.arrays(
            np.int64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-bound, bound - 1)
        )
    )
    values = pack(lanes, width)
    assert values.shape == lanes.shape[:1]
    assert values.dtype == (np.uint64 if width * lanes.shape[1] <= 64 else object)
    np.testing.assert_array_equal(unpack(values, width, lanes.shape[1]), lanes)
