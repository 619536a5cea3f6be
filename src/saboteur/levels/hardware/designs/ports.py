"""Port values of a design, cycle by cycle.

The value of a port over time is an array ``[cycles]``: uint64, or Python integers (dtype object) where the port is
wider than 64 bits. Many ports are a row of equal lanes (one for each row or column of an array), lane *i* at the
bits ``[i * width, (i + 1) * width)``; :func:`pack` and :func:`unpack` convert between the two.
"""

from __future__ import annotations

import numpy as np

WORD_BITS = 64


def pack(lanes: np.ndarray, width: int) -> np.ndarray:
    """Pack lanes of ``width`` bits into the values of a port.

    Args:
        lanes: Integers ``[cycles, lanes]``; negative ones in two's complement; only the ``width`` lowest bits count.
        width: Bits of a lane, 1 to 64.

    Returns:
        ``[cycles]``, uint64 where all lanes fit 64 bits, otherwise Python integers.
    """
    unsigned = np.ascontiguousarray(lanes, dtype=np.int64).view(np.uint64) & np.uint64(2**width - 1)
    places = width * np.arange(lanes.shape[1])
    if width * lanes.shape[1] <= WORD_BITS:
        return (unsigned << places.astype(np.uint64)).sum(axis=1, dtype=np.uint64)
    return (unsigned.astype(object) << places.astype(object)).sum(axis=1)


def unpack(values: np.ndarray, width: int, count: int, *, signed: bool = True) -> np.ndarray:
    """Unpack ``count`` lanes of ``width`` bits from the values of a port; the inverse of :func:`pack`.

    Args:
        values: ``[cycles]``, uint64 or Python integers.
        width: Bits of a lane, 1 to 64 (1 to 63 if unsigned).
        count: Number of lanes.
        signed: Read a lane as two's complement.

    Returns:
        int64 ``[cycles, count]``.
    """
    places = width * np.arange(count)
    if values.dtype == object:
        lanes = (values[:, None] >> places.astype(object) & (2**width - 1)).astype(np.uint64)
    else:
        lanes = values[:, None] >> places.astype(np.uint64) & np.uint64(2**width - 1)
    if signed:
        unused = np.int64(WORD_BITS - width)
        return (lanes << np.uint64(unused)).view(np.int64) >> unused
    return lanes.view(np.int64)
