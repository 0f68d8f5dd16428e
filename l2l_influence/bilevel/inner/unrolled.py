"""θ_i(λ) = the user's own K gradient steps from λ, differentiated through the steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap

from ...errors import LossStructureError
from ..elementary import ElementaryNorms
from ..kfac.layers import find_layers
from ..layout import Named, Vector
from ..moved import Moved, Theta
from ..objective import Objective
from ..task import Samples
from .base import InnerKind, InnerMap, InnerProblem, OfOne, SecondDerivative
from .direct import Carried
from .rules import PlainSteps, StepRule

Pair = tuple[Tensor, Tensor]
"""A vector in the joint space of λ ``[P]`` and one task's sample weights w ``[n]``."""

OfBoth = Callable[..., Tensor]
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

    def written_out(self, problem: InnerProblem) -> int:
        if self.first_order or not isinstance(self.rule, PlainSteps):
            return super().written_out(problem)
        apart = sum(prod(problem.layout.shapes[name]) for name in wide_layers(problem, self.steps))
        return problem.lam.nbytes - apart * problem.lam.element_size()

    def solve(self, problem: InnerProblem) -> InnerMap:
        rule, steps = self.rule, self.steps
        if not isinstance(rule, PlainSteps):
            return UnrolledMap(problem, self)
        wide = wide_layers(problem, steps)
        plain = InFactors(problem, steps, rule, wide) if wide else UnrolledMap(problem, Unrolled(rule, steps))
        # Plain steps along fixed gradients move θ as far as λ_θ: that needs no differentiation.
        return Carried(plain) if self.first_order else plain


