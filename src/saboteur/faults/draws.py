"""Counter-based random draws: every number is a pure function of (key, counter).

A trial's draws do not depend on which trials ran before it, so any trial can be replayed alone, and
resuming, retrying and distributing a campaign change nothing.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011),
checked in the tests against the vectors its authors publish.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ROUNDS = 10
_FEISTEL_ROUNDS = 6
_SORTED_SIZE = 64
_SORTED_LANE = 7


def stream_key(*parts: object) -> int:
    """A 64-bit key for the stream that ``parts`` (integers and strings) name."""
    digest = hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 of ``counter`` [..., 4] under ``key`` [..., 2]; both broadcast; returns [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key[..., 0].astype(np.uint64), key[..., 1].astype(np.uint64)
    for turn in range(_ROUNDS):
        product0, product2 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product2 >> _32) ^ c1 ^ ((k0 + np.uint64(turn * _WEYL[0])) & _LOW),
            product2 & _LOW,
            (product0 >> _32) ^ c3 ^ ((k1 + np.uint64(turn * _WEYL[1])) & _LOW),
            product0 & _LOW,
        )
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(key: ArrayLike, counter: ArrayLike, lane: int = 0) -> NDArray[np.uint64]:
    """One 64-bit word for each (key, counter); ``lane`` tells apart draws of one counter."""
    key, counter = np.broadcast_arrays(np.asarray(key, np.uint64), np.asarray(counter, np.uint64))
    block = np.stack([counter & _LOW, counter >> _32, np.full_like(counter, lane), np.zeros_like(counter)], -1)
    out = philox4x32(block.astype(np.uint32), np.stack([key & _LOW, key >> _32], -1).astype(np.uint32))
    return out[..., 0].astype(np.uint64) | (out[..., 1].astype(np.uint64) << _32)


def uniform(key: ArrayLike, counter: ArrayLike, lane: int = 0) -> NDArray[np.float64]:
    """One number in the open interval (0, 1) for each (key, counter)."""
    return unit_interval(words(key, counter, lane))


def unit_interval(drawn: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Map 64-bit words to the open interval (0, 1) by their upper 52 bits: (k + ½) · 2⁻⁵², exactly."""
    return ((drawn >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def permuted(key: ArrayLike, size: int, index: ArrayLike) -> NDArray[np.int64]:
    """Where ``index`` goes under the key's pseudo-random permutation of ``range(size)``.

    The first n values are a random sample without replacement, of which nothing is ever stored: a Feistel
    network (Luby and Rackoff, 1988) over the smallest power of four that holds ``size``, walked along its
    cycle until it lands inside (Black and Rogaway, CT-RSA 2002). Up to 64 values, where so small a network
    would favour some permutations, they are sorted by a random word each.

    Args:
        key: 64-bit keys, broadcast against ``index``.
        size: how many values are permuted, 1 to 2**62.
        index: values in ``range(size)``.

    Raises:
        ValueError: when an index lies outside ``range(size)`` or the size outside its bounds.
    """
    if not 1 <= size <= 2**62:
        raise ValueError(f"size: {size} is outside 1 .. 2**62")
    index = np.asarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index: must lie in 0 .. {size - 1}")
    key, index = np.broadcast_arrays(np.asarray(key, np.uint64), index)
    permute = _sorted_order if size <= _SORTED_SIZE else _feistel_walk
    return permute(key.ravel(), size, index.ravel()).reshape(index.shape)


def _sorted_order(key: NDArray[np.uint64], size: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    keys, which = np.unique(key, return_inverse=True)
    result = np.empty(len(index), np.int64)
    by_key = np.argsort(which, kind="stable")
    chunk = max(1, 2**20 // size)
    for first in range(0, len(keys), chunk):
        order = np.argsort(
            words(keys[first : first + chunk, None], np.arange(size), _SORTED_LANE), axis=1, kind="stable"
        )
        begin, end = np.searchsorted(which, [first, first + chunk], sorter=by_key)
        rows = by_key[begin:end]
        result[rows] = order[which[rows] - first, index[rows]]
    return result


def _feistel_walk(key: NDArray[np.uint64], size: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    half_bits = ((size - 1).bit_length() + 1) // 2
    half, half_mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    value, walking = index.astype(np.uint64), np.arange(index.size)
    while walking.size:
        left, right = value[walking] >> half, value[walking] & half_mask
        for turn in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (words(key[walking], right, lane=turn + 1) & half_mask)
        value[walking] = (left << half) | right
        walking = walking[value[walking] >= np.uint64(size)]
    return value.astype(np.int64)
