"""Fault-free results of every call for a chunk of the inputs, kept while trials start from them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from saboteur.levels.software.engine.batching import Batching
from saboteur.levels.software.engine.graph import Graph, Node, Untraceable, Values
from saboteur.levels.software.runner import Runner


class Chunk:
    """The fault-free results for consecutive batches of the workload, in the bits of the plain engine.

    Args:
        graph: what is computed.
        runner: gives the inputs and the batches they are run in.
        batching: in which batches the same bits come out.
        inputs: which, from the start of a batch on.
        expected: the golden outputs of ``inputs``.
        skipped: nodes whose results are not kept.

    Raises:
        Untraceable: when the graph does not give the golden bits.
    """

    def __init__(
        self,
        graph: Graph,
        runner: Runner,
        batching: Batching,
        inputs: range,
        expected: NDArray,
        skipped: Collection[int],
    ):
        self.graph = graph
        self.inputs = inputs
        self.batching = batching
        self._rows: dict[int, Tensor] = {}
        self._padded: dict[tuple[int, tuple[int, int]], Tensor] = {}
        self._plane_norms: dict[int, Tensor] = {}
        self._whole_norms: dict[int, Tensor] = {}
        parts: dict[int, list[Tensor]] = {}
        for batch in runner.batches(np.arange(inputs.start, inputs.stop)):
            rows, kept = torch.from_numpy(batch.rows), torch.from_numpy(batch.kept)
            values = graph.run([tensor[rows.to(tensor.device)] for tensor in runner.tensors])
            for index, value in values.items():
                used = graph.varies[index] and graph.leads_to_output[index] and index not in skipped
                if used and index in graph.tensors:
                    parts.setdefault(index, []).append(value[kept.to(value.device)])
            self.constants = {index: value for index, value in values.items() if not graph.varies[index]}
        self.values: Values = {index: torch.cat(parts.pop(index)) for index in list(parts)}
        outputs = self.values[graph.output].cpu().numpy()
        if outputs.dtype != expected.dtype or not np.array_equal(outputs, expected):
            raise Untraceable("its graph does not give the golden outputs bit for bit")

    def result(self, node: int) -> Tensor:
        """The result of ``node`` [inputs, ...], in the plain engine's bits, also where it is not kept as a rule."""
        if node not in self.values:
            call = self.graph.nodes[node]
            size, parts = self.batching.size, []
            for start in range(0, len(self.inputs), size):
                rows = torch.arange(start, start + size).clamp(max=len(self.inputs) - 1)
                inputs = {
                    source: self.result(source)[rows] if self.graph.varies[source] else self.constants[source]
                    for source in call.inputs
                }
                parts.append(self.graph.call(call, inputs))
            self.values[node] = torch.cat(parts)[: len(self.inputs)]
        return self.values[node]

    def again(
        self,
        until: int,
        rows: Tensor,
        changed: Values,
        anew: Collection[int] = (),
        call: Callable[[Node, Values], Any] | None = None,
    ) -> Any:
        """The result of node ``until`` for a batch in which something is not as in the fault-free run.

        Args:
            until: the node.
            rows: int64 [batch size], the inputs, counted from the chunk's first.
            changed: results for the batch, by node.
            anew: nodes whose calls are made, as those of all that follow them or ``changed``.
            call: makes a call; by default :meth:`.graph.Graph.call`.
        """
        graph, call = self.graph, call or self.graph.call
        values, wanted, calls = dict(changed), {until}, []
        dirty = graph.reached_from({*changed, *anew}) if anew else graph.after(list(changed))
        for node in reversed(graph.nodes[: until + 1]):
            index = node.index
            if index not in wanted or index in values:
                continue
            if index in dirty or (graph.varies[index] and index not in self.values):
                calls.append(node)
                wanted.update(node.inputs)
            else:
                values[index] = self.values[index][rows] if graph.varies[index] else self.constants[index]
        for node in reversed(calls):
            values[node.index] = call(node, values)
        return values[until]

    def rows(self, node: int) -> Tensor:
        """The result of ``node`` as runs from the middle of the graph make it, from which single inputs are picked.

        Maps lie channels last in memory. Where :meth:`adopt` gave none it is the plain engine's result.
        """
        if node not in self._rows:
            value = self.result(node)
            self._rows[node] = value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
        return self._rows[node]

    def picked(self, node: int, row: Tensor) -> Tensor:
        """The results of ``node`` for the inputs ``row`` [n], as :meth:`rows` has them."""
        return picked(self.rows(node), row)

    def adopt(self, results: Values) -> None:
        """Take fault-free results [inputs, ...] by node in the bits of runs from the middle of the graph.

        Deviations measured against these are free of what the order of summation does, however small they are.
        """
        for node, value in results.items():
            if node in self.values:
                self._rows[node] = value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value

    def padded(self, node: int, padding: tuple[int, int]) -> Tensor:
        """The result of ``node`` with zeros around it, channels last: [inputs, height, width, channels]."""
        if (node, padding) not in self._padded:
            maps = self.rows(node).permute(0, 2, 3, 1)
            around = (0, 0, padding[1], padding[1], padding[0], padding[0])
            self._padded[node, padding] = F.pad(maps, around) if any(padding) else maps
        return self._padded[node, padding]

    def plane_norms(self, node: int) -> Tensor:
        """The Euclidean norm of each channel of the result of ``node``: float64 [inputs, channels]."""
        if node not in self._plane_norms:
            value = self.values[node]
            norms = torch.linalg.vector_norm(value.reshape(*value.shape[:2], -1), dim=2, dtype=torch.float64).cpu()
            self._plane_norms[node] = norms
        return self._plane_norms[node]

    def whole_norms(self, node: int) -> Tensor:
        """The Euclidean norm of the result of ``node``: float64 [inputs]."""
        if node not in self._whole_norms:
            if node in self.values:
                value = self.values[node].reshape(len(self.inputs), -1)
                norms = torch.linalg.vector_norm(value, dim=1, dtype=torch.float64).cpu()
            else:
                norms = torch.ones(len(self.inputs), dtype=torch.float64)
            self._whole_norms[node] = norms.clamp(min=1e-30)
        return self._whole_norms[node]


def picked(values: Tensor, chosen: Tensor) -> Tensor:
    """A copy of ``values[chosen]`` for indices ``chosen`` [n], each row of memory copied in one piece."""
    chosen = chosen.to(values.device)
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
    return values.index_select(0, chosen)
