"""The total Hessian itself, D²_λ L_O(λ, θ_i(λ)) (Def. 4.2), and its part without the curvature of θ_i(λ)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..inner import Proximal
from ..solved_tasks import SolvedBatch, SolvedTasks
from .base import PerTask, TaskSum

APPROXIMATE = ("auto", "gram", "ekfac", "identity")
"""Inner inverses that omit a part of H_in, or may."""


class Exact(PerTask):
    """Zᵀ ∇²L_O Z and the second derivatives of θ_i(λ), by the Lagrangian (proximal) or through the steps (unrolled).

    Symmetric; indefinite if λ is not near a minimum. For the proximal kind it is as exact as the inner inverse.
    """

    @property
    def needs_exact_inverse(self) -> bool:
        return True

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        kind = solved_tasks.settings.kind
        if isinstance(kind, Proximal) and kind.inverse in APPROXIMATE:
            warnings.warn(
                f"the exact total Hessian needs an exact inner inverse, but {kind.inverse!r} omits curvature unless "
                "outputs are linear in θ: use inner_solver='cg', 'minres' or 'dense'",
                stacklevel=2,
            )
        return super().operator(solved_tasks)

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return solved.second(solved.expanded(v), torch.zeros_like(solved.batch.support.w))[0]


class Hessian(PerTask):
    """Zᵀ ∇²L_O Z: all of L_O's curvature, without that of θ_i(λ)."""

    def product(self, solved: SolvedBatch, v: Tensor) -> Tensor:
        return solved.hessian(solved.expanded(v))
