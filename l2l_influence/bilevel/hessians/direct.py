"""Direct influence: the paper's baseline (Eq. 6 and 7), which leaves dθ/dλ out."""

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

    In plain MAML L_O has no direct λ: both are identically zero, and a warning says so.
    """

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        return _with_jacobian(solved, ZeroJacobian)

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return self.linearised(solved).hessian(solved.expanded(v))

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        if _any_of_its_own(solved_tasks):
            return super().operator(solved_tasks)
        warnings.warn(
            "the direct total Hessian and gradient (Eq. 6, 7) are identically zero: every parameter is adapted, so the "
            "outer loss has no λ of its own. 'direct-first-order' is the reading that says something",
            stacklevel=2,
        )
        return ScaledIdentity(torch.zeros(len(solved_tasks.tasks)))


def _any_of_its_own(solved_tasks: SolvedTasks) -> bool:
    """Whether L_O depends on λ at fixed θ, in any task. Where all of λ is adapted, its gradient tells."""
    settings = solved_tasks.settings
    if not settings.outer.direct or not settings.theta_layout.adapts_all:
        return settings.outer.direct
    own = any(bool(solved.outer_gradient[0].any()) for solved in solved_tasks.microbatches("direct gradient"))
    return bool(settings.ranks.maximum(own))


class DirectFirstOrder(PerTask):
    """∂_θθ L_O and ∂_θ L_O at θ_i in the place of λ's (dθ/dλ ≈ I), with the ∂_λ terms where there are any."""

    def linearised(self, solved: SolvedBatch) -> SolvedBatch:
        return _with_jacobian(solved, IdentityJacobian)

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return self.linearised(solved).hessian(solved.expanded(v))


def _with_jacobian(solved: SolvedBatch, jacobian: type[FixedJacobian]) -> SolvedBatch:
    return replace(solved, solution=jacobian(solved.solution), kind=ApproximateJacobian(solved.kind, jacobian))
