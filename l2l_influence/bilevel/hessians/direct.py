"""Direct influence, the paper's baseline (Eq. 6 and 7), which omits dθ/dλ."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..inner import ApproximateJacobian, FixedJacobian, IdentityJacobian, ZeroJacobian
from ..solved_tasks import SolvedBatch, SolvedTasks
from .base import PerTask, ScaledIdentity, TaskSum


class Direct(PerTask):
    """∂_λλ L_O at fixed θ_i, with the gradient ∂_λ L_O, as the paper prints them.

    In plain MAML L_O does not depend on λ directly: both are identically zero, and a warning says so.
    """

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        return _with_jacobian(solved, ZeroJacobian)

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return self.linearised(solved).hessian(solved.expanded(v))

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        if _depends_on_lam(solved_tasks):
            return super().operator(solved_tasks)
        warnings.warn(
            "the direct total Hessian and gradient (Eq. 6, 7) are identically zero: every parameter is adapted, so the "
            "outer loss does not depend on λ directly. Use 'direct-first-order', which takes dθ/dλ ≈ I",
            stacklevel=2,
        )
        return ScaledIdentity(torch.zeros(len(solved_tasks.tasks)))


def _depends_on_lam(solved_tasks: SolvedTasks) -> bool:
    """Whether L_O depends on λ at fixed θ, in any task. If all of λ is adapted, its gradient decides."""
    settings = solved_tasks.settings
    if not settings.outer.direct or not settings.theta_layout.adapts_all:
        return settings.outer.direct
    found = any(bool(solved.outer_gradient[0].any()) for solved in solved_tasks.microbatches("direct gradient"))
    return bool(settings.ranks.maximum(found))


class DirectFirstOrder(PerTask):
    """∂_θθ L_O and ∂_θ L_O at θ_i in place of derivatives by λ (dθ/dλ ≈ I), plus the ∂_λ terms if there are any."""

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        return _with_jacobian(solved, IdentityJacobian)

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return self.linearised(solved).hessian(solved.expanded(v))


def _with_jacobian(solved: SolvedBatch, jacobian: type[FixedJacobian]) -> SolvedBatch:
    return replace(solved, solution=jacobian(solved.solution), kind=ApproximateJacobian(solved.kind, jacobian))
