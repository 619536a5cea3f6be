"""Deviations so large that all else vanishes beside them, and what of their sums stays in the range of float32.

Layers, rectifiers, additions and pools are positively homogeneous but for their shifts: f(s·x) = s·f(x) for s > 0. A
deviation that exceeds the fault-free results by 2⁷⁰ therefore travels on divided by 2⁴⁰, and the outputs are multiplied
by 2⁴⁰ again: the fault-free values and shifts, which are not divided, come in 2⁴⁰ times too large, which is still less
than what rounding does to the deviation. Nothing can overflow on this way. What the plain engine's sums do is told by
the inequality of Cauchy and Schwarz: every partial sum of Σ w·x lies within ‖w‖·‖x‖, whatever the order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from saboteur.levels.software.engine.graph import Graph, Values
from saboteur.levels.software.engine.operators import Adding, Linear, Mixing, Operator, Pointwise

LARGEST = 0.9 * float(np.finfo(np.float32).max)
"""The rest of the range is for rounding, and for shifts and fault-free terms, which are smaller still."""

SCALE = 2.0**40
LEAST_SCALED = 2.0**70
"""Deviations beyond this multiple of the fault-free result travel divided by ``SCALE``."""


@dataclass(frozen=True)
class Amplification:
    """The largest values or partial sums in the plain engine's way through a call, without its shifts.

    Attributes:
        whole: for a first argument of norm 1; a further argument is added. Infinite where the call is not homogeneous.
            The norm is that of Euclid, or of an average's largest channel the sum of absolute values.
        channel: float64 [channels], for a first argument of which one channel has norm 1 and the others nothing.
        averages: whether values of each channel are averaged, which plainly means that they are summed first.
    """

    whole: float
    channel: Tensor | None = None
    averages: bool = False


UNKNOWN = Amplification(math.inf)


def amplification(graph: Graph, op: Operator | None, index: int, values: Values, rectified: bool) -> Amplification:
    """How large values get in a call.

    Args:
        graph: what is computed.
        op: the call, if it is understood.
        index: its node.
        values: the result of every call for a few inputs.
        rectified: whether a rectifier follows, which makes nothing of negative infinity; a result that is larger than
            the sums of a layer, because its batch norm enlarges them, is then seen in what comes after.
    """
    if isinstance(values[index], int | float | torch.Size):
        return Amplification(0.0)
    if isinstance(op, Mixing):
        return _of_layer(graph, op, rectified)
    if isinstance(op, Adding) or (isinstance(op, Pointwise) and op.rectifier):
        return Amplification(1.0)
    if isinstance(op, Linear):
        return Amplification(1.0, averages=op.gain < 1)
    return UNKNOWN


def _of_layer(graph: Graph, op: Mixing, rectified: bool) -> Amplification:
    channels = op.weight.double().flatten(2) if op.spatial else op.weight.double()[:, :, None]
    factors = [1 / op.scale.double().abs()]
    module = graph.nodes[op.index].module
    if isinstance(module, _NormBase) and module.running_var is not None:
        factors.append(factors[0] * torch.rsqrt(module.running_var.double() + module.eps))
    if not rectified:
        factors.append(torch.ones_like(factors[0]))
    factor = torch.stack(factors).amax(0)
    whole = float((factor * channels.norm(dim=(1, 2))).nan_to_num(math.inf).max())
    channel = (factor[:, None] * channels.norm(dim=2)).nan_to_num(math.inf).amax(0)
    return Amplification(max(1.0, whole), channel.clamp(min=1.0).cpu())
