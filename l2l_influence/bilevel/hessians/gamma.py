"""The paper's Γ Hessian (Thm 5.1), with its cross term made symmetric."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solved_tasks import SolvedBatch, SolvedTasks
from .base import PerTask, ScaledIdentity, TaskSum


class Gamma(PerTask):
    """``∂_λλ L_O + sym(2 (dθ/dλ)ᵀ ∂_θ∂_λ L_O) + ‖∂_θ L_O‖₁ I``.

    In plain MAML L_O does not depend on λ directly, so that only the last term remains, a multiple of the identity.
    Scores then rank tasks exactly as products of total gradients do.
    """

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        lam, theta, query, v = solved.lam, solved.solution.theta, solved.batch.query, solved.expanded(v)
        straight = solved.outer.hessian_lambda(lam, theta, query, v)
        cross = solved.solution.vjp(solved.outer.mixed(lam, theta, query, v))
        cross_transposed = solved.outer.mixed_transposed(lam, theta, query, solved.push_forward(v))
        return straight + cross + cross_transposed + self._scale(solved).unsqueeze(-1) * v

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        if solved_tasks.settings.outer.direct:
            return super().operator(solved_tasks)
        scales = torch.zeros(len(solved_tasks.tasks), dtype=torch.float64)
        for solved in solved_tasks.microbatches("Hessian"):
            scales[solved.batch.index] = (solved.batch.weight * self._scale(solved)).double().cpu()
        return ScaledIdentity(solved_tasks.settings.ranks.sum(scales))

    @staticmethod
    def _scale(solved: SolvedBatch) -> Tensor:
        """‖∂_θ L_O‖₁, ``[B]``."""
        return solved.outer_gradient[1].abs().sum(-1)
