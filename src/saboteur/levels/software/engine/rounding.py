"""How far rounding may move the outputs of a run: a probabilistic error analysis, to first order.

Every rounding t multiplies an intermediate result s_t by 1 + δ_t with |δ_t| ≤ u (Higham 2002, eq. 2.4). It moves
output k by J_kt·s_t·δ_t to first order, J_kt being the output's derivative. The model of rounding errors is that of
Connolly, Higham and Mary (SIAM J. Sci. Comput. 43(1), 2021), weaker than that of Higham and Mary (SIAM J. Sci. Comput.
41(5), 2019), who take the δ_t to be independent: each has mean zero, whatever those before it are. Their weighted sum
is then a martingale, and by the inequality of Azuma and Hoeffding, as Ipsen and Zhou (SIAM J. Matrix Anal. Appl.
41(4), 2020) use it for inner products,

    P(|Σ_t J_kt s_t δ_t| > λ u √(Σ_t J_kt² s_t²)) ≤ 2 exp(−λ²/2).

An inner product of m terms, summed in any order, blocked, fused or not, has m products with Σ s² ≤ v² and m − 1 sums
with s ≤ v = Σ|w||x|, so that Σ s² ≤ m v². The v follow from the fault-free results. The derivatives are those of a
sample of fault-free inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from saboteur.levels.software.engine import forms
from saboteur.levels.software.engine.golden import Chunk
from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.operators import Adding, Linear, Mixing, Operator, Pointwise, Scaling
from saboteur.levels.software.runner import differentiable

log = logging.getLogger(__name__)

UNIT = 2.0**-24
"""The unit roundoff u of float32, rounded to nearest."""

DEVIATIONS = 9.0
"""λ: exceeded with a probability of 5·10⁻¹⁸ by one output, of 10⁻⁸ by any of 1.7·10⁸ inferences with 10 outputs."""

_INPUTS = 32
"""Derivatives are taken for so many inputs."""

_LEAST_INPUTS = 8
"""And for no more than these where results are large, as long as there is room for them."""

_SAMPLE_BYTES = 2**28

_OUTPUTS = 16
"""And for so many outputs of each, spread over the order of their values."""

_OF_NORM = 8
"""Roundings of a batch norm's constants, and of a layer's weights into which it is folded."""

_OF_FUNCTION = 64
"""A function of single values is taken to be off by up to 8 u, as by 64 roundings."""

_FAULT_FREE = 8
"""Runs whose roundings count where they are those of a fault-free run.

