"""Plain gradient steps; updates of wide linear layers are stored as low-rank factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

from ....errors import LossStructureError
from ...elementary import ElementaryNorms
from ...execution import Mapped
from ...factored import FactoredParameters
from ...kfac.layers import linear_layers
from ...layout import Named, Vector
from ...task import Samples
from ..base import InnerProblem, OfOne
from .rules import PlainSteps
from .steps import OfBoth, Pair, StepsMap


class FactoredSteps(StepsMap):
    """K steps along the gradient, with θ as :class:`~l2l_influence.bilevel.factored.FactoredParameters`.

    Args:
        problem: the inner problems.
        rule, steps: step sizes and number of steps.
        rows: for each weight that is in factors, how many rows pass through its layer; see :func:`wide_layers`.
    """

    def __init__(self, problem: InnerProblem, rule: PlainSteps, steps: int, rows: Mapping[str, int]) -> None:
        super().__init__(problem)
        self._rule, self._count, self._rows = rule, steps, rows

    @cached_property
    def point(self) -> FactoredParameters:
        return vmap(lambda samples: self._steps(samples)(self.problem.lam, samples.w))(self.problem.samples)

    @cached_property
    def theta(self) -> Tensor:
        theta_layout = self.problem.theta_layout
        initial = theta_layout.unravel(self.problem.initial)
        return vmap(lambda point: point.flat(initial, theta_layout))(self.point)

    def _steps(self, samples: Samples) -> Callable[..., FactoredParameters]:
        problem = self.problem

        def steps(lam: Vector, w: Tensor) -> FactoredParameters:
            theta = FactoredParameters.start(self._initial(lam), self._rows)
            for k in range(self._count):
                slope = problem.objective.slope_of_one(lam, theta, samples._replace(w=w), self._rows)
                theta = theta.stepped(self._rule.rate(k), slope)
            return theta

        return steps

    def _ends(self, samples: Samples) -> OfBoth:
        steps, theta_layout = self._steps(samples), self.problem.theta_layout
        return lambda lam, w: steps(lam, w).flat(self._initial(lam), theta_layout)

    def _initial(self, lam: Vector) -> Named:
        """θ_0(λ) by name."""
        return self.problem.theta_layout.start_by_name(self.problem.layout.unravel(lam))

    def sum_of_totals(self, weight: Tensor, value: OfOne, *given: Any) -> Tensor:
        """Differentiates the sum over tasks, in which the gradient of a wide weight is one product for all of them."""
        layout = self.problem.layout

        def total(lam: Named) -> Tensor:
            def one(samples: Samples, *given: Any) -> Tensor:
                return value(lam, self._steps(samples)(lam, samples.w), *given)

            return torch.dot(weight, vmap(one)(self.problem.samples, *given))

        try:
            with ElementaryNorms():  # a gradient that is mapped over tasks is differentiated here
                return layout.ravel(grad(total)(layout.unravel(self.problem.lam)))
        except LossStructureError:  # a normalisation that can't be recomposed
            return super().sum_of_totals(weight, value, *given)

    # With λ by name, no flat vector is assembled for each use of one of its tensors.

    def _push(self, function: OfBoth, point: Pair, v: Pair) -> Pair:
        unravel = self.problem.layout.unravel
        value, along, *_ = jvp(function, (unravel(point[0]), point[1]), (unravel(v[0]), v[1]))
        return value, along

    def _slopes(self, value: OfBoth, point: Pair) -> tuple[Pair, Tensor]:
        layout = self.problem.layout
        (by_lam, by_w), found = grad_and_value(value, argnums=(0, 1))(layout.unravel(point[0]), point[1])
        return (layout.ravel(by_lam), by_w), found


NARROW = 4
"""A weight is stored in factors if they are at least this many times smaller than it: smaller savings are not worth the
additional products."""


def wide_layers(problem: InnerProblem, steps: int) -> dict[str, int]:
    """The weights of linear layers with few rows compared with their size, and how many rows pass through each layer.

    There are none if the loss differs from step to step, and with it the rows; or if tasks are not mapped.
    """
    if problem.objective.steps_differ or not isinstance(problem.execution, Mapped):
        return {}
    lam, theta = problem.layout.unravel(problem.lam), problem.theta_layout.unravel(problem.initial)
    x, y, _ = problem.samples.of_task(0)

    def narrow(rows: int, weight: Tensor) -> bool:
        return NARROW * steps * rows * sum(weight.shape) <= weight.numel()

    layers = linear_layers(lambda theta: problem.objective.losses_by_name(lam, theta, x, y), theta, len(y), narrow)
    if not layers or not _sees_all(problem, FactoredParameters.start(theta, layers)):
        return {}
    return {name: layer.rows for name, layer in layers.items()}


def _sees_all(problem: InnerProblem, theta: FactoredParameters) -> bool:
    """Whether the outer loss, too, uses these weights only in ways that are seen."""
    return problem.outer is None or bool(problem.outer(theta).isfinite().all())
