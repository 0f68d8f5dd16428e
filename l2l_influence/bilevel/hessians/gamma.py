"""The paper's Γ Hessian (Thm 5.1), with its cross term made symmetric."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solved_tasks import LocalProblem, SolvedBatch
from .base import PerTask, ScaledIdentity, TaskSum


class Gamma(PerTask):
    """``∂_λλ L_O + sym(2 (dθ/dλ)ᵀ ∂_θ∂_λ L_O) + ‖∂_θ L_O‖₁ I``.

    In plain MAML L_O has no direct λ, so only the last term is left: a multiple of the identity. Scores then rank tasks
    exactly as the product of total gradients does.
    """

    def product(self, at: SolvedBatch, v: Tensor) -> Tensor:
        lam, theta, query, v = at.lam, at.solution.theta, at.batch.query, at.each(v)
        straight = at.outer.hessian_lambda(lam, theta, query, v)
        cross = at.solution.vjp(at.outer.mixed(lam, theta, query, v))
        cross_transposed = at.outer.mixed_transposed(lam, theta, query, at.push_forward(v))
        return straight + cross + cross_transposed + self._scale(at).unsqueeze(-1) * v

    def operator(self, local: LocalProblem) -> TaskSum:
        if local.settings.outer.direct:
            return super().operator(local)
        scales = torch.zeros(len(local.tasks), dtype=torch.float64)
        for at in local.solved("Hessian"):
            scales[at.batch.index] = (at.batch.weight * self._scale(at)).double().cpu()
        return ScaledIdentity(local.settings.ranks.sum(scales))

    @staticmethod
    def _scale(at: SolvedBatch) -> Tensor:
        """‖∂_θ L_O‖₁, ``[B]``."""
        return at.outer_gradient[1].abs().sum(-1)
