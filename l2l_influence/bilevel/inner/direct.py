"""Solutions whose dependence on λ is read more simply than it is, as "direct" and first-order methods do."""

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


class FixedJacobian(InnerMap):
    """θ as another solution found it, and as the sample weights move it there; its dependence on λ is linear."""

    def __init__(self, solution: InnerMap) -> None:
        self._solution = solution
        self.problem, self.residual = solution.problem, solution.residual

    @property
    def theta(self) -> Tensor:
        return self._solution.theta

    @property
    def point(self) -> Theta:
        return self._solution.point

    def second(self, outer: Objective, query: Samples) -> SecondDerivative:
        """Zᵀ ∇²L_O Z: θ has no second derivatives here."""
        lam, none = self.problem.lam, torch.zeros_like(query.w)

        def product(v: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            moved = Joint(v, self.jvp(v) + self.jvp_weights(e), none)
            curved = outer.hessian(lam, self.theta, query, moved)
            return curved.lam + self.vjp(curved.theta), self.vjp_weights(curved.theta)

        return product

    def jvp_weights(self, e: Tensor) -> Tensor:
        return self._solution.jvp_weights(e)

    def vjp_weights(self, u: Tensor) -> Tensor:
        return self._solution.vjp_weights(u)

    @property
    def nbytes(self) -> int:
        return self._solution.nbytes


class ZeroJacobian(FixedJacobian):
    """dθ/dλ = 0: θ_i taken as a constant, as Eq. 6 and 7 read literally."""

    def jvp(self, v: Tensor) -> Tensor:
        return torch.zeros_like(self.theta)

    def vjp(self, u: Tensor) -> Tensor:
        return u.new_zeros(len(u), self.problem.lam.numel())


class IdentityJacobian(FixedJacobian):
    """dθ/dλ = I on the adapted entries: θ_i carried along with λ, as first-order MAML has it."""

    def jvp(self, v: Tensor) -> Tensor:
        return self.problem.theta_layout.push(v)

    def vjp(self, u: Tensor) -> Tensor:
        return self.problem.theta_layout.pull(u)
