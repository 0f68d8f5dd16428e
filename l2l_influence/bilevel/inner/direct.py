"""Solutions whose Jacobian dθ/dλ is constant: simplified, as in the "direct" and first-order methods, or exactly so, as
without inner steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..factored import Theta
from ..objective import Joint, Objective
from ..task import Samples
from .base import InnerKind, InnerMap, InnerProblem, SecondDerivative


@dataclass(frozen=True)
class ApproximateJacobian(InnerKind):
    """θ as ``kind`` finds it, with dθ/dλ replaced by ``jacobian``: a :class:`ZeroJacobian` or an
    :class:`IdentityJacobian`."""

    kind: InnerKind
    jacobian: type[FixedJacobian]

    def work(self, forward: int, lam: int, rows: int) -> int:
        return self.kind.work(forward, lam, rows)

    def written_out(self, problem: InnerProblem) -> int:
        return self.kind.written_out(problem)

    def solve(self, problem: InnerProblem) -> InnerMap:
        return self.jacobian(self.kind.solve(problem))


@dataclass(frozen=True)
class NoInner(InnerKind):
    """θ_i(λ) = θ_0(λ), without inner steps, for episodes whose loss is a function of λ alone.

    Prototypical networks are of this kind: the loss computes the prototypes from the support set, which x then holds
    together with the queries. dθ/dλ = E exactly, and θ does not depend on the support weights.

    >>> NoInner()
    NoInner()
    """

    def solve(self, problem: InnerProblem) -> InnerMap:
        return StartMap(problem)


class ConstantJacobian(InnerMap):
    """θ as a function whose Jacobian dθ/dλ does not depend on λ."""

    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """Zᵀ ∇²L_O Z: with a constant Jacobian θ has no second derivatives."""
        lam, zero = self.problem.lam, torch.zeros_like(query.w)

        def product(v: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            along = Joint(v, self.jvp(v) + self.jvp_weights(e), zero)
            curved = outer.hessian(lam, self.theta, query, along)
            return curved.lam + self.vjp(curved.theta), self.vjp_weights(curved.theta)

        return product


class StartMap(ConstantJacobian):
    """θ_0(λ), the same for all tasks; the residual is 0."""

    note = "no inner steps"

    def __init__(self, problem: InnerProblem) -> None:
        self.problem = problem
        self.residual = torch.zeros_like(problem.samples.w[:, 0])

    @property
    def theta(self) -> Tensor:
        return self.problem.initial.expand(len(self.residual), -1)

    def jvp(self, v: Tensor) -> Tensor:
        return self.problem.theta_layout.jvp(v)

    def vjp(self, u: Tensor) -> Tensor:
        return self.problem.theta_layout.vjp(u)

    def jvp_weights(self, e: Tensor) -> Tensor:
        return torch.zeros_like(self.theta)

    def vjp_weights(self, u: Tensor) -> Tensor:
        return torch.zeros_like(self.problem.samples.w)

    @property
    def nbytes(self) -> int:
        return self.problem.theta_layout.size * self.problem.lam.element_size()


class FixedJacobian(ConstantJacobian):
    """θ and its derivative by the sample weights as another solution has them; its Jacobian dθ/dλ is constant."""

    def __init__(self, solution: InnerMap) -> None:
        self._solution = solution
        self.problem, self.residual = solution.problem, solution.residual

    @property
    def theta(self) -> Tensor:
        return self._solution.theta

    @property
    def point(self) -> Theta:
        return self._solution.point

    def jvp_weights(self, e: Tensor) -> Tensor:
        return self._solution.jvp_weights(e)

    def vjp_weights(self, u: Tensor) -> Tensor:
        return self._solution.vjp_weights(u)

    @property
    def nbytes(self) -> int:
        return self._solution.nbytes


class ZeroJacobian(FixedJacobian):
    """dθ/dλ = 0: θ_i is treated as a constant, as in the literal reading of Eq. 6 and 7."""

    def jvp(self, v: Tensor) -> Tensor:
        return torch.zeros_like(self.theta)

    def vjp(self, u: Tensor) -> Tensor:
        return u.new_zeros(len(u), self.problem.lam.numel())


class IdentityJacobian(FixedJacobian):
    """dθ/dλ = dθ_0/dλ, the identity on adapted entries of λ: θ_i moves with its start, as in first-order MAML."""

    def jvp(self, v: Tensor) -> Tensor:
        return self.problem.theta_layout.jvp(v)

    def vjp(self, u: Tensor) -> Tensor:
        return self.problem.theta_layout.vjp(u)
