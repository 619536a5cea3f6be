"""Which words become which words: the one place where faults of a trial meet the words they hit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saboteur.faults import draws
from saboteur.faults.formats import NumberFormat
from saboteur.faults.space import Faults, FaultSpace, Region

Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Hits:
    """Columns of single faults that act together, in the order in which they compose.

    Attributes:
        regions: the regions of the fault space.
        region: [rows] index into ``regions``.
        element: [rows] flat index of the word that is hit.
        step: [rows] the moment of the inference.
        variant: [rows] which fault of the region's model.
        drawn: [rows] a random word for each fault; the same for each inference that the fault meets.
    """

    regions: Sequence[Region]
    region: NDArray[np.int32]
    element: NDArray[np.int64]
    step: NDArray[np.int32]
    variant: NDArray[np.int64]
    drawn: Words

    @classmethod
    def of_trial(cls, space: FaultSpace, faults: Faults, trial: int) -> Hits:
        """All faults of one trial."""
        rows = slice(faults.bounds[trial], faults.bounds[trial + 1])
        return cls(
            space.regions,
            faults.region[rows],
            faults.element[rows],
            faults.step[rows],
            faults.variant[rows],
            faults.drawn[rows],
        )

    def __len__(self) -> int:
        return len(self.region)

    def where(self, chosen: NDArray) -> Hits:
        """The chosen rows (a mask or increasing indices)."""
        return Hits(
            self.regions,
            self.region[chosen],
            self.element[chosen],
            self.step[chosen],
            self.variant[chosen],
            self.drawn[chosen],
        )

    def by_site(self) -> dict[str, Hits]:
        """The rows of each site."""
        sites = np.array([self.regions[i].site for i in self.region], object)
        return {site: self.where(sites == site) for site in dict.fromkeys(sites.tolist())}

    def spread(self, members: Callable[[int], NDArray[np.int64]]) -> Hits:
        """Replace each element by the words ``members(element)`` that it stands for.

        Each word of a channel or layer gets a random word of its own, drawn from that of its fault.
        """
        groups = [members(int(element)) for element in self.element]
        rows = np.repeat(np.arange(len(self)), [len(group) for group in groups])
        element = np.concatenate(groups) if groups else self.element
        return Hits(
            self.regions,
            self.region[rows],
            element,
            self.step[rows],
            self.variant[rows],
            draws.words(self.drawn[rows], element),
        )


def corrupted(
    words: Words, elements: NDArray[np.int64], hits: Hits, format_at: Callable[[NDArray], NumberFormat]
) -> Words:
    """The words after the faults of ``hits``, all of one site.

    Args:
        words: [..., n] fault-free words of the distinct ``elements``; leading axes are inferences.
        elements: [n] sorted and distinct; every element of ``hits`` is among them.
        hits: the faults; those that hit the same word compose in their order.
        format_at: the format lined up with an array of elements.

    Returns:
        [..., n] faulted words.
    """
    words = words.copy()
    column = np.searchsorted(elements, hits.element)
    order = np.argsort(column, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.searchsorted(column[order], column[order])
    for turn in range(rank.max(initial=-1) + 1):
        for region in np.unique(hits.region[rank == turn]):
            rows = np.flatnonzero((rank == turn) & (hits.region == region))
            before = words[..., column[rows]]
            aligned = [np.broadcast_to(part[rows], before.shape).ravel() for part in (hits.variant, hits.drawn)]
            fmt = format_at(np.broadcast_to(hits.element[rows], before.shape).ravel())
            after = hits.regions[region].model.corrupt(before.ravel(), *aligned, fmt)
            words[..., column[rows]] = after.reshape(before.shape)
    return words
