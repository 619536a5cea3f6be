from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from saboteur.faults import draws

# Random123, kat_vectors, "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
keys = st.integers(0, 2**64 - 1)


def parse(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter, key, result):
    np.testing.assert_array_equal(draws.philox4x32(parse(counter), parse(key)), parse(result))


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2),
)
def test_philox_equals_a_scalar_implementation(counter, key):
    result = draws.philox4x32(np.array([counter, counter], np.uint32), np.array(key, np.uint32))
    assert result.tolist() == [scalar_philox(counter, key)] * 2


@given(keys, keys, st.integers(0, 200))
def test_a_word_is_the_first_half_of_a_philox_block(key, counter, lane):
    block = scalar_philox([counter % 2**32, counter >> 32, lane, 0], [key % 2**32, key >> 32])
    assert int(draws.words(key, counter, lane)) == block[0] | block[1] << 32


def test_draws_do_not_depend_on_their_neighbours():
    counter = np.arange(1000)
    together = draws.words(3, counter)
    np.testing.assert_array_equal(together, [draws.words(3, c) for c in counter])
    np.testing.assert_array_equal(draws.words(3, counter[::-1]), together[::-1])


def test_streams_differ_by_key_counter_and_lane():
    drawn = draws.words(np.arange(4)[:, None, None], np.arange(4)[:, None], 0), draws.words(0, np.arange(4), lane=1)
    assert len({int(word) for part in drawn for word in part.ravel()}) == 20


def test_stream_keys_are_stable_and_tell_parts_apart():
    assert draws.stream_key("trials", 1) == 15860798446081205461
    assert len({draws.stream_key(*parts) for parts in [("a", 1), ("a", "1"), ("a1",), ("a", 1, ""), (1, "a")]}) == 5


def test_unit_interval_is_open_and_uniform():
    extremes = draws.unit_interval(np.array([0, 2**64 - 1], np.uint64))
    assert extremes[0] == 2.0**-53
    assert extremes[1] == 1 - 2.0**-53
    histogram = np.histogram(draws.uniform(5, np.arange(100_000)), bins=50, range=(0, 1))[0]
    assert chisquare(histogram).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(keys, st.integers(1, 3000))
def test_permuted_is_a_bijection(key, size):
    np.testing.assert_array_equal(np.sort(draws.permuted(key, size, np.arange(size))), np.arange(size))


@settings(max_examples=30, deadline=None)
@given(st.lists(keys, min_size=1, max_size=20), st.integers(1, 2000), st.data())
def test_permuted_is_a_pure_function_of_key_and_index(key, size, data):
    index = data.draw(st.lists(st.integers(0, size - 1), min_size=len(key), max_size=len(key)))
    together = draws.permuted(np.array(key, np.uint64), size, index)
    assert together.tolist() == [int(draws.permuted(k, size, i)) for k, i in zip(key, index, strict=True)]


@pytest.mark.parametrize("size", [10**12, 10**12 + 1, 2**62])
def test_permuted_does_not_repeat_in_big_populations(size):
    values = draws.permuted(17, size, np.arange(20_000))
    assert len(np.unique(values)) == 20_000
    assert values.min() >= 0
    assert values.max() < size
    assert chisquare(np.histogram(values, bins=20, range=(0, size))[0]).pvalue > 1e-3


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_permutation_of_a_small_population_is_equally_likely(size):
    key = draws.words(7, np.arange(12_000))
    permutations = draws.permuted(key[:, None], size, np.arange(size)[None])
    seen = Counter(map(tuple, permutations.tolist()))
    assert chisquare([seen[p] for p in itertools.permutations(range(size))]).pvalue > 1e-3


@pytest.mark.parametrize("size", [9, 33, 64, 65, 100])
def test_all_pairs_are_equally_likely(size):
    key = draws.words(9, np.arange(30 * size**2))
    first, last = draws.permuted(key[:, None], size, np.array([[0, size - 1]])).T
    pairs = np.bincount(first * size + last, minlength=size**2).reshape(size, size)
    assert np.trace(pairs) == 0
    assert chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-3


@pytest.mark.parametrize("size", [60, 64, 65, 100, 1500])
def test_single_values_and_pairs_are_uniform(size):
    key = draws.words(8, np.arange(40 * size))
    first, second = draws.permuted(key, size, np.zeros(1, int)), draws.permuted(key, size, np.ones(1, int))
    assert chisquare(np.bincount(first, minlength=size)).pvalue > 1e-3
    assert chisquare(np.bincount((second - first) % size, minlength=size)[1:]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "index", "message"),
    [(0, [], "size: 0"), (2**62 + 1, [0], "2\\*\\*62"), (5, [5], "0 .. 4"), (5, [-1], "0 .. 4")],
)
def test_permuted_refuses_what_is_outside(size, index, message):
    with pytest.raises(ValueError, match=message):
        draws.permuted(1, size, index)


def test_nothing_to_permute():
    assert draws.permuted(1, 10, np.zeros(0, int)).shape == (0,)
    assert draws.permuted(1, 10**6, np.zeros(0, int)).shape == (0,)
