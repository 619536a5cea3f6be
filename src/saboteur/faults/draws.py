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
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_FEISTEL_ROUNDS = 6


def stream_key(*parts: object) -> int:
    """A 64-bit key for the stream that ``parts`` (integers and strings) name."""
    digest = hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Philox4x32-10 of ``counter`` [..., 4] under ``key`` [..., 2]; both broadcast; returns [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key[..., 0].astype(np.uint32), key[..., 1].astype(np.uint32)
    for _ in range(10):
        product0, product2 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product2 >> _32) ^ c1 ^ k0,
            product2 & _LOW,
            (product0 >> _32) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
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
    """Map 64-bit words to the open interval (0, 1) by their upper 53 bits."""
    return ((drawn >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def permuted(key: ArrayLike, size: int, index: ArrayLike) -> NDArray[np.int64]:
    """Where ``index`` goes under the key's pseudo-random permutation of ``range(size)``.

    The first n values are a random sample without replacement, of which nothing is ever stored: a Feistel
    network (Luby and Rackoff, 1988) over the smallest power of four that holds ``size``, walked along its
    cycle until it lands inside (Black and Rogaway, CT-RSA 2002).

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
    key, index = (np.array(a) for a in np.broadcast_arrays(np.asarray(key, np.uint64), index))
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    half, half_mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    value, walking = index.astype(np.uint64).ravel(), np.arange(index.size)
    flat_key = key.ravel()
    while walking.size:
        left, right = value[walking] >> half, value[walking] & half_mask
        for turn in range(_FEISTEL_ROUNDS):
            left, right = right, left ^ (words(flat_key[walking], right, lane=turn + 1) & half_mask)
        value[walking] = (left << half) | right
        walking = walking[value[walking] >= np.uint64(size)]
    return value.reshape(index.shape).astype(np.int64)
