"""The total Hessian itself, D²_λ L_O(λ, θ_i(λ)) (Def. 4.2), and what is left of it without θ's own curvature."""

from __future__ import annotations

import torch
from torch import Tensor

from ..local import SolvedBatch
from .base import PerTask


class Exact(PerTask):
    """Zᵀ ∇²L_O Z and the second derivatives of θ_i(λ), by the Lagrangian (proximal) or through the steps (unrolled).

    Symmetric; indefinite where λ is not near a minimum.
    """

    def product(self, at: SolvedBatch, v: Tensor) -> Tensor:
        return at.second(v, torch.zeros_like(at.batch.support.w))[0]


class Hessian(PerTask):
    """Zᵀ ∇²L_O Z: all of L_O's curvature, none of θ_i(λ)'s."""

    def product(self, at: SolvedBatch, v: Tensor) -> Tensor:
        return at.hessian(v)
