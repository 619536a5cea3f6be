"""Port values of a design, cycle by cycle, as columns of 64-bit words.

The value of a port over time is a uint64 array ``[cycles, words]`` with ``words = ceil(port width / 64)``, least
significant word first. Many ports are a row of equal lanes (one for each row or column of an array), lane *i* at
the bits ``[i * width, (i + 1) * width)``; :func:`pack` and :func:`unpack` convert between the two.
"""

from __future__ import annotations

import numpy as np

WORD_BITS = 64


def pack(lanes: np.ndarray, width: int) -> np.ndarray:
    """Pack lanes of ``width`` bits into port words.

    Args:
        lanes: Integers ``[cycles, lanes]``; negative ones in two's complement; only the ``width`` lowest bits count.
        width: Bits of a lane, 1 to 64.

    Returns:
        uint64 ``[cycles, words]``.
    """
    cycles, count = lanes.shape
    positions = np.arange(width, dtype=np.uint64)
    bits = ((lanes.astype(np.int64).view(np.uint64)[..., None] >> positions) & np.uint64(1)).astype(np.uint8)
    padded = np.zeros((cycles, -(-count * width // WORD_BITS) * WORD_BITS), dtype=np.uint8)
    padded[:, : count * width] = bits.reshape(cycles, count * width)
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64, copy=False)


def unpack(words: np.ndarray, width: int, count: int, *, signed: bool = True) -> np.ndarray:
    """Unpack ``count`` lanes of ``width`` bits from port words; the inverse of :func:`pack`.

    Args:
        words: uint64 ``[cycles, words]``.
        width: Bits of a lane, 1 to 64 (1 to 63 if unsigned).
        count: Number of lanes.
        signed: Read a lane as two's complement.

    Returns:
        int64 ``[cycles, count]``.
    """
    little = np.ascontiguousarray(words, dtype="<u8")
    bits = np.unpackbits(little.view(np.uint8), axis=1, bitorder="little", count=count * width)
    places = np.uint64(1) << np.arange(width, dtype=np.uint64)
    lanes = (bits.reshape(len(words), count, width) * places).sum(axis=2, dtype=np.uint64)
    if signed:
        unused = np.int64(WORD_BITS - width)
        return (lanes << np.uint64(unused)).view(np.int64) >> unused
    return lanes.view(np.int64)
