"""Newton's method with a backtracking line search, for many small problems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = 30
SUFFICIENT_DECREASE = 1e-4
PATIENCE = 5


@dataclass(frozen=True)
class Minimum:
    """Where each row's search ended.

    Attributes:
        point: ``[B, Q]``, of the smallest gradient seen.
        residual: ``[B]``, ‖gradient‖ there, relative to ``scale``.
        iterations: Newton steps taken.
    """

    point: Tensor
    residual: Tensor
    iterations: int


def minimise(
    value: Callable[[Tensor], Tensor],
    gradient: Callable[[Tensor], Tensor],
    direction: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    scale: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Minimum:
    """Minimise each row's function, to the tolerance or until nothing more is gained.

    Piecewise smooth functions (ReLU, max-pooling) often have their minimum on a kink, where no gradient vanishes and
    Newton steps zigzag: the search ends when, over a few steps, no row's value or gradient falls noticeably.

    Args:
        value: ``[B, Q] -> [B]``.
        gradient: ``[B, Q] -> [B, Q]``.
        direction: ``(point, gradient) -> step``, ``[B, Q]``; a row that is not a descent direction falls back to
            minus the gradient.
        start: ``[B, Q]``.
        scale: ``[B]``; the search stops a row at ‖gradient‖ ≤ tolerance · scale.
        tolerance: relative to ``scale``.
        max_iterations: Newton steps.
    """
    point, slope = start, gradient(start)
    best, smallest = point, slope.norm(dim=-1)
    progress = _Progress(value(point), smallest)
    iterations = 0
    while iterations < max_iterations and bool((smallest > tolerance * scale).any()):
        iterations += 1
        step = _descent(direction(point, slope), slope)
        moved = _line_search(value, point, step, slope)
        if torch.equal(moved, point):
            break
        point, slope = moved, gradient(moved)
        size = slope.norm(dim=-1)
        best = torch.where((size < smallest).unsqueeze(-1), point, best)
        smallest = torch.minimum(size, smallest)
        if iterations % PATIENCE == 0 and progress.stalled(value(point), smallest, smallest > tolerance * scale):
            break
    return Minimum(best, smallest / torch.where(scale > 0, scale, torch.ones_like(scale)), iterations)


class _Progress:
    """Whether the last few steps gained anything."""

    def __init__(self, value: Tensor, slope: Tensor) -> None:
        self._first, self._value, self._slope = value, value, slope

    def stalled(self, value: Tensor, slope: Tensor, unfinished: Tensor) -> bool:
        lower = self._value - value > 1e-3 * (self._first - value)
        flatter = slope < 0.5 * self._slope
        self._value, self._slope = value, slope
        return not bool(((lower | flatter) & unfinished).any())


def _descent(step: Tensor, slope: Tensor) -> Tensor:
    downhill = ((step * slope).sum(-1) < 0) & step.isfinite().all(-1)
    return torch.where(downhill.unsqueeze(-1), step, -slope)


def _line_search(value: Callable[[Tensor], Tensor], point: Tensor, step: Tensor, slope: Tensor) -> Tensor:
    """Halve each row's step until its value falls enough; a row that never does stays where it is."""
    at = value(point)
    expected = SUFFICIENT_DECREASE * (step * slope).sum(-1)
    # Next to the minimum the decrease drowns in rounding: a value equal to within rounding is accepted there.
    rounding = 10 * torch.finfo(at.dtype).eps * at.abs()
    length = torch.ones_like(at)
    for _ in range(HALVINGS):
        refused = ~(value(point + length.unsqueeze(-1) * step) <= at + length * expected + rounding)
        if not bool(refused.any()):
            return point + length.unsqueeze(-1) * step
        length = torch.where(refused, length / 2, length)
    return point + torch.where(refused, 0.0, length).unsqueeze(-1) * step