A deviation is that of a faulty run from a fault-free one, in the plain engine's order of summation or in another one.
That makes four runs. The two of a pair may round alike, at different derivatives: (J − J′)² ≤ 2 (J² + J′²).
"""

_DEVIATING = 2
"""Runs whose roundings grow with the deviation: the faulty one in either order."""

_PERRON_STEPS = 30

_TRIED = 4


@dataclass(frozen=True)
class Allowance:
    """How far rounding may move the outputs of runs, or what they deviate by.

    Attributes:
        error: float64 [inputs], of runs close to the fault-free one.
        growing: float64 [inputs], what is added for a deviation as large as the fault-free results.
    """

    error: Tensor
    growing: Tensor

    def of(self, row: Tensor, growth: Tensor) -> Tensor:
        """For runs [n] of the inputs ``row`` that deviate by ``growth`` times the fault-free results: [n]."""
        return self.error[row] + self.growing[row] * growth

    def at_least(self, error: float) -> Allowance:
        """The same, or ``error``·(1 + growth) where that is more."""
        return Allowance(self.error.clamp(min=error), self.growing.clamp(min=error))


@dataclass(frozen=True)
class _Roundings:
    """Those of one operator.

    Attributes:
        node: the result that is rounded.
        reads: the node whose norm tells how large the sums v are.
        own: how many each value has, in v².
        shared: how many all values of a channel share.
        reach: ‖v‖ for a change of ``reads`` is at most so many times its norm.
        least: the norm of what v holds whatever ``reads`` is.
        sums: v [inputs, ...] given the values of a run.
    """

    node: int
    reads: int
    own: int
    shared: int
    reach: float
    least: float
    sums: Callable[[Values], Tensor]

    def size(self, values: Tensor) -> Tensor:
        """A bound on ‖v‖ where ``reads`` has the ``values`` [inputs, ...]: float64 [inputs]."""
        return self.reach * _norms(values) + self.least


class Rounding:
    """Bounds what rounding does to the outputs of runs that deviate from the fault-free one.

    Where every result deviates by no more than ``growth`` times its fault-free norm, v(x + d) ≤ v(x) + |W||d|. The
    norms of the shares add up (Minkowski), and ‖|W||d|‖ ≤ ‖|W|‖·growth·‖x‖. What v(x) meets is known: √(Σ J²v²) is
    taken from the sample, relative to the bound on ‖v‖. |W||d| may lie where the derivative is largest: the largest
    one of all values, outputs and inputs of the sample is taken.

    That derivatives of deviating runs are no larger is an assumption. Calls that are not understood are left out.

    Args:
        graph: what is computed.
        operators: those that are understood.
        tensors: the model's arguments for the sample.
    """

    def __init__(self, graph: Graph, operators: Mapping[int, Operator], tensors: Sequence[Tensor]):
        self._found: list[tuple[_Roundings, float, float]] = []
        if not operators:
            return
        try:
            with differentiable():
                values = _run(graph, [tensor.clone() for tensor in tensors])
                run = {i: value.detach() if isinstance(value, Tensor) else value for i, value in values.items()}
                roundings = list(_roundings(graph, operators, run))
                self._found = _with_derivatives(roundings, values[graph.output], values, run)
        except RuntimeError as error:  # PyTorch's, where it cannot differentiate something
            log.info("exact engine: rounding is measured, not analysed, as derivatives cannot be had: %s", error)

    def allowance(self, chunk: Chunk) -> Allowance:
        """The allowance for the inputs of a chunk."""
        near, far = torch.zeros(2, len(chunk.inputs), dtype=torch.float64)
        for one, met, steepest in self._found:
            values = chunk.values[one.reads]
            near += (met * one.size(values)).square()
            far += (steepest * one.reach * _norms(values)).square()
        return Allowance(DEVIATIONS * UNIT * near.sqrt(), DEVIATIONS * UNIT * far.sqrt())


def sample_size(inputs: int, per_input: float, memory: int) -> int:
    """For how many of ``inputs`` derivatives are taken, where their results take ``per_input`` of ``memory`` bytes."""
    affordable = max(_LEAST_INPUTS, int(_SAMPLE_BYTES / per_input))
    return max(1, min(_INPUTS, inputs, affordable, int(memory / (2 * per_input))))


def _run(graph: Graph, tensors: Sequence[Tensor]) -> Values:
    """The result of every call, in a way that outputs can be differentiated by all that vary."""
    values: Values = dict(zip(graph.arguments, tensors, strict=True))
    for node in graph.nodes:
        value = values[node.index] if node.index in values else graph.call(node, values)
        starts = isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad
        values[node.index] = value.requires_grad_() if starts and graph.varies[node.index] else value
    return values


def _roundings(graph: Graph, operators: Mapping[int, Operator], run: Values) -> Iterator[_Roundings]:
    """Where rounding happens; a rectifier, a maximum and what moves values are exact."""
    folded = {op.layer for op in operators.values() if isinstance(op, Mixing) and op.layer != op.index}
    for index, op in operators.items():
        if index in folded or not graph.leads_to_output[index]:
            continue
        if isinstance(op, Mixing):
            yield _of_layer(graph, op, run)
        elif isinstance(op, Scaling):
            yield _of_norm(graph, op, run)
        elif isinstance(op, Adding):
            yield _Roundings(index, index, 1, 0, 1.0, 0.0, lambda values, own=index: values[own].abs())
        elif isinstance(op, Pointwise) and not op.rectifier:
            yield _of_function(op, run)
        elif isinstance(op, Linear) and not _only_moves(op, run):
            yield _of_average(graph, op, run)


def _of_layer(graph: Graph, op: Mixing, run: Values) -> _Roundings:
    """Of a layer of m terms a value: m products and sums, one more with a bias, two more with a batch norm."""
    (source,), constant = op.inputs, torch.zeros_like(op.scale) if op.bias is None else op.bias.abs()
    own, shared = op.weight[0].numel() + (op.bias is not None), 0
    if op.index != op.layer:
        layer = graph.nodes[op.layer].module
        constant, own, shared = constant + _behind_shift(graph, op.index, op.scale, layer), own + 2, _OF_NORM
    sizes = replace(op, weight=op.weight.abs(), bias=None)

    def sums(values: Values) -> Tensor:
        return sizes.run(values[source].abs(), op.padding) + _along(constant, run[op.index])

    matrix = forms.symbol(sizes, (1, 1))[0].real if op.spatial else sizes.weight
    return _Roundings(op.index, source, own, shared, norm_bound(matrix), _spread(constant, run[op.index]), sums)


def _of_norm(graph: Graph, op: Scaling, run: Values) -> _Roundings:
    """Of a batch norm by itself: a product and a sum."""
    (source,), scale = op.inputs, op.scale.abs()
    constant = op.shift.abs() + _behind_shift(graph, op.index, op.scale, None)

    def sums(values: Values) -> Tensor:
        return values[source].abs() * _along(scale, run[op.index]) + _along(constant, run[op.index])

    return _Roundings(op.index, source, 2, _OF_NORM, float(scale.max()), _spread(constant, run[op.index]), sums)


def _behind_shift(graph: Graph, norm: int, scale: Tensor, layer: nn.Module | None) -> Tensor:
    """What the constant of a batch norm is the difference of, beyond its own size: [channels]."""
    mean, bias = getattr(graph.nodes[norm].module, "running_mean", None), getattr(layer, "bias", None)
    sizes = sum((part.detach().abs() for part in (mean, bias) if part is not None), torch.zeros_like(scale))
    return 2 * scale.abs() * sizes


def _of_function(op: Pointwise, run: Values) -> _Roundings:
    (source,) = op.inputs
    at_zero = op.function(torch.zeros_like(run[source][:1]))

    def sums(values: Values) -> Tensor:
        return values[source].abs() + values[op.index].abs()

    return _Roundings(op.index, source, _OF_FUNCTION, 0, 1 + op.slope, float(_norms(at_zero)), sums)


def _of_average(graph: Graph, op: Linear, run: Values) -> _Roundings:
    """Of an average, of no more values than a channel has: their sums and a division."""
    (source,) = op.inputs

    def sums(values: Values) -> Tensor:
        return graph.call(graph.nodes[op.index], {**values, source: values[source].abs()})

    return _Roundings(op.index, source, run[source][0, 0].numel(), 0, op.gain, 0.0, sums)


def _only_moves(op: Linear, run: Values) -> bool:
    """Whether every value of the result is one of those it takes, or zero, for a few inputs."""
    taken = torch.cat([run[op.index].new_zeros(1), *(run[source][:_TRIED].flatten() for source in op.inputs)])
    return bool(torch.isin(run[op.index][:_TRIED], taken).all())


def _with_derivatives(
    roundings: Sequence[_Roundings], outputs: Tensor, values: Values, run: Values
) -> list[tuple[_Roundings, float, float]]:
    """With √(Σ J²v²) relative to the bound on ‖v‖, and with the largest derivative, each times its roundings."""
    sums = [_by_channel(one.sums(run).detach()) for one in roundings]
    sizes = [one.size(run[one.reads]).clamp(min=1e-30) for one in roundings]
    results, flat = [values[one.node] for one in roundings], outputs.flatten(1)
    order = flat.detach().argsort(dim=1)
    ranks = torch.linspace(0, flat.shape[1] - 1, min(_OUTPUTS, flat.shape[1])).long().tolist()
    found = torch.zeros(2, len(roundings), dtype=torch.float64)
    for rank in ranks if roundings else ():
        gradients = torch.autograd.grad(flat.gather(1, order[:, rank, None]).sum(), results, retain_graph=True)
        for place, (one, gradient) in enumerate(zip(roundings, gradients, strict=True)):
            slopes = _by_channel(gradient).abs()
            moved = slopes * sums[place]
            near = _FAULT_FREE * one.own * moved.square().sum((1, 2)) + one.shared * moved.sum(2).square().sum(1)
            far = _DEVIATING * one.own * slopes.amax().square() + one.shared * slopes.square().sum(2).amax()
            largest = torch.stack([(near.double().cpu() / sizes[place].square()).amax(), far.double().cpu()])
            found[:, place] = torch.maximum(found[:, place], largest)
    met, steepest = found.sqrt().tolist()
    return list(zip(roundings, met, steepest, strict=True))


def norm_bound(matrix: Tensor) -> float:
    """An upper bound on the spectral norm of a ``matrix`` without negative values.

    For any x > 0 the largest eigenvalue of such a square matrix M is at most max (Mx)_i / x_i (Collatz 1942,
    Wielandt 1950); it is taken for MᵀM after some steps of the power method.
    """
    matrix = matrix.detach().double()
    x = matrix.new_ones(matrix.shape[1])
    for _ in range(_PERRON_STEPS):
        x = matrix.T @ (matrix @ x)
        x = (x / x.amax().clamp(min=1e-300)).clamp(min=1e-12)
    return math.sqrt(float(((matrix.T @ (matrix @ x)) / x).max()))


def _along(of_channels: Tensor, result: Tensor) -> Tensor:
    """[channels] in a shape that is added to, or multiplied with, ``result`` [inputs, channels, ...]."""
    return of_channels.reshape(-1, *[1] * (result.dim() - 2))


def _spread(of_channels: Tensor, result: Tensor) -> float:
    """The norm of a result of which each channel is ``of_channels`` [channels] everywhere."""
    return float(of_channels.double().norm()) * math.sqrt(result[0, 0].numel())


def _by_channel(values: Tensor) -> Tensor:
    """[inputs, channels, positions]."""
    return values.reshape(*values.shape[:2], -1)


def _norms(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1).double().cpu()
