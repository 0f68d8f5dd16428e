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
    Newton steps zigzag: a search ends when, over a few steps, neither its value nor its gradient falls much. A row
    that has ended stays where it is, so that what becomes of it does not depend on the others.

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
    point, slope, at = start, gradient(start), value(start)
    best, smallest = point, slope.norm(dim=-1)
    progress = _Progress(at, smallest)
    active = smallest > tolerance * scale
    iterations = 0
    while iterations < max_iterations and bool(active.any()):
        iterations += 1
        step = torch.where(active.unsqueeze(-1), _descent(direction(point, slope), slope), 0.0)
        length, at = _line_search(value, point, at, step, slope)
        point = point + length.unsqueeze(-1) * step
        slope = gradient(point)
        size = slope.norm(dim=-1)
        best = torch.where((size < smallest).unsqueeze(-1), point, best)
        smallest = torch.minimum(size, smallest)
        active = active & (length > 0) & (smallest > tolerance * scale)
        if iterations % PATIENCE == 0:
            active = active & progress.gained(at, smallest)
    return Minimum(best, smallest / torch.where(scale > 0, scale, torch.ones_like(scale)), iterations)


class _Progress:
    """Which rows gained anything by the last few steps: a value noticeably lower, in proportion to all that was gained
    since the first few (from far off, these gain so much that the rest would look like nothing), or a gradient half as
    large."""

    def __init__(self, value: Tensor, slope: Tensor) -> None:
        self._reference: Tensor | None = None
        self._value, self._slope = value, slope

    def gained(self, value: Tensor, slope: Tensor) -> Tensor:
        reference = value if self._reference is None else self._reference
        lower = self._value - value > 1e-3 * (reference - value)
        flatter = slope < 0.5 * self._slope
        self._reference, self._value, self._slope = reference, value, slope
        return lower | flatter


def _descent(step: Tensor, slope: Tensor) -> Tensor:
    downhill = ((step * slope).sum(-1) < 0) & step.isfinite().all(-1)
    return torch.where(downhill.unsqueeze(-1), step, -slope)


def _line_search(
    value: Callable[[Tensor], Tensor], point: Tensor, at: Tensor, step: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Halve each row's step until its value falls enough: the lengths, 0 where it never does, and the values there."""
    promised = (step * slope).sum(-1)
    # Next to the minimum the decrease drowns in the rounding of the values, and the step itself is to be trusted.
    eps = torch.finfo(at.dtype).eps
    resolution = eps ** (2 / 3) * at.abs()
    rounding = torch.where(-promised < resolution, resolution, 10 * eps * at.abs())
    length = torch.ones_like(at)
    for _ in range(HALVINGS):
        there = value(point + length.unsqueeze(-1) * step)
        refused = step.any(-1) & ~(there <= at + SUFFICIENT_DECREASE * length * promised + rounding)  # NaN is refused
        if not bool(refused.any()):
            return length, there
        length = torch.where(refused, length / 2, length)
    return torch.where(refused, 0.0, length), torch.where(refused, at, there)
