"""Quadratic forms that bound how far the outputs move, for convolutions on maps of a known size.

A form F bounds every output's deviation by √(Σ_ω x̂(ω)ᴴ F(ω) x̂(ω) / n) for a deviation x of one node's result, x̂
its discrete Fourier transform on a circular grid of n points that is so much larger than the map that no window
reads around its edge. There a convolution with zero padding, of which only the map is kept, is a product with its
symbol, exactly, so that nothing has to be said about frequencies between those of the grid.

Rectifiers enter by the multipliers of Fazlyab et al. (NeurIPS 2019): for s = S·z with S diagonal and entries in
[0, 1], sᵀT(z − s) ≥ 0 for every diagonal T ≥ 0; leaving out what lies beside the map is an entry of 0. Forms are
passed from a layer to the one before without being rounded up to a number in between, which for a chain of n layers
gains about √2ⁿ over the product of their norms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from saboteur.levels.software.engine.operators import Mixing

_MOST_WORK = 3e8
"""Grid points times channels cubed beyond which no form is worked out."""

_MULTIPLIERS = (0.51, 0.55, 0.6, 0.7, 0.85, 1.0, 1.4, 2.0, 4.0)
_SEARCHED = 8
"""Multipliers are compared on every so many-th frequency."""

Grid = tuple[int, int]
Sides = tuple[int, int]


@dataclass(frozen=True)
class Form:
    """A form for the deviation of one node.

    Attributes:
        grid: the points of the circular grid, for strided layers that of their results.
        values: complex128 [frequencies, channels · phases, channels · phases], Hermitian; half of the frequencies,
            the others being conjugate. Phases are the positions within a stride.
        phases: how many.
    """

    grid: Grid
    values: Tensor
    phases: int = 1

    @property
    def whole(self) -> float:
        """The gain for any deviation."""
        return math.sqrt(max(float(torch.linalg.eigvalsh(self.values)[:, -1].max()), 0.0))

    @property
    def channel(self) -> Tensor:
        """The gains for deviations confined to one channel: float64 [channels]."""
        size = self.values.shape[1] // self.phases
        own = self.values.reshape(-1, self.phases, size, self.phases, size).diagonal(dim1=2, dim2=4)
        return torch.linalg.eigvalsh(own.permute(0, 3, 1, 2))[..., -1].amax(0).clamp(min=0).sqrt()

    def scaled(self, scale: Tensor) -> Form:
        """The form before each channel is multiplied by ``scale`` [channels]."""
        factor = scale.double().cpu()
        return Form(self.grid, self.values * factor[:, None] * factor)

    def before_rectifier(self) -> Form:
        """The form before a function with secants in [0, 1], with one multiplier for all values.

        For a = S·u, multiplier κ: aᴴFa ≤ uᴴPu with P = κ² (2κ − F)⁻¹, for any κ ≥ λ_max(F).
        """
        largest = float(torch.linalg.eigvalsh(self.values)[:, -1].max()) * (1 + 1e-9)
        if not largest > 0:
            return self
        rest = 2 * torch.eye(self.values.shape[1], dtype=self.values.dtype) - self.values / largest
        return Form(self.grid, _hermitian(largest * torch.linalg.inv(rest)))


def flat(gain: float, channels: int, grid: Grid) -> Form:
    """The form that says no more than a gain."""
    return Form(grid, (gain**2 * torch.eye(channels, dtype=torch.complex128)).repeat(_frequencies(grid), 1, 1))


def fits(form: Form, least: Grid) -> bool:
    """Whether the grid of a form is at least as large."""
    return all(points >= needed for points, needed in zip(form.grid, least, strict=True))


def least_grid(op: Mixing, before: Sides, after: Sides) -> Grid:
    """The smallest grid of results on which no window of a convolution from sides ``before`` reads around the edge."""
    rows, columns = (
        max(result, -(-max(size + padding, (result - 1) * stride + dilation * (kernel - 1) - padding + 1) // stride))
        for size, result, kernel, stride, padding, dilation in zip(
            before, after, op.weight.shape[2:], op.stride, op.padding, op.dilation, strict=True
        )
    )
    return rows, columns


def reach(op: Mixing) -> int:
    """How far a window of a convolution reaches beyond the map, along either axis."""
    axes = zip(op.weight.shape[2:], op.padding, op.dilation, strict=True)
    return max(max(padding, dilation * (kernel - 1) - padding) for kernel, padding, dilation in axes)


def affordable(grid: Grid, channels: int) -> bool:
    """Whether forms for so many channels times phases are worked out."""
    return _frequencies(grid) * channels**3 <= _MOST_WORK


def symbol(op: Mixing, grid: Grid) -> Tensor:
    """What a convolution does to each frequency: complex128 [frequencies, channels out, phases · channels in]."""
    weight = op.weight.detach().double().cpu()
    rows, columns = _turns(grid)
    found = torch.zeros(len(rows), weight.shape[0], math.prod(op.stride), weight.shape[1], dtype=torch.complex128)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            down, aside = row * op.dilation[0] - op.padding[0], column * op.dilation[1] - op.padding[1]
            phase = down % op.stride[0] * op.stride[1] + aside % op.stride[1]
            angle = rows * (down // op.stride[0]) + columns * (aside // op.stride[1])
            turn = torch.polar(torch.ones_like(angle), angle)
            found[:, :, phase] += turn[:, None, None] * weight[:, :, row, column]
    return found.flatten(2)


def selection(channels: Tensor, channels_in: int, phases: int, grid: Grid) -> Tensor:
    """The symbol of a shortcut that gives channel ``channels[c]`` at phase 0, or zero where that is negative."""
    found = torch.zeros(len(channels), phases * channels_in, dtype=torch.complex128)
    kept = torch.nonzero(channels >= 0).flatten()
    found[kept, channels[kept]] = 1
    return found.expand(_frequencies(grid), -1, -1)


def through(layer: Tensor, after: Form, phases: int) -> Form:
    """The form before a convolution, given its symbol."""
    return Form(after.grid, _hermitian(layer.mH @ (after.values @ layer)), phases)


def residual(first: Tensor, second: Tensor, shortcut: Tensor, after: Form, phases: int) -> Form:
    """The form for x in shortcut·x + second·S·first·x, for any S, given the form of the result and the symbols.

    With the multiplier τ for all neurons, F = Aᴴ P A + C (2τ − Bᴴ P B)⁻¹ Cᴴ for first W, second B, shortcut A and
    C = Aᴴ P B + τ Wᴴ; the τ with the smallest norm is taken.
    """
    inner = _hermitian(second.mH @ (after.values @ second))
    outer = _hermitian(shortcut.mH @ (after.values @ shortcut))
    cross = shortcut.mH @ (after.values @ second)
    largest = float(torch.linalg.eigvalsh(inner)[:, -1].max())
    if not largest > 0:
        return Form(after.grid, outer, phases)

    def form(share: float, every: int) -> Tensor:
        size = inner.shape[1]
        rest = 2 * share * largest * torch.eye(size, dtype=inner.dtype) - inner[::every]
        coupling = cross[::every] + share * largest * first[::every].mH
        lower = torch.linalg.cholesky(rest)
        part = torch.linalg.solve_triangular(lower, coupling.mH, upper=False)
        return _hermitian(outer[::every] + part.mH @ part)

    norms = {share: float(torch.linalg.eigvalsh(form(share, _SEARCHED))[:, -1].max()) for share in _MULTIPLIERS}
    return Form(after.grid, form(min(norms, key=lambda share: norms[share]), 1), phases)


def _turns(grid: Grid) -> tuple[Tensor, Tensor]:
    """The angle of a step along either axis at each of half of the frequencies."""
    angles = [torch.arange(points, dtype=torch.float64) * (2 * math.pi / points) for points in grid]
    rows, columns = torch.meshgrid(angles[0], angles[1][: grid[1] // 2 + 1], indexing="ij")
    return rows.reshape(-1), columns.reshape(-1)


def _frequencies(grid: Grid) -> int:
    return grid[0] * (grid[1] // 2 + 1)


def _hermitian(values: Tensor) -> Tensor:
    return (values + values.mH) / 2
