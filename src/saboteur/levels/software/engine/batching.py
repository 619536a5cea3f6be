"""In which batches the plain engine's bits come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saboteur.levels.software.engine.graph import Graph, Values, same
from saboteur.levels.software.runner import Runner

_ORDERS = 3


@dataclass(frozen=True)
class Part:
    """A batch for some of the pairs.

    Attributes:
        chosen: [n] which pairs.
        place: [n] where in the batch each lies.
        filled: [batch size] which pair lies at each place; places that no pair needs repeat one.
    """

    chosen: NDArray[np.int64]
    place: NDArray[np.int64]
    filled: NDArray[np.int64]


class Batching:
    """Parts pairs into batches in which every call gives the bits that it gives in the plain engine.

    The plain engine's batches always do, where each input keeps its place. Smaller batches, and other places, are
    used where the fault-free results of all calls come out the same in them, bit for bit, in three random orders.

    Args:
        graph: what is computed.
        runner: whose batches the plain engine runs.
    """

    def __init__(self, graph: Graph, runner: Runner):
        self.size = runner.batch_size
        batch = next(runner.batches())
        rows = torch.from_numpy(batch.rows)
        tensors = [tensor[rows.to(tensor.device)] for tensor in runner.tensors]
        values = graph.run(tensors)
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(self.size, generator=generator) for _ in range(_ORDERS)]
        self._sizes = sorted(
            size
            for size in {-(-self.size // 4), -(-self.size // 2), self.size}
            if all(_come_out(graph, values, tensors, order[:size]) for order in orders)
        )

    def run(
        self, row: NDArray[np.int64], compute: Callable[[NDArray[np.int64]], Tensor], *, at_their_places: bool = False
    ) -> Tensor:
        """What a computation gives for each pair: [pairs, ...].

        Args:
            row: int64 [pairs], the input of each.
            compute: gives the results for a batch, told which pair lies at each of its places: int64 [batch size].
            at_their_places: as in :meth:`parts`.
        """
        results, order = [], []
        for part in self.parts(row, at_their_places=at_their_places):
            results.append(compute(part.filled)[torch.from_numpy(part.place)])
            order.append(part.chosen)
        return in_order(results, order)

    def parts(self, row: NDArray[np.int64], *, at_their_places: bool = False) -> Iterator[Part]:
        """Batches that together hold each pair once, given the input of each.

        Args:
            row: int64 [pairs].
            at_their_places: whether every input has the place that it has in the plain engine's batches in any case.
        """
        if not at_their_places and self._sizes and self._sizes[-1] == self.size:
            yield from self._anywhere(len(row))
        else:
            yield from self._at_their_places(row)

    def _anywhere(self, pairs: int) -> Iterator[Part]:
        for first in range(0, pairs, self.size):
            chosen = np.arange(first, min(first + self.size, pairs))
            size = next(size for size in self._sizes if size >= len(chosen))
            filled = np.full(size, first)
            filled[: len(chosen)] = chosen
            yield Part(chosen, np.arange(len(chosen)), filled)

    def _at_their_places(self, row: NDArray[np.int64]) -> Iterator[Part]:
        place = row % self.size
        order = np.argsort(place, kind="stable")
        turn = np.empty(len(row), np.int64)
        turn[order] = np.arange(len(row)) - np.searchsorted(place[order], place[order])
        for number in range(turn.max(initial=-1) + 1):
            chosen = np.flatnonzero(turn == number)
            filled = np.full(self.size, chosen[0])
            filled[place[chosen]] = chosen
            yield Part(chosen, place[chosen], filled)


def in_order(results: Sequence[Tensor], order: Sequence[NDArray[np.int64]]) -> Tensor:
    """Results that were computed in parts, given where each of their rows belongs."""
    if len(results) == 1 and (np.diff(order[0]) == 1).all():
        return results[0]
    return torch.cat(list(results))[torch.from_numpy(np.argsort(np.concatenate(order)))]


def _come_out(graph: Graph, values: Values, tensors: list[Tensor], order: Tensor) -> bool:
    again = graph.run([tensor[order.to(tensor.device)] for tensor in tensors])
    return all(
        same(again[index], value[order.to(value.device)])
        for index, value in values.items()
        if graph.varies[index] and graph.leads_to_output[index] and index in graph.tensors
    )
