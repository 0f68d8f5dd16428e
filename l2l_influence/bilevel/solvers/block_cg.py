"""Block conjugate gradients, for many right-hand sides of one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Attempt, LinearOperator
from .cg import CG
from .gram import LowRank

RANK = 1e-6
"""Share of the sum of squares of all directions, below which a direction is dropped: most of it may be rounding."""


@dataclass(frozen=True)
class BlockCG(CG):
    """Conjugate gradients in the space that all right-hand sides span together (O'Leary 1980).

    Each row uses the products of all rows, so that many right-hand sides take far fewer products together than alone.
    **One matrix for all rows**: products are with directions that belong to no row. A row's answer depends, within the
    tolerance, on the rows that it was solved with.

    Directions are made orthonormal. Those that depend on others are dropped, and so are those of converged rows:
    right-hand sides may be equal, or 0. If ``pᵀAp ≤ 0`` for any direction p of the block, all rows are refused.

    Arguments are those of :class:`CG`; ``max_iterations`` counts iterations of the block.
    """

    def _conjugate_gradients(self, operator: LinearOperator, b: Tensor, goal: Tensor, budget: int) -> Attempt:
        x, r = torch.zeros_like(b), b.clone()
        smallest = torch.full_like(goal, torch.inf)
        wanted, iterations = r.norm(dim=-1) > goal, 0
        p = ap = b[:0]
        inner = torch.zeros(0, 0, dtype=torch.float64, device=b.device)
        while iterations < budget and bool(wanted.any()):
            iterations += 1
            z = self.precondition(r[wanted])
            p = orthonormal(z.addmm_(_solved(inner, ap, z).mT, p, alpha=-1))  # conjugate to the previous ones
            ap = operator.matvec(p)
            inner = (p @ ap.mT).double()
            inner = (inner + inner.mT) / 2
            lowest = _lowest(inner).to(b)
            smallest = torch.minimum(smallest, lowest)
            if not bool(lowest > 0):
                break
            step = _solved(inner, p, r).mT
            x.addmm_(step, p)
            r.addmm_(step, ap, alpha=-1)
            wanted = wanted & (r.norm(dim=-1) > goal)
        return Attempt(x, iterations, smallest)


def _solved(inner: Tensor, p: Tensor, r: Tensor) -> Tensor:
    """``(pᵀAp)⁻¹ pᵀr``, ``[k, R]``."""
    return torch.linalg.solve(inner, (p @ r.mT).double()).to(r)


def _lowest(inner: Tensor) -> Tensor:
    """The smallest eigenvalue; NaN if the matrix is empty or not finite."""
    if not len(inner) or not bool(inner.isfinite().all()):
        return inner.new_tensor(torch.nan)
    return torch.linalg.eigvalsh(inner)[0]


def orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the space that the rows span, ``[R, P] -> [k, P]`` with k ≤ R; the sizes of rows do not
    matter."""
    size = rows.norm(dim=-1, keepdim=True)
    unit = rows / torch.where(size > 0, size, 1.0)
    values, vectors = torch.linalg.eigh(LowRank(unit).gram())
    kept = values > RANK * len(unit)
    return (vectors[:, kept] / values[kept].sqrt()).mT.to(rows) @ unit
