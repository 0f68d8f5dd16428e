"""θ_i(λ) = the user's own K gradient steps from λ, differentiated through the steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from ..elementary import ElementaryNorms
from ..objective import Objective
from ..task import Samples
from .base import InnerKind, InnerMap, InnerProblem, OfOne, SecondDerivative
from .direct import Carried
from .rules import PlainSteps, StepRule

Pair = tuple[Tensor, Tensor]
"""A vector in the joint space of λ ``[P]`` and one task's sample weights w ``[n]``."""

OfBoth = Callable[[Tensor, Tensor], Tensor]
"""A function of λ and w."""

Slope = Callable[[Tensor], Tensor]
"""A gradient of one task at its θ: ``[Q] -> [Q]``."""


@dataclass(frozen=True)
class Unrolled(InnerKind):
    """θ_{k+1} = θ_k − lr ∂_θ Σ_j w_j ℓ(z_j; λ, θ_k), K times from θ_0 = λ_θ: what MAML's ``adapt`` does.

    Args:
        lr: step size; or another rule of the steps, such as :class:`LearnedRates`.
        steps: K ≥ 1.
        first_order: hold the steps' gradients fixed when λ moves, as first-order backwards do. For plain steps this
            makes dθ/dλ = I on the adapted entries. θ is the same, and moves with w in full.
    """

    lr: float | StepRule
    steps: int
    first_order: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not (isinstance(self.lr, StepRule) or self.lr > 0):
            raise ValueError(f"unrolling needs steps >= 1 and lr > 0, got steps={self.steps}, lr={self.lr}")

    @property
    def rule(self) -> StepRule:
        """How a step is taken."""
        return self.lr if isinstance(self.lr, StepRule) else PlainSteps(self.lr)

    def work(self, forward: int, lam: int, rows: int) -> int:
        """Second derivatives keep all steps."""
        return (10 * self.steps + 6) * forward + 6 * (self.steps + 1) * lam

    def solve(self, problem: InnerProblem) -> InnerMap:
        if not self.first_order or not isinstance(self.rule, PlainSteps):
            return UnrolledMap(problem, self)
        # Plain steps along fixed gradients move θ as far as λ_θ: that needs no differentiation.
        return Carried(UnrolledMap(problem, Unrolled(self.lr, self.steps)))


class StepsMap(InnerMap):
    """The last iterate and its derivatives by automatic differentiation through the steps. ``residual`` is 0: θ is by
    definition where the steps end.

    A subclass says what one task's steps are, how a function of one task is differentiated, and how tasks are gone
    through. A task's steps are always differentiated first and put together with other tasks' then. The other order is
    not safe: torch 2.14 differentiates a mapped gradient of batch, layer or instance normalisation wrongly, by some
    10 %, without a word.
    """

    def __init__(self, problem: InnerProblem) -> None:
        self.problem = problem
        (self.theta,) = self._map(lambda samples: (self._steps(samples)(problem.lam, samples.w),))
        self.residual = torch.zeros(len(self.theta)).to(self.theta)

    @abstractmethod
    def _steps(self, samples: Samples) -> OfBoth:
        """The K steps of one task as a function of λ and the sample weights: ``[P]``, ``[n] -> [Q]``."""

    @abstractmethod
    def _map(self, function: Callable[..., tuple[Tensor, ...]], *vectors: Any) -> tuple[Tensor, ...]:
        """``function(samples, *vectors)`` of each task, stacked."""

    @abstractmethod
    def _push(self, steps: OfBoth, at: Pair, v: Pair) -> Tensor:
        """The derivative of ``steps`` along ``v``."""

    @abstractmethod
    def _slopes(self, value: OfBoth, at: Pair) -> Pair:
        """The gradient of ``value``."""

    @abstractmethod
    def _curve(self, value: OfBoth, at: Pair, v: Pair) -> Pair:
        """The Hessian of ``value`` times ``v``."""

    def jvp(self, v: Tensor) -> Tensor:
        return self._along(v, torch.zeros_like(self.problem.samples.w))

    def vjp(self, u: Tensor) -> Tensor:
        return self._back(u)[0]

    def jvp_weights(self, e: Tensor) -> Tensor:
        return self._along(e.new_zeros(len(e), self.problem.lam.numel()), e)

    def vjp_weights(self, u: Tensor) -> Tensor:
        return self._back(u)[1]

    def total(self, value: OfOne, *given: Any) -> Tensor:
        """In one go, as a training loop's backward does it."""

        def one(samples: Samples, *given: Any) -> Pair:
            steps = self._steps(samples)
            return self._slopes(lambda lam, w: value(lam, steps(lam, w), *given), (self.problem.lam, samples.w))

        return self._map(one, *given)[0]

    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """The gradient's derivative, by nested automatic differentiation."""

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
        return self.theta.nbytes

    def _along(self, v: Tensor, e: Tensor) -> Tensor:
        def one(samples: Samples, v: Tensor, e: Tensor) -> tuple[Tensor]:
            return (self._push(self._steps(samples), (self.problem.lam, samples.w), (v, e)),)

        return self._map(one, v, e)[0]

    def _back(self, u: Tensor) -> tuple[Tensor, ...]:
        def one(samples: Samples, u: Tensor) -> Pair:
            steps = self._steps(samples)
            return self._slopes(lambda *at: torch.dot(steps(*at), u), (self.problem.lam, samples.w))

        return self._map(one, u)


