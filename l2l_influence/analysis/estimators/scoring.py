"""Passes over the training tasks that score their items: IS = −⟨(δ_o I + H)⁻¹ g_test, pull⟩ (Def. 5.2), and kin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...bilevel.inner import IdentityJacobian
from ...bilevel.item_gradients import ItemGradient
from ...bilevel.solved_tasks import SolvedBatch, SolvedTasks
from .collected import PackedTensors
from .outer import Outer
from .tally import Tally


@dataclass(frozen=True)
class Found:
    """What a pass found, one entry a training task.

    Attributes:
        scores: ``[count, R]`` for its items and R test vectors, float64.
        losses: ``[count]``, float64.
        residual: largest inner residual met on the way.
    """

    scores: list[Tensor]
    losses: list[Tensor]
    residual: float


def score(outer: Outer, level: ItemGradient, tests: Tensor) -> Found:
    """One solve for each row of ``tests``, ``[R, P]``, however many training tasks there are."""
    values = outer.solve(tests)
    return _walk(outer, level, outer.study.solved_tasks, lambda solved: -level.gradients_along(solved, values))


def score_leaving_out(outer: Outer, level: ItemGradient, tests: Tensor) -> Found:
    """−⟨(δ_o I + H − c_k H_k)⁻¹ pull, g_test⟩: one solve for each task, with its own part of H left out."""

    def measure(solved: SolvedBatch) -> Tensor:
        without = [[position] for position in solved.batch.index]
        each = [outer.solve(level.gradient(solved, j), without) @ tests.T for j in range(level.count(solved))]
        return -torch.stack(each, dim=1)

    return _walk(outer, level, outer.study.solved_tasks.alone(), measure)


def score_on_itself(outer: Outer, level: ItemGradient) -> Found:
    """Each item on its own loss, by one solve for each item; for tasks and query samples never positive where H is
    positive semi-definite."""

    def measure(solved: SolvedBatch) -> Tensor:
        each = [
            outer.solve(level.gradient(solved, j)) * level.with_own_loss(solved, j).total_gradient
            for j in range(level.count(solved))
        ]
        return -torch.stack(each, dim=1).sum(-1, keepdim=True)

    return _walk(outer, level, outer.study.solved_tasks.alone(), measure)


def _walk(
    outer: Outer, level: ItemGradient, solved_tasks: SolvedTasks, measure: Callable[[SolvedBatch], Tensor]
) -> Found:
    """One pass: ``measure(batch) -> [B, count, R]``. What it says of λ* on the way is left with the study.

    ``local`` are the study's tasks, shared by its ranks; or all of them on each rank (``alone()``) where ``measure``
    solves outer systems, which ranks can only do together.
    """
    study, count = outer.study, len(outer.study.recorded)
    scores, losses = PackedTensors(count), PackedTensors(count)
    tally = Tally(solved_tasks, study.problem.l2)
    for solved in solved_tasks.microbatches("scores"):
        seen = outer.curvature.linearised(solved)
        scores.put(solved.batch.index, measure(seen))
        losses.put(solved.batch.index, level.losses(solved))
        tally.add(solved)
    study.stationarity = tally.stationarity()
    ranks = solved_tasks.settings.ranks
    return Found(ranks.gather(scores.each()), ranks.gather(losses.each()), ranks.maximum(tally.residual))


def each_test_gradient(test: SolvedTasks, exact: bool) -> Tensor:
    """D_λ L_O of each test task, ``[T, P]``; see :func:`mean_test_gradient`."""
    return each_test(test, exact)[0]


def each_test(test: SolvedTasks, exact: bool) -> tuple[Tensor, Tensor]:
    """D_λ L_O of each test task, ``[T, P]``, and its L_O, ``[T]``, float64 and on the CPU."""
    gradients = test.lam.new_zeros(len(test.tasks), test.lam.numel())
    losses = torch.zeros(len(test.tasks), dtype=torch.float64)
    for solved in test.microbatches("test tasks"):
        read = _read(solved, exact)
        gradients[solved.batch.index] = read.weighted_gradient()
        losses[solved.batch.index] = read.outer_loss().double().cpu()
    ranks = test.settings.ranks
    return ranks.sum(gradients), ranks.sum(losses)


def mean_test_gradient(test: SolvedTasks, exact: bool) -> tuple[Tensor, float]:
    """The mean of D_λ L_O, ``[1, P]``, and of L_O over test tasks.

    With ``exact=False`` dθ'/dλ is left out, as Def. 5.2 prints it: ∂_θ L_O (and ∂_λ L_O where there is one).
    """
    gradient, loss = test.lam.new_zeros(1, test.lam.numel()), torch.zeros(1, dtype=torch.float64)
    for solved in test.microbatches("test tasks"):
        read = _read(solved, exact)
        gradient += read.batch.weight @ read.total_gradient
        loss += float(read.outer_loss().sum())
    ranks, count = test.settings.ranks, len(test.tasks)
    return ranks.sum(gradient) / count, float(ranks.sum(loss)) / count


def _read(solved: SolvedBatch, exact: bool) -> SolvedBatch:
    return solved if exact else replace(solved, solution=IdentityJacobian(solved.solution))
