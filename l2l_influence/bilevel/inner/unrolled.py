"""θ_i(λ) = the user's own K gradient steps from λ, differentiated through the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from ..elementary import ElementaryNorms
from ..objective import Objective
from ..task import Samples
from .base import InnerKind, InnerMap, InnerProblem, SecondDerivative


@dataclass(frozen=True)
class Unrolled(InnerKind):
    """θ_{k+1} = θ_k − lr ∂_θ Σ_j w_j ℓ(z_j; λ, θ_k), K times from θ_0 = λ_θ: what MAML's ``adapt`` does.

    Args:
        lr: step size.
        steps: K ≥ 1.
    """

    lr: float
    steps: int
    first_order: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0:
            raise ValueError(f"unrolling needs steps >= 1 and lr > 0, got steps={self.steps}, lr={self.lr}")

    def solve(self, problem: InnerProblem) -> UnrolledMap:
        return UnrolledMap(problem, self)


class UnrolledMap(InnerMap):
    """The last iterate and its derivatives by automatic differentiation through the steps. ``residual`` is 0: θ is by
    definition where the steps end.

    A task's steps are differentiated first and mapped over tasks then. The other order is not safe: torch 2.14
    differentiates a mapped gradient of batch, layer or instance normalisation wrongly, by some 10 %, without a word.
    """

    def __init__(self, problem: InnerProblem, kind: Unrolled) -> None:
        self.problem, self._kind = problem, kind
        self.theta = self._map(lambda samples: self._steps(samples)(problem.lam, samples.w))
        self.residual = torch.zeros(len(self.theta)).to(self.theta)

    def _map(self, function: Callable[..., Any], *vectors: Any) -> Any:
        """``function(samples, *vectors)`` of each task."""
        return vmap(function)(self.problem.samples, *vectors)

    def _steps(self, samples: Samples) -> Callable[[Tensor, Tensor], Tensor]:
        """The K steps of one task as a function of λ and the sample weights: ``[P]``, ``[n] -> [Q]``."""
        problem, lr = self.problem, self._kind.lr

        def steps(lam: Tensor, w: Tensor) -> Tensor:
            theta = lam[problem.positions]
            for _ in range(self._kind.steps):
                theta = theta - lr * problem.objective.gradient_theta_of_one(lam, theta, samples._replace(w=w))
            return theta

        return steps

    def _along(self, argument: int, v: Tensor) -> Tensor:
        """The derivative of θ along ``v`` in λ (argument 0) or in w (1)."""

        def product(samples: Samples, v: Tensor) -> Tensor:
            at = (self.problem.lam, samples.w)
            moving = [torch.zeros_like(part) for part in at]
            moving[argument] = v
            along: Tensor = jvp(self._steps(samples), at, tuple(moving))[1]
            return along

        return cast(Tensor, self._map(product, v))

    def _back(self, argument: int, u: Tensor) -> Tensor:
        """The gradient of ⟨θ, u⟩ by λ (argument 0) or by w (1)."""

        def product(samples: Samples, u: Tensor) -> Tensor:
            steps = self._steps(samples)
            back: Tensor = grad(lambda *at: torch.dot(steps(*at), u), argnums=argument)(self.problem.lam, samples.w)
            return back

        return cast(Tensor, self._map(product, u))

    def jvp(self, v: Tensor) -> Tensor:
        return self._along(0, v)

    def vjp(self, u: Tensor) -> Tensor:
        return self._back(0, u)

    def jvp_weights(self, e: Tensor) -> Tensor:
        return self._along(1, e)

    def vjp_weights(self, u: Tensor) -> Tensor:
        return self._back(1, u)

    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """The gradient's derivative, by nested automatic differentiation."""

        def one(samples: Samples, query: Samples, v: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            steps = self._steps(samples)

            def value(lam: Tensor, w: Tensor) -> Tensor:
                return outer.value_of_one(lam, steps(lam, w), query)

            def along(lam: Tensor, w: Tensor) -> Tensor:
                by_lam, by_w = grad(value, argnums=(0, 1))(lam, w)
                return torch.dot(by_lam, v) + torch.dot(by_w, e)

            by_both: tuple[Tensor, Tensor] = grad(along, argnums=(0, 1))(self.problem.lam, samples.w)
            return by_both

        def product(v: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            with ElementaryNorms():
                by_lam, by_w = self._map(one, query, v, e)
            return by_lam, by_w

        return product

    @property
    def nbytes(self) -> int:
        return self.theta.nbytes