class UnrolledMap(StepsMap):
    """Steps along the gradient, all tasks at once."""

    def __init__(self, problem: InnerProblem, kind: Unrolled) -> None:
        self._kind = kind
        super().__init__(problem)

    def _steps(self, samples: Samples) -> OfBoth:
        def steps(lam: Tensor, w: Tensor) -> Tensor:
            return self._walk(lam, self._slope(lam, samples._replace(w=w)))

        def along_fixed_gradients(lam: Tensor, w: Tensor) -> Tensor:
            slope, slopes = self._slope(self.problem.lam, samples._replace(w=w)), []

            def noted(theta: Tensor) -> Tensor:
                slopes.append(slope(theta))
                return slopes[-1]

            self._walk(self.problem.lam, noted)
            again = iter(slopes)
            return self._walk(lam, lambda theta: next(again))

        return along_fixed_gradients if self._kind.first_order else steps

    def _walk(self, lam: Tensor, slope: Slope) -> Tensor:
        """K steps from λ_θ by λ's rule, along what ``slope`` gives at each."""
        problem = self.problem
        theta, step = lam[problem.positions], self._kind.rule.first(problem.layout.unravel(lam), problem.part)
        for _ in range(self._kind.steps):
            theta, step = step(theta, slope(theta))
        return theta

    def _slope(self, lam: Tensor, samples: Samples) -> Slope:
        """∂_θ of one task's inner loss."""
        return lambda theta: self.problem.objective.gradient_theta_of_one(lam, theta, samples)

    def _map(self, function: Callable[..., tuple[Tensor, ...]], *vectors: Any) -> tuple[Tensor, ...]:
        mapped: tuple[Tensor, ...] = vmap(function)(self.problem.samples, *vectors)
        return mapped

    def _push(self, steps: OfBoth, at: Pair, v: Pair) -> Tensor:
        along: Tensor = jvp(steps, at, v)[1]
        return along

    def _slopes(self, value: OfBoth, at: Pair) -> Pair:
        return _gradient(value)(*at)

    def _curve(self, value: OfBoth, at: Pair, v: Pair) -> Pair:
        def along(*at: Tensor) -> Tensor:
            by_lam, by_w = _gradient(value)(*at)
            return torch.dot(by_lam, v[0]) + torch.dot(by_w, v[1])

        return _gradient(along)(*at)


def _gradient(value: OfBoth) -> Callable[..., Pair]:
    return grad(value, argnums=(0, 1))
