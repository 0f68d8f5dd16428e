"""Solutions that are the end of K steps, differentiated through the steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...elementary import ElementaryNorms
from ...execution import Execution
from ...objective import Objective
from ...task import Samples
from ..base import InnerMap, InnerProblem, OfOne, SecondDerivative

Pair = tuple[Tensor, Tensor]
"""A vector in the joint space of λ ``[P]`` and one task's sample weights w ``[n]``."""

OfBoth = Callable[..., Tensor]
"""A function of λ and w."""


class StepsMap(InnerMap):
    """The last iterate, and its derivatives by automatic differentiation through the steps.

    ``residual`` is 0, since θ is by definition the end of the steps. Steps are computed when θ is first needed; total
    gradients compute their own.

    A subclass says what the steps of one task are. The execution of the problem says how to differentiate a function of
    one task, and how to go through the tasks. Each task is differentiated first, and results are combined over tasks
    afterwards. The other order is not safe: torch 2.14 differentiates a mapped gradient of batch, layer or instance
    normalisation wrongly, by some 10 %, without a warning. Code that uses that order has to compute normalisation by
    elementary operations.
    """

    def __init__(self, problem: InnerProblem) -> None:
        self.problem = problem
        self.residual = torch.zeros_like(problem.samples.w[:, 0])

    @cached_property
    def theta(self) -> Tensor:
        return self._map(lambda samples: (self._ends(samples)(self.problem.lam, samples.w),))[0]

    @abstractmethod
    def _steps(self, samples: Samples) -> Callable[..., Any]:
        """The K steps of one task as a function of λ and the sample weights: ``[P]``, ``[n]`` to θ in either form."""

    def _ends(self, samples: Samples) -> OfBoth:
        """The same, with θ as one flat vector, ``[Q]``."""
        return self._steps(samples)

    @property
    def execution(self) -> Execution:
        """How functions of one task are evaluated for the batch, and differentiated."""
        return self.problem.execution

    def _map(self, function: Callable[..., tuple[Any, ...]], *vectors: Any) -> tuple[Any, ...]:
        """``function(samples, *vectors)`` of each task, stacked."""
        mapped: tuple[Any, ...] = self.execution.over(function)(self.problem.samples, *vectors)
        return mapped

    def _push(self, function: OfBoth, point: Pair, v: Pair) -> Pair:
        """The value of ``function``, and its derivative along ``v``."""
        return self.execution.jvp(function, point, v)

    def _slopes(self, value: OfBoth, point: Pair) -> tuple[Pair, Tensor]:
        """The gradient of ``value``, and its value."""
        slopes: tuple[Pair, Tensor] = self.execution.gradient_and_value(value, (0, 1))(*point)
        return slopes

    def _curve(self, value: OfBoth, point: Pair, v: Pair) -> Pair:
        """The Hessian of ``value`` times ``v``."""
        gradient = self.execution.gradient(value, (0, 1))

        def along(*point: Tensor) -> Tensor:
            by_lam, by_w = gradient(*point)
            return torch.dot(by_lam, v[0]) + torch.dot(by_w, v[1])

        product: Pair = self.execution.gradient(along, (0, 1))(*point)
        return product

    def jvp(self, v: Tensor) -> Tensor:
        return self._along(v, torch.zeros_like(self.problem.samples.w))

    def vjp(self, u: Tensor) -> Tensor:
        return self._back(u)[0]

    def jvp_weights(self, e: Tensor) -> Tensor:
        return self._along(e.new_zeros(len(e), self.problem.lam.numel()), e)

    def vjp_weights(self, u: Tensor) -> Tensor:
        return self._back(u)[1]

    def total(self, value: OfOne, *given: Any) -> tuple[Tensor, Tensor]:
        """In one backward pass through the steps, as in a training loop."""

        def one(samples: Samples, *given: Any) -> tuple[Tensor, Tensor]:
            steps = self._steps(samples)
            point = (self.problem.lam, samples.w)
            slopes, found = self._slopes(lambda lam, w: value(lam, steps(lam, w), *given), point)
            return slopes[0], found

        by_lam, values = self._map(one, *given)
        return by_lam, values

    def along(self, function: OfOne, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """In one forward-mode pass through the steps."""

        def one(samples: Samples, *given: Any) -> Pair:
            steps = self._steps(samples)
            point, direction = (self.problem.lam, samples.w), (v, torch.zeros_like(samples.w))
            return self._push(lambda lam, w: function(lam, steps(lam, w), *given), point, direction)

        values, along = self._map(one, *given)
        return values, along

    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """The derivative of the total gradient, by nested automatic differentiation."""

        def one(samples: Samples, query: Samples, v: Tensor, e: Tensor) -> Pair:
            steps = self._steps(samples)

            def value(lam: Tensor, w: Tensor) -> Tensor:
                return outer.value_of_one(lam, steps(lam, w), query)

            return self._curve(value, (self.problem.lam, samples.w), (v, e))

        def product(v: Tensor, e: Tensor) -> Pair:
            with ElementaryNorms():
                by_lam, by_w = self._map(one, query, v, e)
            return by_lam, by_w

        return product

    @property
    def nbytes(self) -> int:
        return len(self.residual) * self.problem.theta_layout.size * self.problem.lam.element_size()

    def _along(self, v: Tensor, e: Tensor) -> Tensor:
        def one(samples: Samples, v: Tensor, e: Tensor) -> Pair:
            return self._push(self._ends(samples), (self.problem.lam, samples.w), (v, e))

        return self._map(one, v, e)[1]

    def _back(self, u: Tensor) -> tuple[Tensor, ...]:
        def one(samples: Samples, u: Tensor) -> Pair:
            ends = self._ends(samples)
            return self._slopes(lambda *point: torch.dot(ends(*point), u), (self.problem.lam, samples.w))[0]

        return self._map(one, u)
