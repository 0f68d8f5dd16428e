"""A sampled Gauss–Newton matrix, made in one pass over the tasks and solved exactly through its low-rank factors.

For task i draw pseudo-residuals c_j = R_j ε_j at its query outputs, where R_j R_jᵀ is the curvature of the weighted
criterion there and ε_j are independent random signs. Then ``s = Zᵀ Σ_j (∂outputs_j)ᵀ c_j``, one total gradient that
reuses the task's inner factor, has ``E[s sᵀ] = Zᵀ GGN(L_O) Z``. Drawing labels from the model's predictive distribution
gives the same mean; random signs work for any convex criterion and have less variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..solved_tasks import SolvedBatch, SolvedTasks
from ..solvers import LinearOperator, LowRank
from .base import Curvature, Subsets, TaskSum, outside

MOST_ROWS = 4096
"""Largest number of rows. Beyond it, factorising their Gram matrix takes more time than the pass over the tasks."""


@dataclass(frozen=True)
class Sketch(Curvature):
    """``H ≈ Σ_i (c_i / m) Σ_m s_im s_imᵀ``, a Gauss–Newton Hessian from m random samples per task.

    The samples of all tasks are kept as rows of one matrix. If they do not fit into the memory budget (or exceed
    ``MOST_ROWS``), fewer are drawn per task, and then from fewer tasks, reweighted to stand for all: more tasks say
    more about the sum than more samples of one task.

    Args:
        samples: m, the largest number of samples per task.
        seed: seed of the samples; the same seed gives the same matrix, whatever the batches.

    >>> Sketch(samples=4)
    Sketch(samples=4, seed=0)
    """

    samples: int = 16
    seed: int = 0

    def operator(self, solved_tasks: SolvedTasks) -> TaskSum:
        count = len(solved_tasks.tasks)
        most = max(1, min(MOST_ROWS, solved_tasks.settings.hessian_bytes // solved_tasks.lam.nbytes))
        fitting = replace(self, samples=max(1, min(self.samples, most // count)))
        if count <= most:
            note = f"sketch ({fitting.samples} samples of all {count} tasks)"
            return fitting._sampled(solved_tasks, range(count), note)
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[:most].sort().values
        note = f"sketch (1 sample of {most} of {count} tasks, to fit the memory budget)"
        return fitting._sampled(solved_tasks, chosen.tolist(), note)

    def _sampled(self, solved_tasks: SolvedTasks, positions: Sequence[int], note: str) -> TaskSum:
        count, chosen = len(solved_tasks.tasks), solved_tasks
        if len(positions) < count:
            weights = [solved_tasks.weights[position] * count / len(positions) for position in positions]
            chosen = solved_tasks.subset(list(positions), weights)
        owner = torch.tensor(positions).repeat_interleave(self.samples)
        return SampledRows(self.weighted_rows(chosen), owner, chosen, count, note)

    def weighted_rows(self, solved_tasks: SolvedTasks) -> Tensor:
        """``√(c_i/m) s_im`` of all tasks, ``[N·m, P]``; if ranks share the tasks, this rank's slab of the columns."""
        ranks, count = solved_tasks.settings.ranks, len(solved_tasks.tasks)
        rows = solved_tasks.lam.new_empty(len(ranks.share(count)), self.samples, solved_tasks.lam.numel())
        for solved in solved_tasks.microbatches("Hessian sketch"):
            slot = ranks.slot(solved.batch.index)
            for sample, residuals in enumerate(self._residuals(solved)):
                rows[slot, sample] = solved.solution.total(
                    solved.outer.outputs_dot_of_one, solved.batch.query, residuals
                )[0]
        return ranks.columns(rows, count).flatten(0, 1)

    def _residuals(self, solved: SolvedBatch) -> Tensor:
        """``√(c_i/m) c_j`` of each sample, ``[m, B, n, C]``."""
        root = solved.outer.output_curvature_root(solved.lam, solved.solution.point, solved.batch.query)
        signs = torch.stack([self._signs(position, root.shape[1:3]) for position in solved.batch.index]).to(root)
        scale = (solved.batch.weight / self.samples).sqrt().view(-1, 1, 1)
        return torch.einsum("bnck,bmnk->mbnc", root, signs) * scale

    def _signs(self, position: int, shape: torch.Size) -> Tensor:
        """±1, ``[m, n, C]``, from the seed and the task's position alone."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position)
        return torch.randint(0, 2, (self.samples, *shape), generator=generator) * 2 - 1


class SampledRows(LowRank, TaskSum):
    """``SᵀS``, where row r of S belongs to the task at position ``owner[r]``, of ``count`` tasks.

    If ranks share the tasks, ``rows`` is this rank's slab of the columns of S: each rank stores and multiplies its
    part.
    """

    def __init__(self, rows: Tensor, owner: Tensor, solved_tasks: SolvedTasks, count: int, note: str) -> None:
        super().__init__(rows, note)
        self._owner, self._count = owner, count
        self._ranks, self._width = solved_tasks.settings.ranks, solved_tasks.lam.numel()

    def project(self, v: Tensor) -> Tensor:
        return self._ranks.sum(super().project(self._ranks.slab(v)))

    def lift(self, small: Tensor) -> Tensor:
        return self._ranks.joined(super().lift(small), self._width)

    def gram(self) -> Tensor:
        return self._gram

    @cached_property
    def _gram(self) -> Tensor:
        """Cached: it gives the largest eigenvalue, and serves every damping."""
        return self._ranks.sum(super().gram())

    @cached_property
    def spectrum(self) -> Tensor:
        """Eigenvalues of SSᵀ, ``[r]``, in float64: those of SᵀS that can be non-zero. Cached, since each solve needs
        them."""
        return torch.linalg.eigvalsh(self.gram()).clamp_min(0)

    @property
    def nbytes(self) -> int:
        return super().nbytes + 8 * len(self.rows) ** 2

    def effective_damping(self, shift: float) -> float:
        """Effective damping κ for ``shift`` δ: ``κ(H + κI)⁻¹ ≈ δ(SᵀS + δI)⁻¹``, where S is a sample of H.

        ``κ = δ/(1 − d/r)``, with the effective dimension ``d = tr SᵀS(SᵀS + δI)⁻¹`` and r rows. This holds in
        expectation for many independent rows (Silverstein 1995).
        """
        return float(shift / (shift / (self.spectrum + shift)).mean())

    def without(self, subsets: Subsets) -> LinearOperator:
        return _SomeRows(self, outside(subsets, self._count)[:, self._owner].to(self.rows))


class _SomeRows(LinearOperator):
    """``Sᵀ diag(kept_r) S`` for row r, where ``kept`` is ``[R, r]``."""

    def __init__(self, sampled: SampledRows, kept: Tensor) -> None:
        self._sampled, self._kept = sampled, kept

    def matvec(self, v: Tensor) -> Tensor:
        return self._sampled.lift(self._kept * self._sampled.project(v))
