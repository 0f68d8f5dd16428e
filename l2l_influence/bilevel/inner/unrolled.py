"""θ_i(λ) = the user's own K gradient steps from λ, differentiated through the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from ..task import Samples
from .base import InnerKind, InnerMap, InnerProblem


@dataclass(frozen=True)
class Unrolled(InnerKind):
    """θ_{k+1} = θ_k − lr ∂_θ Σ_j w_j ℓ(z_j; λ, θ_k), K times from θ_0 = λ_θ: what MAML's ``adapt`` does.

    Args:
        lr: step size.
        steps: K ≥ 1.
    """

    lr: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0:
            raise ValueError(f"unrolling needs steps >= 1 and lr > 0, got steps={self.steps}, lr={self.lr}")

    def solve(self, problem: InnerProblem) -> UnrolledMap:
        return UnrolledMap(problem, self)


class UnrolledMap(InnerMap):
    """The last iterate and its Jacobian by automatic differentiation through the steps. ``residual`` is 0: θ is by
    definition where the steps end.

    A task's steps are differentiated first and mapped over tasks then. The other order is not safe: torch 2.14
    differentiates a mapped gradient of batch, layer or instance normalisation wrongly, by some 10 %, without a word.
    """

    def __init__(self, problem: InnerProblem, kind: Unrolled) -> None:
        self._problem, self._kind = problem, kind
        self.theta = self._map(self._adapt)
        self.residual = torch.zeros(len(self.theta)).to(self.theta)

    def _map(self, function: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        """``function(samples, *vectors)`` of each task."""
        return vmap(function)(self._problem.samples, *vectors)

    def _adapt(self, samples: Samples) -> Tensor:
        return self._steps(samples)(self._problem.lam)

    def _steps(self, samples: Samples) -> Callable[[Tensor], Tensor]:
        """The K steps of one task as a function of λ, ``[P] -> [Q]``."""
        problem, lr = self._problem, self._kind.lr

        def steps(lam: Tensor) -> Tensor:
            theta = lam[problem.positions]
            for _ in range(self._kind.steps):
                theta = theta - lr * problem.objective.gradient_theta_of_one(lam, theta, samples)
            return theta

        return steps

    def jvp(self, v: Tensor) -> Tensor:
        def product(samples: Samples, v: Tensor) -> Tensor:
            along: Tensor = jvp(self._steps(samples), (self._problem.lam,), (v,))[1]
            return along

        return self._map(product, v)

    def vjp(self, u: Tensor) -> Tensor:
        def product(samples: Samples, u: Tensor) -> Tensor:
            steps = self._steps(samples)
            back: Tensor = grad(lambda lam: torch.dot(steps(lam), u))(self._problem.lam)
            return back

        return self._map(product, u)

    @property
    def nbytes(self) -> int:
        return self.theta.nbytes
