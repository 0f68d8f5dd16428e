"""Chance: what a measure of agreement says of scores that know nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from learn2learn.algorithms.base_learner import BaseLearner
from learn2learn.data import Taskset
from torch import Tensor

from ....bilevel.solved_tasks import SolvedTasks
from ....recording import Study
from ...problem.snapshot import Snapshot
from .base import Baseline, LevelName, each_task


class Random(Baseline):
    """Independent standard normal numbers, one for each item and test task.

    Args:
        seed: of the numbers, which come from a generator of their own: the same seed gives the same scores.
        maml, tasks, loss, level, options: see :class:`Baseline`.
    """

    reading = "score = a random number, which knows nothing of the item"

    def __init__(
        self,
        maml: BaseLearner | Study,
        tasks: Taskset | None = None,
        loss: Callable[..., Tensor] | None = None,
        *,
        seed: int = 0,
        level: LevelName = "task",
        **options: Any,
    ) -> None:
        super().__init__(maml, tasks, loss, level=level, **options)
        self._seed = seed

    def _measure(self, study: Snapshot, test: SolvedTasks) -> list[Tensor]:
        counts = [len(losses) for losses in each_task(study.solved_tasks, self._level.losses)]
        draw = torch.Generator().manual_seed(self._seed)
        numbers = torch.randn(sum(counts), len(test.tasks), generator=draw, dtype=torch.float64)
        return list(numbers.split(counts))

    def _notes(self) -> list[str]:
        return [f"seed {self._seed}"]
