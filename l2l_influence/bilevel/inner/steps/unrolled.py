"""θ_i(λ) as the end of K gradient steps, differentiated through the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from ...task import Samples
from ..base import InnerKind, InnerMap, InnerProblem
from ..direct import IdentityJacobian
from .factored import FactoredSteps, wide_layers
from .rules import PlainSteps, StepRule
from .steps import StepsMap

Slope = Callable[[int, Tensor], Tensor]
"""The gradient of one task in step k at its θ: ``k, [Q] -> [Q]``."""


@dataclass(frozen=True)
class Unrolled(InnerKind):
    """θ_{k+1} = θ_k − lr ∂_θ Σ_j w_j ℓ(z_j; λ, θ_k), K times from θ_0(λ), as MAML's ``adapt`` does.

    If the loss is a :class:`~l2l_influence.bilevel.SteppedLoss`, step k takes the gradient of ``loss.at_step(k)``.

    Args:
        lr: step size; or one for each step; or another rule of the steps, such as :class:`LearnedRates`.
        steps: K ≥ 1.
        first_order: hold the gradients of the steps fixed when λ moves, as first-order MAML's backward pass does. For
            plain steps dθ/dλ is then the identity on adapted entries of λ. θ is the same, and depends on the sample
            weights w in full.

    Raises:
        ValueError: there is no step, a step size is not positive, or there are not as many step sizes as steps.

    >>> Unrolled(lr=0.5, steps=3)
    Unrolled(lr=0.5, steps=3, first_order=False)
    >>> Unrolled(lr=0.5, steps=0)
    Traceback (most recent call last):
    ValueError: Unrolled needs steps >= 1 and lr > 0, got steps=0 and lr=0.5
    >>> Unrolled(lr=[0.5, 0.1, 0.1], steps=3).lr
    (0.5, 0.1, 0.1)
    """

    lr: float | Sequence[float] | StepRule
    steps: int
    first_order: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.lr, Sequence):
            object.__setattr__(self, "lr", tuple(self.lr))
        if self.steps < 1 or not all(rate > 0 for rate in self._rates):
            raise ValueError(f"Unrolled needs steps >= 1 and lr > 0, got steps={self.steps} and lr={self.lr}")
        if isinstance(self.lr, Sequence) and len(self.lr) != self.steps:
            raise ValueError(f"lr has {len(self.lr)} step sizes for {self.steps} steps: give one for each step")

    @property
    def _rates(self) -> Sequence[float]:
        """The step sizes that are given as numbers."""
        if isinstance(self.lr, StepRule):
            return ()
        return self.lr if isinstance(self.lr, Sequence) else (self.lr,)

    @property
    def rule(self) -> StepRule:
        """How a step is taken."""
        return self.lr if isinstance(self.lr, StepRule) else PlainSteps(self.lr)

    def work(self, forward: int, lam: int, rows: int) -> int:
        """Second derivatives keep all steps in memory."""
        return (10 * self.steps + 6) * forward + 6 * (self.steps + 1) * lam

    def written_out(self, problem: InnerProblem) -> int:
        if self.first_order or not isinstance(self.rule, PlainSteps):
            return super().written_out(problem)
        wide = sum(prod(problem.theta_layout.shapes[name]) for name in wide_layers(problem, self.steps))
        return (problem.entries - wide) * problem.lam.element_size()

    def solve(self, problem: InnerProblem) -> InnerMap:
        rule, steps = self.rule, self.steps
        if not isinstance(rule, PlainSteps):
            return UnrolledMap(problem, self)
        wide = wide_layers(problem, steps)
        plain = FactoredSteps(problem, rule, steps, wide) if wide else UnrolledMap(problem, Unrolled(rule, steps))
        # With fixed gradients θ moves exactly as its start does: nothing needs to be differentiated.
        return IdentityJacobian(plain) if self.first_order else plain


class UnrolledMap(StepsMap):
    """Steps along the gradient, without further storage than θ."""

    def __init__(self, problem: InnerProblem, kind: Unrolled) -> None:
        self._kind = kind
        super().__init__(problem)

    def _steps(self, samples: Samples) -> Callable[..., Any]:
        def steps(lam: Tensor, w: Tensor) -> Tensor:
            return self._walk(lam, self._slope(lam, samples._replace(w=w)))

        def along_fixed_gradients(lam: Tensor, w: Tensor) -> Tensor:
            slope, slopes = self._slope(self.problem.lam, samples._replace(w=w)), []

            def noted(k: int, theta: Tensor) -> Tensor:
                slopes.append(slope(k, theta))
                return slopes[-1]

            self._walk(self.problem.lam, noted)
            return self._walk(lam, lambda k, theta: slopes[k])

        return along_fixed_gradients if self._kind.first_order else steps

    def _walk(self, lam: Tensor, slope: Slope) -> Tensor:
        """K steps from θ_0(λ) by λ's rule, along the gradients that ``slope`` returns."""
        layout, theta_layout = self.problem.layout, self.problem.theta_layout
        theta, step = theta_layout.start(lam), self._kind.rule.first(layout.unravel(lam), theta_layout)
        for k in range(self._kind.steps):
            theta, step = step(theta, slope(k, theta))
        return theta

    def _slope(self, lam: Tensor, samples: Samples) -> Slope:
        """∂_θ of one task's inner loss."""
        return lambda k, theta: self.problem.objective.at_step(k).gradient_theta_of_one(lam, theta, samples)
