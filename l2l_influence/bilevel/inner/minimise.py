"""Newton's method with a backtracking line search, for many small problems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = 30
"""Of a step, before the line search gives up."""
SUFFICIENT_DECREASE = 1e-4
PATIENCE = 5
"""Newton steps between two checks of progress."""


@dataclass(frozen=True)
class Minimum:
    """The result of each row's search.

    Attributes:
        point: ``[B, Q]``, the point of the smallest gradient.
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
    """Minimise the function of each row, to the tolerance or until no more progress is made.

    Piecewise smooth functions (ReLU, max-pooling) often have their minimum on a kink, where no gradient vanishes and
    Newton steps zigzag: a search ends when neither its value nor its gradient has fallen much over a few steps. A row
    that has ended is not changed any more, so that its result does not depend on the other rows.

    Args:
        value: ``[B, Q] -> [B]``.
        gradient: ``[B, Q] -> [B, Q]``.
        direction: ``(point, gradient) -> step``, ``[B, Q]``; a row that is not a descent direction is replaced by minus
            the gradient.
        start: ``[B, Q]``.
        scale: ``[B]``; the search ends in a row at ‖gradient‖ ≤ tolerance · scale.
        tolerance: relative to ``scale``.
        max_iterations: at most this many Newton steps.
    """
    point, slope, current = start, gradient(start), value(start)
    best, smallest = point, slope.norm(dim=-1)
    progress = _Progress(current, smallest)
    active = smallest > tolerance * scale
    iterations = 0
    while iterations < max_iterations and bool(active.any()):
        iterations += 1
        step = torch.where(active.unsqueeze(-1), _descent(direction(point, slope), slope), 0.0)
        length, current = _line_search(value, point, current, step, slope)
        point = point + length.unsqueeze(-1) * step
        slope = gradient(point)
        size = slope.norm(dim=-1)
        best = torch.where((size < smallest).unsqueeze(-1), point, best)
        smallest = torch.minimum(size, smallest)
        active = active & (length > 0) & (smallest > tolerance * scale)
        if iterations % PATIENCE == 0:
            active = active & progress.made(current, smallest)
    return Minimum(best, smallest / torch.where(scale > 0, scale, torch.ones_like(scale)), iterations)


class _Progress:
    """Decides which rows made progress in the last few steps.

    A row did if its value fell noticeably, in proportion to the fall since the first check (before it, from a distant
    start, the value falls so much that later progress would look like nothing), or if its gradient was halved.
    """

    def __init__(self, value: Tensor, slope: Tensor) -> None:
        self._reference: Tensor | None = None
        self._value, self._slope = value, slope

    def made(self, value: Tensor, slope: Tensor) -> Tensor:
        reference = value if self._reference is None else self._reference
        lower = self._value - value > 1e-3 * (reference - value)
        flatter = slope < 0.5 * self._slope
        self._reference, self._value, self._slope = reference, value, slope
        return lower | flatter


def _descent(step: Tensor, slope: Tensor) -> Tensor:
    downhill = ((step * slope).sum(-1) < 0) & step.isfinite().all(-1)
    return torch.where(downhill.unsqueeze(-1), step, -slope)


def _line_search(
    value: Callable[[Tensor], Tensor], point: Tensor, current: Tensor, step: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Halve each row's step until its value falls enough. Returns step lengths, 0 where none is found, and the values
    there."""
    expected = (step * slope).sum(-1)
    # Close to the minimum the decrease is smaller than the rounding of the values: trust the step itself.
    eps = torch.finfo(current.dtype).eps
    resolution = eps ** (2 / 3) * current.abs()
    rounding = torch.where(-expected < resolution, resolution, 10 * eps * current.abs())
    length = torch.ones_like(current)
    for _ in range(HALVINGS):
        new = value(point + length.unsqueeze(-1) * step)
        enough = new <= current + SUFFICIENT_DECREASE * length * expected + rounding  # False for NaN
        refused = step.any(-1) & ~enough
        if not bool(refused.any()):
            return length, new
        length = torch.where(refused, length / 2, length)
    return torch.where(refused, 0.0, length), torch.where(refused, current, new)
