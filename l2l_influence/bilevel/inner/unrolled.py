"""θ_i(λ) = the user's own K gradient steps from λ, differentiated through the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp, vjp

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
    definition where the steps end."""

    def __init__(self, problem: InnerProblem, kind: Unrolled) -> None:
        self._problem, self._kind = problem, kind
        self.theta = self._adapt(problem.lam.expand(len(problem.start), -1))
        self.residual = torch.zeros(len(self.theta)).to(self.theta)

    def _adapt(self, lam: Tensor) -> Tensor:
        """K steps for each task from its own row of ``lam``, ``[B, P] -> [B, Q]``."""
        problem = self._problem
        theta = problem.restrict(lam)
        for _ in range(self._kind.steps):
            theta = theta - self._kind.lr * problem.objective.gradient_theta_rows(lam, theta, problem.samples)
        return theta

    def jvp(self, v: Tensor) -> Tensor:
        lam = self._problem.lam.expand_as(v)
        return jvp(self._adapt, (lam,), (v,))[1]

    def vjp(self, u: Tensor) -> Tensor:
        lam = self._problem.lam.expand(len(u), -1)
        return vjp(self._adapt, lam)[1](u)[0]

    @property
    def nbytes(self) -> int:
        return self.theta.nbytes