class StepsMap(InnerMap):
    """The last iterate and its derivatives by automatic differentiation through the steps. ``residual`` is 0: θ is by
    definition where the steps end. The steps are taken when they are first asked for: total gradients take their own.

    A subclass says what one task's steps are, how a function of one task is differentiated, and how tasks are gone
    through. A task's steps are always differentiated first and put together with other tasks' then. The other order is
    not safe: torch 2.14 differentiates a mapped gradient of batch, layer or instance normalisation wrongly, by some
    10 %, without a word.
    """

    def __init__(self, problem: InnerProblem) -> None:
        self.problem = problem
        self.residual = torch.zeros_like(problem.samples.w[:, 0])

    @cached_property
    def point(self) -> Theta:
        point: Theta
        (point,) = self._map(lambda samples: (self._steps(samples)(self.problem.lam, samples.w),))
        return point

    @cached_property
    def theta(self) -> Tensor:
        return self._map(lambda samples: (self._ends(samples)(self.problem.lam, samples.w),))[0]

    @abstractmethod
    def _steps(self, samples: Samples) -> Callable[..., Any]:
        """The K steps of one task as a function of λ and the sample weights: ``[P]``, ``[n]`` to θ in either form."""

    def _ends(self, samples: Samples) -> OfBoth:
        """The same, with θ written out, ``[Q]``."""
        return self._steps(samples)

    @abstractmethod
    def _map(self, function: Callable[..., tuple[Any, ...]], *vectors: Any) -> tuple[Any, ...]:
        """``function(samples, *vectors)`` of each task, stacked."""

    @abstractmethod
    def _push(self, function: OfBoth, at: Pair, v: Pair) -> Pair:
        """``function``, and its derivative along ``v``."""

    @abstractmethod
    def _slopes(self, value: OfBoth, at: Pair) -> tuple[Pair, Tensor]:
        """The gradient of ``value``, and itself."""

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

    def total(self, value: OfOne, *given: Any) -> tuple[Tensor, Tensor]:
        """In one go, as a training loop's backward does it."""

        def one(samples: Samples, *given: Any) -> tuple[Tensor, Tensor]:
            steps = self._steps(samples)
            slopes, at = self._slopes(lambda lam, w: value(lam, steps(lam, w), *given), (self.problem.lam, samples.w))
            return slopes[0], at

        by_lam, values = self._map(one, *given)
        return by_lam, values

    def along(self, function: OfOne, v: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
        """In one go."""

        def one(samples: Samples, *given: Any) -> Pair:
            steps = self._steps(samples)
            at, moved = (self.problem.lam, samples.w), (v, torch.zeros_like(samples.w))
            return self._push(lambda lam, w: function(lam, steps(lam, w), *given), at, moved)

        values, along = self._map(one, *given)
        return values, along

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
        return len(self.residual) * self.problem.part.size * self.problem.lam.element_size()

    def _along(self, v: Tensor, e: Tensor) -> Tensor:
        def one(samples: Samples, v: Tensor, e: Tensor) -> Pair:
            return self._push(self._ends(samples), (self.problem.lam, samples.w), (v, e))

        return self._map(one, v, e)[1]

    def _back(self, u: Tensor) -> tuple[Tensor, ...]:
        def one(samples: Samples, u: Tensor) -> Pair:
            ends = self._ends(samples)
            return self._slopes(lambda *at: torch.dot(ends(*at), u), (self.problem.lam, samples.w))[0]

        return self._map(one, u)


class UnrolledMap(StepsMap):
    """Steps along the gradient, all tasks at once."""

    def __init__(self, problem: InnerProblem, kind: Unrolled) -> None:
        self._kind = kind
        super().__init__(problem)

    def _steps(self, samples: Samples) -> Callable[..., Any]:
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

    def _map(self, function: Callable[..., tuple[Any, ...]], *vectors: Any) -> tuple[Any, ...]:
        mapped: tuple[Any, ...] = vmap(function)(self.problem.samples, *vectors)
        return mapped

    def _push(self, function: OfBoth, at: Pair, v: Pair) -> Pair:
        value, along, *_ = jvp(function, at, v)
        return value, along

    def _slopes(self, value: OfBoth, at: Pair) -> tuple[Pair, Tensor]:
        slopes: tuple[Pair, Tensor] = grad_and_value(value, argnums=(0, 1))(*at)
        return slopes

    def _curve(self, value: OfBoth, at: Pair, v: Pair) -> Pair:
        def along(*at: Tensor) -> Tensor:
            by_lam, by_w = _gradient(value)(*at)
            return torch.dot(by_lam, v[0]) + torch.dot(by_w, v[1])

        return _gradient(along)(*at)


def _gradient(value: OfBoth) -> Callable[..., Pair]:
    return grad(value, argnums=(0, 1))


class InFactors(UnrolledMap):
    """Plain steps that do not write out what the weights of wide linear layers move by."""

    def __init__(self, problem: InnerProblem, steps: int, rule: PlainSteps, rows: Mapping[str, int]) -> None:
        self._lr, self._rows = rule.lr, rows
        super().__init__(problem, Unrolled(rule, steps))

    def _steps(self, samples: Samples) -> Callable[..., Moved]:
        problem = self.problem

        def steps(lam: Vector, w: Tensor) -> Moved:
            theta = Moved.start(problem.layout.unravel(lam), self._rows, problem.part)
            for _ in range(self._kind.steps):
                slope = problem.objective.slope_of_one(lam, theta, samples._replace(w=w), self._rows)
                theta = theta.stepped(self._lr, slope)
            return theta

        return steps

    def _ends(self, samples: Samples) -> OfBoth:
        problem, steps = self.problem, self._steps(samples)
        return lambda lam, w: steps(lam, w).flat(problem.layout.unravel(lam), problem.part)

    def sum_of_totals(self, weight: Tensor, value: OfOne, *given: Any) -> Tensor:
        """By differentiating the sum, in which a wide weight's gradient is one product for all tasks."""
        layout = self.problem.layout

        def total(lam: Named) -> Tensor:
            def one(samples: Samples, *given: Any) -> Tensor:
                return value(lam, self._steps(samples)(lam, samples.w), *given)

            return torch.dot(weight, vmap(one)(self.problem.samples, *given))

        try:
            with ElementaryNorms():  # what is mapped over tasks is differentiated here
                return layout.ravel(grad(total)(layout.unravel(self.problem.lam)))
        except LossStructureError:  # a normalisation that can't be recomposed
            return super().sum_of_totals(weight, value, *given)

    # With λ by name its flat vector is not put together for each use of one of its tensors.

    def _push(self, function: OfBoth, at: Pair, v: Pair) -> Pair:
        unravel = self.problem.layout.unravel
        value, along, *_ = jvp(function, (unravel(at[0]), at[1]), (unravel(v[0]), v[1]))
        return value, along

    def _slopes(self, value: OfBoth, at: Pair) -> tuple[Pair, Tensor]:
        layout = self.problem.layout
        (by_lam, by_w), found = grad_and_value(value, argnums=(0, 1))(layout.unravel(at[0]), at[1])
        return (layout.ravel(by_lam), by_w), found


NARROW = 4
"""How many times smaller the factors of a weight's move must be than the weight, to be worth their products."""


def wide_layers(problem: InnerProblem, steps: int) -> dict[str, int]:
    """The weights of linear layers through which few rows go beside their size, and how many rows these are."""
    lam, theta = problem.layout.unravel(problem.lam), problem.part.unravel(problem.prior)
    x, y = problem.samples.x[0], problem.samples.y[0]

    def narrow(weight: Tensor, rows: int) -> bool:
        return weight.dim() == 2 and NARROW * steps * rows * sum(weight.shape) <= weight.numel()

    candidates = {name: weight for name, weight in theta.items() if narrow(weight, len(y))}
    if not candidates:
        return {}
    layers = find_layers(lambda some: problem.objective.loss(lam, {**theta, **some}, x, y), candidates)
    rows = {layer.weight: layer.inputs.shape[1:3].numel() for layer in layers}
    return {name: count for name, count in rows.items() if narrow(candidates[name], count)}
