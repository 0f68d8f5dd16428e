"""A sampled Gauss–Newton matrix in one pass over the tasks, solved in the number of samples.

For task i draw pseudo-residuals c_j = R_j ε_j at its query outputs, R_j R_jᵀ being the curvature of the weighted
criterion there and ε_j independent random signs. Then ``s = Zᵀ Σ_j (∂outputs_j)ᵀ c_j``, one total gradient that reuses
the task's inner factor, has ``E[s sᵀ] = Zᵀ GGN(L_O) Z``. This is what drawing labels from the model's own predictive
distribution gives, for any convex criterion and with less variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..solved_tasks import LocalProblem, SolvedBatch
from ..solvers import LinearOperator, LowRank
from .base import Curvature, Groups, TaskSum, outside

MOST_ROWS = 4096
"""The Gram matrix of the rows is factorised: beyond this that, not the tasks, takes the time."""


@dataclass(frozen=True)
class Sketch(Curvature):
    """``H ≈ Σ_i (c_i / m) Σ_m s_im s_imᵀ``.

    The samples of all tasks are kept side by side. Where they would not fit the problem's memory (or ``MOST_ROWS``),
    fewer are drawn from each task, and then from fewer tasks, with the weight of the others: more tasks say more about
    the sum than more samples of one.

    Args:
        draws: m, samples a task, at most.
        seed: of the draws; the same seed gives the same matrix, whatever the batches.
    """

    draws: int = 16
    seed: int = 0

    def operator(self, local: LocalProblem) -> TaskSum:
        count = len(local.tasks)
        most = max(1, min(MOST_ROWS, local.settings.half // local.lam.nbytes))
        fitting = replace(self, draws=max(1, min(self.draws, most // count)))
        if count <= most:
            note = f"sketch ({fitting.draws} draws of all {count} tasks)"
            return fitting._sampled(local, range(count), note)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:most].sort().values
        note = f"sketch (1 draw of {most} of {count} tasks, as memory allows)"
        return fitting._sampled(local, chosen.tolist(), note)

    def _sampled(self, local: LocalProblem, positions: Sequence[int], note: str) -> TaskSum:
        count, some = len(local.tasks), local
        if len(positions) < count:
            weights = [local.weights[position] * count / len(positions) for position in positions]
            some = local.subset(list(positions), weights)
        owner = torch.tensor(positions).repeat_interleave(self.draws)
        return SampledRows(self.weighted_rows(some), owner, some, count, note)

    def weighted_rows(self, local: LocalProblem) -> Tensor:
        """``√(c_i/m) s_im`` of all tasks, ``[N·m, P]``; where ranks share the tasks, this one's slab of the columns."""
        ranks, count = local.settings.ranks, len(local.tasks)
        rows = local.lam.new_empty(len(ranks.share(count)), self.draws, local.lam.numel())
        for at in local.solved("Hessian sketch"):
            slot = ranks.slot(at.batch.index)
            for draw, residuals in enumerate(self._residuals(at)):
                rows[slot, draw] = at.solution.total(at.outer.outputs_dot_of_one, at.batch.query, residuals)[0]
        return ranks.columns(rows, count).flatten(0, 1)

    def _residuals(self, at: SolvedBatch) -> Tensor:
        """``√(c_i/m) c_j`` of each draw, ``[m, B, n, C]``."""
        root = at.outer.output_curvature_root(at.lam, at.solution.point, at.batch.query)
        signs = torch.stack([self._signs(position, root.shape[1:3]) for position in at.batch.index]).to(root)
        scale = (at.batch.weight / self.draws).sqrt().view(-1, 1, 1)
        return torch.einsum("bnck,bmnk->mbnc", root, signs) * scale

    def _signs(self, position: int, shape: torch.Size) -> Tensor:
        """±1, ``[m, n, C]``, from the seed and the task's position alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        return torch.randint(0, 2, (self.draws, *shape), generator=generator) * 2 - 1


class SampledRows(LowRank, TaskSum):
    """``SᵀS``, each row of S belonging to the task (of ``count``) whose position is in ``owner``, ``[r]``.

    Where ranks share the tasks of ``local``, ``rows`` is this one's slab of the columns of S: each holds, and
    multiplies, its part of them.
    """

    def __init__(self, rows: Tensor, owner: Tensor, local: LocalProblem, count: int, note: str) -> None:
        super().__init__(rows, note)
        self._owner, self._count = owner, count
        self._ranks, self._width = local.settings.ranks, local.lam.numel()

    def project(self, v: Tensor) -> Tensor:
        return self._ranks.sum(super().project(self._ranks.slab(v)))

    def lift(self, small: Tensor) -> Tensor:
        return self._ranks.joined(super().lift(small), self._width)

    def gram(self) -> Tensor:
        return self._gram

    @cached_property
    def _gram(self) -> Tensor:
        """Kept: it gives the largest eigenvalue, and serves every damping."""
        return self._ranks.sum(super().gram())

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of SSᵀ, ``[r]``, in float64: those of SᵀS that need not be 0. Kept, for every solve asks."""
        return torch.linalg.eigvalsh(self.gram()).clamp_min(0)

    @property
    def nbytes(self) -> int:
        return super().nbytes + 8 * len(self.rows) ** 2

    def acts_as(self, shift: float) -> float:
        """The κ with ``κ(H + κI)⁻¹ ≈ δ(SᵀS + δI)⁻¹`` for a ``shift`` δ, H being what S is a sample of.

        ``κ = δ/(1 − d/r)`` where ``d = tr SᵀS(SᵀS + δI)⁻¹`` of the r rows' directions stand out from δ: so it is in
        expectation, for many rows that are independent (Silverstein 1995).
        """
        return float(shift / (shift / (self.spectrum + shift)).mean())

    def without(self, groups: Groups) -> LinearOperator:
        return _SomeRows(self, outside(groups, self._count)[:, self._owner].to(self.rows))


class _SomeRows(LinearOperator):
    """``Sᵀ diag(kept_r) S`` for row r, ``kept`` being ``[R, r]``."""

    def __init__(self, sampled: SampledRows, kept: Tensor) -> None:
        self._sampled, self._kept = sampled, kept

    def matvec(self, v: Tensor) -> Tensor:
        return self._sampled.lift(self._kept * self._sampled.project(v))
