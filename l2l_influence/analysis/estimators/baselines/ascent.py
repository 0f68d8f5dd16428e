"""Unlearning by ascent: climb on what is to be removed, and see what that does to the test loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor
from tqdm import tqdm

from ....bilevel.solved_tasks import SolvedTasks
from ....errors import NotConvergedError
from ....recording import Study
from ...problem.snapshot import Snapshot
from .base import Baseline, LevelName, outer_losses


class AscentSteps(Baseline):
    """L_O^t(λ*) − L_O^t(λ_K), where λ_{k+1} = λ_k + lr · pull(λ_k) from λ_0 = λ*: K gradient steps *up* the item's
    part of L_Total (for a support sample, up the part of its task's loss that its weight made).

    Positive = harmful: unlearning the item lowers the test loss. Nothing holds the other tasks' losses in place, so few
    steps are all that make sense; for lr → 0 scores are lr·K times :class:`GradientSimilarity`'s. Unit: the loss.

    Each item costs K pulls and the losses of all test tasks, which makes it the dearest baseline. In float32 a change
    of less than about 1e-7 of the test loss is noise: do not take lr too small.

    Args:
        steps: K.
        lr: size of a step, in units of λ per unit of gradient, where the average task counts as 1.
        maml, tasks, loss, level, options: see :class:`Baseline`.

    Raises:
        NotConvergedError: the steps lead to infinity.
    """

    reading = (
        "score = loss of the test tasks now − their loss after a few gradient steps up the item's own; positive = "
        "harmful; unit: the loss"
    )

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        steps: int = 3,
        lr: float = 0.01,
        level: LevelName = "task",
        **options: Any,
    ) -> None:
        super().__init__(maml, tasks, loss, level=level, **options)
        if steps < 1 or not lr > 0:
            raise ValueError(f"ascent needs steps >= 1 and lr > 0, got steps={steps}, lr={lr}")
        self._steps, self._lr = steps, lr

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        now, hidden = outer_losses(test), self._options.progress
        positions = range(len(study.recorded))
        with tqdm(positions, "ascent", unit="task", leave=False, disable=None if hidden is None else not hidden) as bar:
            return [torch.stack([now - after for after in self._after(study, test, position)]) for position in bar]

    def _after(self, study: Snapshot, test: SolvedTasks, position: int) -> list[Tensor]:
        """Test losses ``[T]`` after climbing on each item of a task."""
        alone = study.solved_tasks.subset([position])
        count = self._level.count(alone.one(0))
        return [outer_losses(_moved(test, self._climbed(alone, j))) for j in range(count)]

    def _climbed(self, alone: SolvedTasks, j: int) -> Tensor:
        """λ_K for item ``j`` of a problem of one task."""
        lam = alone.lam
        for _ in range(self._steps):
            lam = lam + self._lr * self._level.gradient(_moved(alone, lam).one(0), j)[0]
        if not bool(lam.isfinite().all()):
            raise NotConvergedError(
                f"{self._steps} ascent steps of size {self._lr:g} left the finite numbers: lower lr"
            )
        return lam

    def _notes(self) -> list[str]:
        return [f"{self._steps} steps of size {self._lr:g}"]


def _moved(solved_tasks: SolvedTasks, lam: Tensor) -> SolvedTasks:
    """The same problem at another λ, without a bar of its own."""
    return SolvedTasks(replace(solved_tasks.settings, progress=False), lam, solved_tasks.tasks, solved_tasks.weights)
